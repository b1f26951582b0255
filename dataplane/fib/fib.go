// Package fib maps inner addresses to the node that owns them.
//
// A Table is built from a complete list of nodes and is immutable. Users keep it in an atomic
// pointer and replace it with a new one, so readers need no lock and see either the old table or
// the new. A table is rebuilt rather than updated: 10,000 nodes take a few milliseconds, and
// incremental updates could go wrong.
package fib

import (
	"net/netip"

	"github.com/gaissmai/bart"
)

// Node is one node of the overlay.
type Node struct {
	Name     string
	Prefixes []netip.Prefix // subnets leased to the node, of either family; host bits are ignored
	Endpoint netip.AddrPort // outer address and port of its daemon
	Fast     bool           // its kernel takes packets of the fast path
}

// Table maps inner and outer addresses to nodes. The zero value is an empty table. All methods are
// safe for concurrent use.
type Table struct {
	inner bart.Fast[int32]
	outer map[netip.Addr]int32
}

// New returns the table of nodes, which it identifies by their index. If several nodes have the
// same prefix or endpoint address, the first one wins.
func New(nodes []Node) *Table {
	t := &Table{outer: make(map[netip.Addr]int32, len(nodes))}
	for i, n := range nodes {
		for _, p := range n.Prefixes {
			if !p.IsValid() {
				continue
			}
			if _, taken := t.inner.Get(p); !taken {
				t.inner.Insert(p, int32(i))
			}
		}
		outer := n.Endpoint.Addr().Unmap()
		if _, taken := t.outer[outer]; !taken && outer.IsValid() {
			t.outer[outer] = int32(i)
		}
	}
	return t
}

// Lookup returns the index of the node with the longest prefix that contains the inner address a.
func (t *Table) Lookup(a netip.Addr) (node int, ok bool) {
	i, ok := t.inner.Lookup(a)
	return int(i), ok
}

// ByEndpoint returns the index of the first node whose endpoint has the outer address a, with any
// port.
func (t *Table) ByEndpoint(a netip.Addr) (node int, ok bool) {
	i, ok := t.outer[a]
	return int(i), ok
}
