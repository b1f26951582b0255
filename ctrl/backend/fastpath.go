package backend

import (
	"encoding/json"

	"weft/lease"
)

// fastPathData is the backend data of a udp lease whose node takes packets of the kernel's fast
// path. flannel publishes no data with this backend and ignores it.
type fastPathData struct {
	FastPath bool
}

// withFastPath adds the announcement of a fast path to the attributes of a lease.
func withFastPath(a lease.Attrs) lease.Attrs {
	data, err := json.Marshal(fastPathData{FastPath: true})
	if err == nil { // a struct of one bool
		a.BackendData = data
	}
	return a
}

// TakesFastPath reports whether the lease announces that its node takes packets of the fast path.
func TakesFastPath(a lease.Attrs) bool {
	var d fastPathData
	return json.Unmarshal(a.BackendData, &d) == nil && d.FastPath
}
