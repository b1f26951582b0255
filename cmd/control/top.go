package control

import (
	"net/netip"
	"time"

	"weft/metrics"
)

// Top is the traffic of a node at one moment.
type Top struct {
	Time     time.Time `json:"time"`
	Interval float64   `json:"interval_seconds"` // that Flows covers
	Node     string    `json:"node"`
	Backend  string    `json:"backend"`
	// Estimated means that the kernel carries the packets: Out, In and those of Nodes are computed
	// from the sample, beginning with the request.
	Estimated bool           `json:"estimated,omitempty"`
	Out       metrics.Volume `json:"out"` // since the daemon started
	In        metrics.Volume `json:"in"`
	// FastPath is the part of Out and In that the kernel's fast path carried; absent without one.
	FastPath *metrics.NodeFastPath `json:"fast_path,omitempty"`
	// FramesOut and FramesIn count the frames that the rest of Out and In, the part of the workers,
	// was read from and written to the TUN in. Packets per frame are the coalescing.
	FramesOut uint64         `json:"frames_out,omitempty"`
	FramesIn  uint64         `json:"frames_in,omitempty"`
	Drops     []metrics.Drop `json:"drops"` // since the daemon started, without zeros
	Nodes     []TopNode      `json:"nodes"`
	Flows     []TopFlow      `json:"flows"`  // the largest, within Interval
	Sample    int            `json:"sample"` // Flows are estimated from one packet in so many
	Missed    uint64         `json:"missed"` // samples lost since the request
}

// TopNode is the traffic with another node.
type TopNode struct {
	Name string         `json:"name"`
	Out  metrics.Volume `json:"out"` // since the daemon started
	In   metrics.Volume `json:"in"`
	// FastPath is the part of Out and In that the kernel's fast path carried; absent if nothing.
	FastPath metrics.NodeFastPath `json:"fast_path,omitzero"`
	// RTT is the median round-trip time in seconds, and Loss the lost share of the last echoes of
	// the mesh probe. RTT is 0 if the node is not probed or has not answered.
	RTT  float64 `json:"rtt_seconds,omitempty"`
	Loss float64 `json:"loss,omitempty"`
}

// TopFlow is the traffic of one flow in one direction.
type TopFlow struct {
	Src      netip.AddrPort `json:"src"` // port 0 if the protocol has none
	Dst      netip.AddrPort `json:"dst"`
	Proto    uint8          `json:"proto"` // IP protocol number
	Outbound bool           `json:"outbound"`
	Node     string         `json:"node,omitempty"` // the other node; empty if unknown
	Packets  uint64         `json:"packets"`
	Bytes    uint64         `json:"bytes"`
	// Kernel is the part of Packets and Bytes that the kernel carried, by the fast path or a
	// backend of the kernel; the workers carried the rest. A GSO frame that the kernel carries
	// counts as one packet.
	Kernel  metrics.Volume `json:"kernel,omitzero"`
	Drop    string         `json:"drop,omitempty"` // reason for its last drop
	Dropped uint64         `json:"dropped,omitempty"`
}
