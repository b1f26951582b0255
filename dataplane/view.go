package dataplane

import (
	"net/netip"
	"sync/atomic"
	"time"

	"weft/dataplane/fib"
	"weft/dataplane/udp"
)

// view is what a worker knows of the overlay during one round. It is built whole and never changes; peers
// alone carry counters and what was learnt, and live on from view to view.
type view struct {
	table *fib.Table
	peers []*peer        // by the table's index; a node with several leases has one peer
	self  []netip.Prefix // our own subnets
}

// peer is another node as the workers see it.
type peer struct {
	name string
	to   *udp.Destination

	received, receivedBytes atomic.Uint64

	pathMTU atomic.Pointer[learntMTU] // nil is nothing learnt
}

// learntMTU is what the kernel said about a path.
type learntMTU struct {
	bytes int // outer headers included
	until time.Time
}

// pathMTUAge is how long a learnt path MTU is believed. It is the kernel that remembers what routers told it, and forgets
// it in time (net.ipv4.route.mtu_expires); to ask it again costs one flush that is refused, of which nothing is lost that
// the path carries in pieces.
const pathMTUAge = time.Second

// learn keeps a path MTU in bytes, outer headers included.
func (p *peer) learn(mtu int, now time.Time) {
	p.pathMTU.Store(&learntMTU{bytes: mtu, until: now.Add(pathMTUAge)})
}

// knownPathMTU returns the path MTU in bytes that was learnt and has not expired, or 0.
func (p *peer) knownPathMTU(now func() time.Time) int {
	known := p.pathMTU.Load()
	if known == nil {
		return 0
	}
	if now().After(known.until) {
		p.pathMTU.CompareAndSwap(known, nil)
		return 0
	}
	return known.bytes
}

// newView builds the view of self and others. A node that old knows under the same name keeps its counters,
// and under the same endpoint also what was learnt of its path.
func newView(old *view, self fib.Node, others []fib.Node) *view {
	known := make(map[string]*peer, len(old.peers))
	for _, p := range old.peers {
		known[p.name] = p
	}
	v := &view{table: fib.New(others), peers: make([]*peer, 0, len(others))}
	for _, n := range others {
		p := keepPeer(known[n.Name], n)
		known[n.Name] = p
		v.peers = append(v.peers, p)
	}
	for _, prefix := range self.Prefixes {
		v.self = append(v.self, prefix.Masked())
	}
	return v
}

func keepPeer(old *peer, n fib.Node) *peer {
	if old != nil && old.to.Addr == n.Endpoint {
		return old
	}
	p := &peer{name: n.Name, to: udp.NewDestination(n.Endpoint)}
	if old != nil {
		p.received.Store(old.received.Load())
		p.receivedBytes.Store(old.receivedBytes.Load())
		p.to.Packets.Store(old.to.Packets.Load())
		p.to.Bytes.Store(old.to.Bytes.Load())
	}
	return p
}

// ours reports whether the inner address a is in our own subnet.
func (v *view) ours(a netip.Addr) bool {
	for _, p := range v.self {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
