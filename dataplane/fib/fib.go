// Package fib answers one question: which node owns this inner address?
//
// A Table is built whole from a list of nodes and never changes afterwards. Its user keeps it behind one
// atomic pointer and swaps in the next one; readers need no lock and see either the old table or the new.
// Building beats patching here: 10,000 nodes take a few milliseconds, and a table that cannot be patched
// cannot be patched wrongly.
package fib

import (
	"net/netip"

	"github.com/gaissmai/bart"
)

// Node is one node of the overlay: who it is, which inner addresses live on it, and where to send for them.
type Node struct {
	Name     string
	Prefixes []netip.Prefix // the subnets leased to it, of either family; host bits are ignored
	Endpoint netip.AddrPort // the outer address its daemon receives on
}

// Table maps inner addresses and outer addresses to nodes. The zero value is empty and ready to use.
// All methods may be called by many goroutines at once.
type Table struct {
	inner bart.Fast[int32]
	outer map[netip.Addr]int32
}

// New builds the table of nodes, which it knows by their index. Where two hold the same prefix or endpoint address, the
// first in the list has it.
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

// Lookup returns the index of the node with the longest prefix that holds the inner address a.
func (t *Table) Lookup(a netip.Addr) (node int, ok bool) {
	i, ok := t.inner.Lookup(a)
	return int(i), ok
}

// ByEndpoint returns the index of the first node whose endpoint has the outer address a, whatever its port.
func (t *Table) ByEndpoint(a netip.Addr) (node int, ok bool) {
	i, ok := t.outer[a]
	return int(i), ok
}
