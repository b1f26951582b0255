// Package fib maps inner addresses to the node that owns them.
//
// A Table is immutable. Users keep it in an atomic pointer and replace it with a new one, so that
// readers need no lock and see either the old table or the new. A [Builder] makes tables from
// changes of the nodes; they share all that has not changed.
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

// Table maps inner and outer addresses to the values of nodes. The zero value is an empty table.
// All methods are safe for concurrent use.
type Table[V any] struct {
	inner, outer *bart.Fast[V] // nil: empty
}

// Lookup returns the value of the node with the longest prefix that contains the inner address a.
func (t *Table[V]) Lookup(a netip.Addr) (value V, ok bool) {
	if t.inner == nil {
		return value, false
	}
	return t.inner.Lookup(a)
}

// ByEndpoint returns the value of the first node whose endpoint has the outer address a, with any
// port.
func (t *Table[V]) ByEndpoint(a netip.Addr) (value V, ok bool) {
	if t.outer == nil {
		return value, false
	}
	return t.outer.Lookup(a)
}
