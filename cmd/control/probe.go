package control

import (
	"net/netip"
	"time"
)

// Path is the path to one address of a node, measured by the mesh probe.
type Path struct {
	Address netip.Addr `json:"address"` // that is probed
	Sent    int        `json:"sent"`    // of the last echoes
	Lost    int        `json:"lost"`    // of these
	// RTT is the last round-trip time in seconds, RTTMedian the median of the last echoes.
	RTT       float64 `json:"rtt_seconds,omitempty"`
	RTTMedian float64 `json:"rtt_median_seconds,omitempty"`
	// MTU is the largest packet that gets through, in bytes; absent while unknown.
	MTU int `json:"mtu,omitempty"`
	// MaxMTU is the largest packet that this node's device takes. A smaller MTU is a fault of the
	// path.
	MaxMTU   int       `json:"max_mtu"`
	Answered time.Time `json:"answered,omitzero"` // when the last answer arrived
	// Workers and FastPath are the echoes of the two ways of the udp backend with a fast path;
	// absent if there is one way.
	Workers  *Loss `json:"workers,omitempty"`
	FastPath *Loss `json:"fast_path,omitempty"`
}

// Loss counts the last echoes of one way.
type Loss struct {
	Sent int `json:"sent"`
	Lost int `json:"lost"`
}

// Probe describes the mesh probe.
type Probe struct {
	Interval float64 `json:"interval_seconds"`
	Nodes    int     `json:"nodes"` // probed, at most 200
	// Answered and Lost count echoes.
	Answered uint64 `json:"answered"`
	Lost     uint64 `json:"lost"`
	Error    string `json:"error,omitempty"` // why there are no echoes
}
