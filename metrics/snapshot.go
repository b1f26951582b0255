package metrics

import (
	"net/netip"
	"time"
)

// Snapshot is the state of the daemon at one moment. Counters count from the start of the
// process. The caller must not change the slices after passing them on.
type Snapshot struct {
	// Ready is the answer of /readyz, Conditions are its parts.
	Ready      bool
	Conditions []Condition

	StoreConnected bool
	// StoreRevision is the revision of the node list in use, 0 before the first.
	StoreRevision int64
	Lease         Lease
	// Nodes is the number of other nodes.
	Nodes int
	// Unreachable is the number of other nodes with a subnet that this node has no path to.
	Unreachable int

	// Probe is nil without a mesh probe.
	Probe *Probe

	// Traffic is nil while there is no dataplane.
	Traffic *Traffic

	// Kernel holds the counters of a backend whose packets the kernel moves; nil for others.
	Kernel *KernelTraffic

	// Cloud counts the calls of a cloud's API; empty for other backends.
	Cloud []CloudCall

	// IPsec is nil unless the backend is ipsec.
	IPsec *IPsec

	// ReconcilerInSync reports whether the kernel matched the desired state when last checked.
	ReconcilerInSync bool
	// KernelRepairs counts the changes that undid changes by other programs.
	KernelRepairs uint64
	// RulesInPlace reports whether the packet filter rules match the desired ones.
	RulesInPlace bool
	// RuleRepairs counts how often the packet filter rules were restored.
	RuleRepairs uint64
}

// CloudCall counts the calls of one name. Its JSON form is part of the daemon's status.
type CloudCall struct {
	Provider string            `json:"-"`
	Call     string            `json:"call"`
	Count    uint64            `json:"count"`
	Errors   map[string]uint64 `json:"errors,omitempty"` // by kind
}

// Condition is one condition of readiness.
type Condition struct {
	Name string // a short fixed word, for example "lease"
	OK   bool
}

// Lease describes the node's lease on its subnet.
type Lease struct {
	Held      bool
	Age       time.Duration // since this process acquired it
	ExpiresIn time.Duration // negative after expiry; meaningless if Permanent
	Permanent bool          // never expires
}

// Traffic holds the counters of the dataplane. Its JSON form is part of the daemon's status.
type Traffic struct {
	Engine      string       `json:"engine"` // engine in use: "offload" or "portable"
	Features    []Feature    `json:"features,omitempty"`
	Out         Volume       `json:"out"`         // from the TUN to other nodes
	In          Volume       `json:"in"`          // from other nodes to the TUN
	Drops       []Drop       `json:"drops"`       // one entry per reason, including zeros
	Overflows   []Overflow   `json:"overflows"`   // one entry per kind of queue
	Recreations []Recreation `json:"recreations"` // one entry per kind of object
	// ICMPSent counts errors sent to inner senders, ICMPSuppressed those withheld by the rate
	// limit.
	ICMPSent       uint64 `json:"icmp_sent"`
	ICMPSuppressed uint64 `json:"icmp_suppressed"`
	// GSOFramesRejected counts GSO frames that the TUN rejected and that were written as segments.
	GSOFramesRejected uint64        `json:"gso_frames_rejected"`
	Nodes             []NodeTraffic `json:"nodes"` // in any order; entries of one name are summed
	FastPath          FastPath      `json:"fast_path"`
	// UnknownSources are outer addresses of dropped packets, the last first. They are not exported
	// as a metric, which would have a series per address.
	UnknownSources []UnknownSource `json:"unknown_sources,omitempty"`
}

// FastPath is the part of the traffic that the kernel carries without the engine. Out and In of
// Traffic include it.
type FastPath struct {
	Active bool   `json:"active"`
	Reason string `json:"reason,omitempty"` // why not, or a restriction; not exported as a metric
	Out    Volume `json:"out"`
	In     Volume `json:"in"`
	Passed []Drop `json:"passed,omitempty"` // packets left to the engine, by reason
}

// Used reports whether the fast path carries packets, or has carried some.
func (f *FastPath) Used() bool {
	return f.Active || f.Out.Packets > 0 || f.In.Packets > 0
}

// Volume is an amount of traffic. Bytes are those of the inner packets.
type Volume struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Drop is the number of packets dropped for one reason.
type Drop struct {
	Reason  string `json:"reason"`
	Packets uint64 `json:"packets"`
	// Meaning explains the reason in a sentence; not a metric.
	Meaning string `json:"meaning,omitempty"`
	// Last is the source and destination of the last such packet; not a metric.
	Last   string    `json:"last,omitempty"`
	LastAt time.Time `json:"last_at,omitzero"`
}

// Overflow is the number of packets that the kernel dropped because one of the dataplane's receive
// queues was full. At the socket, a GRO train counts as one packet.
type Overflow struct {
	Queue   string `json:"queue"` // "socket" or "tun"
	Packets uint64 `json:"packets"`
}

// Recreation is how often an object of the dataplane was recreated, because it was lost or because
// the underlay address changed.
type Recreation struct {
	Object string `json:"object"` // "device" or "socket"
	Count  uint64 `json:"count"`
}

// Feature is a kernel feature that the engine uses where available.
type Feature struct {
	Name   string `json:"name"`
	Used   bool   `json:"used"`
	Reason string `json:"reason,omitempty"` // why it is not used; not exported as a metric
}

// NodeTraffic is the traffic to and from one other node.
type NodeTraffic struct {
	Node string `json:"node"`
	Out  Volume `json:"out"`
	In   Volume `json:"in"`
	// FastPath is the part of Out and In that the kernel's fast path carried; absent if nothing.
	FastPath NodeFastPath `json:"fast_path,omitzero"`
	// SendError is why the kernel refused the last packet that it refused; not a metric.
	SendError   string    `json:"send_error,omitempty"`
	SendErrorAt time.Time `json:"send_error_at,omitzero"`
}

// NodeFastPath is the traffic of the fast path to and from one other node.
type NodeFastPath struct {
	Out Volume `json:"out"`
	In  Volume `json:"in"`
}

// UnknownSource is an outer address that is not a node's.
type UnknownSource struct {
	Address netip.Addr `json:"address"`
	Packets uint64     `json:"packets"`
	Last    time.Time  `json:"last"` // when the last packet arrived
}

// KernelTraffic holds the kernel's counters of overlay devices, in which a GSO frame is one packet.
// Its JSON form is part of the daemon's status.
type KernelTraffic struct {
	Devices []DeviceTraffic `json:"devices"`
	// Nodes is the traffic per node where the kernel counts it, which is WireGuard: bytes, with
	// WireGuard's headers.
	Nodes []NodeTraffic `json:"nodes,omitempty"`
	Error string        `json:"error,omitempty"` // why the counters cannot be read; not a metric
}

// IPsec is the state of the security associations.
type IPsec struct {
	Established, Missing int    // associations with other nodes
	Restarts             uint64 // of charon
}

// DeviceTraffic is the traffic of an overlay device since its creation.
type DeviceTraffic struct {
	Device string `json:"device"`
	Out    Volume `json:"out"` // to other nodes
	In     Volume `json:"in"`
	// OutDropped and InDropped include faulty packets.
	OutDropped uint64 `json:"out_dropped"`
	InDropped  uint64 `json:"in_dropped"`
}
