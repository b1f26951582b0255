package agent

import (
	"net/http"

	"weft/cmd/control"
)

// serveLeaseEntry answers with this node's entry of a lease file, from whichever store its subnets
// are. The addresses and data are those of this node, not those that a store holds for it.
func (d *daemon) serveLeaseEntry(w http.ResponseWriter, _ *http.Request) {
	s := d.snapshot.Load()
	if s == nil || s.reconciler == nil {
		reason := "starting"
		if s != nil && s.waiting != nil {
			reason = s.waiting.Error()
		}
		answer(w, http.StatusServiceUnavailable, "no network config so far: "+reason+"\n")
		return
	}
	a := s.adv.Attrs
	answerJSON(w, control.LeaseEntry{
		Name: d.nodeName, Subnet: s.self.Subnet, Subnet6: s.self.Subnet6,
		PublicIP: a.PublicIP, PublicIPv6: a.PublicIPv6,
		BackendData: a.BackendData, BackendV6Data: a.BackendV6Data, FastPath: a.FastPath,
	})
}
