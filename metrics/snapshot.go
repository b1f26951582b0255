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

	// Traffic is nil while there is no dataplane.
	Traffic *Traffic

	// ReconcilerInSync says that the kernel looked as planned when last checked.
	ReconcilerInSync bool
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

// Traffic is what the dataplane has counted.
type Traffic struct {
	Engine                   string // the engine that carries the packets
	Capabilities             []Capability
	Out, In                  Volume        // TUN to UDP, UDP to TUN
	Drops                    []Drop        // one entry a reason, also those that are 0
	Overflows                []Overflow    // one entry a queue kind
	Reopens                  []Reopen      // one entry a thing that can be lost
	ICMPSent, ICMPSuppressed uint64        // errors told to inner senders; not told because of the rate limit
	Nodes                    []NodeTraffic // in any order; entries of one name are summed
}

// Volume is an amount of traffic; bytes are those of the inner packets.
type Volume struct{ Packets, Bytes uint64 }

// Drop is how many packets died of one reason.
type Drop struct {
	Reason  string
	Packets uint64
}

// Overflow is how many packets the kernel dropped because a queue of ours was
// full.
type Overflow struct {
	Queue   string // "socket" or "tun"
	Packets uint64
}

// Reopen is how often something of ours was lost and made again.
type Reopen struct {
	What  string // "device" or "socket"
	Count uint64
}

// Capability is something the engine can use if the kernel has it.
type Capability struct {
	Name string
	Used bool
}

// NodeTraffic is the traffic to and from one other node.
type NodeTraffic struct {
	Node    string
	Out, In Volume
}
