package metrics

import "time"

// Snapshot is every number of one moment. Counters count from the start of the
// process. The caller must not change the slices and maps after handing it over.
type Snapshot struct {
	// Ready is what /readyz answers, Conditions are the parts it is made of.
	Ready      bool
	Conditions []Condition

	StoreConnected bool
	// StoreRevision is the revision of the node list in use, 0 before the first.
	StoreRevision int64
	Lease         Lease
	// Nodes is how many other nodes are known.
	Nodes int
	// Unreachable is how many of them have a subnet that this node has no path to.
	Unreachable int

	// Traffic is nil while there is no dataplane.
	Traffic *Traffic

	// ReconcilerInSync says that the kernel looked as planned when last checked.
	ReconcilerInSync bool
	// KernelRepairs is how many changes were made to get there again after
	// something else had changed the kernel.
	KernelRepairs uint64
	// RulesInPlace says that the packet filter rules are as wanted, RuleRepairs
	// how often they had to be put back.
	RulesInPlace bool
	RuleRepairs  uint64
}

// Condition is one thing that must be in place for the node to be ready.
type Condition struct {
	Name string // a short fixed word, for example "lease"
	OK   bool
}

// Lease is the node's own claim on its subnet.
type Lease struct {
	Held    bool
	Age     time.Duration // since this process got it
	Expires time.Duration // from now; negative once it has run out
	// Endless is true for a lease that never expires; Expires then means nothing.
	Endless bool
}

// Traffic is what the dataplane has counted. Its JSON is the form in which the
// daemon's status shows it.
type Traffic struct {
	Engine       string       `json:"engine"` // the engine that carries the packets
	Capabilities []Capability `json:"capabilities,omitempty"`
	Out          Volume       `json:"out"`       // from the TUN to other nodes
	In           Volume       `json:"in"`        // from other nodes to the TUN
	Drops        []Drop       `json:"drops"`     // one entry a reason, also those that are 0
	Overflows    []Overflow   `json:"overflows"` // one entry a kind of queue
	Reopens      []Reopen     `json:"reopens"`   // one entry a thing that can be lost
	// ICMPSent are errors told to inner senders, ICMPSuppressed those that the
	// rate limit held back.
	ICMPSent       uint64 `json:"icmp_sent"`
	ICMPSuppressed uint64 `json:"icmp_suppressed"`
	// SuperFramesRefused are joined packets that the device took only one by one.
	SuperFramesRefused uint64        `json:"super_frames_refused"`
	Nodes              []NodeTraffic `json:"nodes"` // in any order; entries of one name are summed
}

// Volume is an amount of traffic; bytes are those of the inner packets.
type Volume struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Drop is how many packets died of one reason.
type Drop struct {
	Reason  string `json:"reason"`
	Packets uint64 `json:"packets"`
}

// Overflow is how many packets the kernel dropped because a queue of ours was
// full. At the socket a train of them counts once.
type Overflow struct {
	Queue   string `json:"queue"` // "socket" or "tun"
	Packets uint64 `json:"packets"`
}

// Reopen is how often something of ours was made again: it was lost, or had to
// move to another address.
type Reopen struct {
	What  string `json:"what"` // "device" or "socket"
	Count uint64 `json:"count"`
}

// Capability is something the engine can use if the kernel has it.
type Capability struct {
	Name   string `json:"name"`
	Used   bool   `json:"used"`
	Reason string `json:"reason,omitempty"` // why it is not used; not in the metrics
}

// NodeTraffic is the traffic to and from one other node.
type NodeTraffic struct {
	Node string `json:"node"`
	Out  Volume `json:"out"`
	In   Volume `json:"in"`
}
