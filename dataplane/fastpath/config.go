package fastpath

import (
	"errors"
	"net/netip"
)

// ErrUnsupported means that the kernel or the process cannot run the programs.
var ErrUnsupported = errors.New("kernel fast path not available")

// ErrOtherOwner means that another program is attached where this package would attach its own.
var ErrOtherOwner = errors.New("another BPF program is attached")

// Check selects the checks of inbound packets. The values are those of dataplane.SourceCheck.
type Check uint8

// Config configures a Path.
type Config struct {
	Place
	// SourcePort is the UDP port to send from; 0 means the port of Local.
	SourcePort uint16
	Check      Check
	// TOSMask selects the inner TOS bits that are copied to the outer header.
	TOSMask uint8
}

// Place is where the programs are attached.
type Place struct {
	Device   string         // the TUN device
	Underlay string         // the interface to the other nodes
	Local    netip.AddrPort // outer address and port of this node
}

// Traffic counts inner packets and their bytes.
type Traffic struct {
	Sent, SentBytes, Received, ReceivedBytes uint64
}

// Add adds t to the sum.
func (sum *Traffic) Add(t Traffic) {
	sum.Sent += t.Sent
	sum.SentBytes += t.SentBytes
	sum.Received += t.Received
	sum.ReceivedBytes += t.ReceivedBytes
}

// Pass is a reason for passing a packet to the workers.
type Pass uint8

// The reasons, in the order of enum verdict in bpf/fastpath.c.
const (
	notOurs Pass = iota

	PassNoPeer  // outbound: its node takes packets in its workers only, or no node has it
	PassBulk    // outbound: the flow sends in bulk
	PassPaused  // outbound: a capture on the TUN device is to see every packet
	PassNoRoute // outbound: no route, no neighbour entry yet, or too long for the path
	PassUnusual // a header that the programs do not read
	PassRefused // inbound: a worker would drop it
	PassFailed  // the kernel had no memory for the headers
	PassProbe   // outbound: an echo that probes the way of the workers
	numPasses
)

// String returns the reason's name in metrics.
func (p Pass) String() string {
	return [numPasses]string{"not_ours", "no_peer", "bulk", "paused", "no_route", "unusual",
		"refused", "failed", "probe"}[p]
}

// Passes returns every reason.
func Passes() []Pass {
	all := make([]Pass, 0, numPasses-1)
	for p := notOurs + 1; p < numPasses; p++ {
		all = append(all, p)
	}
	return all
}

// Stats are the counters of the programs since this process attached them.
type Stats struct {
	Total  Traffic
	Nodes  map[netip.Addr]Traffic // by outer address, without those that had no packets
	Passed map[Pass]uint64        // packets that a worker got or will get
}
