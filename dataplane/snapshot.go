package dataplane

import (
	"net/netip"
	"sync/atomic"
	"time"

	"weft/dataplane/fastpath"
	"weft/dataplane/fib"
	"weft/dataplane/udp"
)

// snapshot is the overlay as a worker sees it during one round. It is immutable, except for the
// counters and path MTUs in peers, which are carried over from snapshot to snapshot.
type snapshot struct {
	table *fib.Table[*peer]
	local []netip.Prefix // subnets of this node
}

// peer is another node.
type peer struct {
	name string
	dest *udp.Destination

	received, receivedBytes atomic.Uint64

	// fast counts the packets of the fast path to and from outer addresses that the path has
	// dropped. All peers of the node, one after the other, share it; Engine.mu guards it.
	fast *fastpath.Traffic

	pathMTU atomic.Pointer[cachedMTU] // nil if unknown
}

// cachedMTU is a path MTU as reported by the kernel.
type cachedMTU struct {
	bytes   int // including outer headers
	expires time.Time
}

// pathMTULifetime limits the use of a cached path MTU. The kernel itself caches those that routers
// report and lets them expire (net.ipv4.route.mtu_expires). Asking it again costs one rejected
// flush and loses no packet that may be fragmented.
const pathMTULifetime = time.Second

// setPathMTU caches a path MTU in bytes, including outer headers.
func (p *peer) setPathMTU(mtu int, now time.Time) {
	p.pathMTU.Store(&cachedMTU{bytes: mtu, expires: now.Add(pathMTULifetime)})
}

// cachedPathMTU returns the cached path MTU in bytes, or 0 if there is none or it has expired.
func (p *peer) cachedPathMTU(now func() time.Time) int {
	cached := p.pathMTU.Load()
	if cached == nil {
		return 0
	}
	if now().After(cached.expires) {
		p.pathMTU.CompareAndSwap(cached, nil)
		return 0
	}
	return cached.bytes
}

// updatePeer returns old if its endpoint is unchanged, else a new peer with its counters.
func updatePeer(old *peer, n fib.Node) *peer {
	if old != nil && old.dest.Addr == n.Endpoint {
		return old
	}
	p := &peer{name: n.Name, dest: udp.NewDestination(n.Endpoint), fast: new(fastpath.Traffic)}
	if old != nil {
		p.fast = old.fast
		p.received.Store(old.received.Load())
		p.receivedBytes.Store(old.receivedBytes.Load())
		p.dest.Packets.Store(old.dest.Packets.Load())
		p.dest.Bytes.Store(old.dest.Bytes.Load())
	}
	return p
}

// isLocal reports whether the inner address a is in a subnet of this node.
func (s *snapshot) isLocal(a netip.Addr) bool {
	for _, p := range s.local {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
