package fib

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"
)

// Compare orders nodes by their prefixes, then by name and endpoint. If several nodes have the same
// prefix or endpoint address, a table maps it to the first one.
func Compare(a, b Node) int {
	masked := func(a, b netip.Prefix) int { return a.Masked().Compare(b.Masked()) }
	if c := slices.CompareFunc(a.Prefixes, b.Prefixes, masked); c != 0 {
		return c
	}
	if c := strings.Compare(a.Name, b.Name); c != 0 {
		return c
	}
	return a.Endpoint.Compare(b.Endpoint)
}

// Entry is a node with the value that a table returns for it.
type Entry[V any] struct {
	Node
	Value V
}

// Builder makes the tables of changing nodes. Its work is proportional to the change. The zero
// value has no nodes. It is not safe for concurrent use; its tables are.
type Builder[V any] struct {
	table        Table[V]
	inner, outer claims[V]
}

// New returns the table of nodes that do not change. Its values are their indices.
func New(nodes []Node) *Table[int] {
	entries := make([]Entry[int], len(nodes))
	for i, n := range nodes {
		entries[i] = Entry[int]{n, i}
	}
	var b Builder[int]
	return b.Change(nil, entries).Table
}

// claims holds the nodes that claim a prefix, in their order: usually one.
type claims[V any] map[netip.Prefix][]*Entry[V]

// manyChanges is the number of changed prefixes from which it is cheaper to copy a whole trie once
// than the path to each prefix: a path is about 12 kB, the trie of 10,000 subnets about 400 kB.
const manyChanges = 32

// Result is the result of a change: the new table and, for each prefix and endpoint address of a
// changed node, the node that it leads to now; nil if there is none.
type Result[V any] struct {
	Table        *Table[V]
	Inner, Outer map[netip.Prefix]*Node
}

// Change removes nodes and then adds others. A removed node is identified by its prefixes, name and
// endpoint; a missing one is ignored.
func (b *Builder[V]) Change(remove []Node, add []Entry[V]) Result[V] {
	if b.inner == nil {
		b.inner, b.outer = claims[V]{}, claims[V]{}
	}
	inner, outer := map[netip.Prefix]*Node{}, map[netip.Prefix]*Node{} // changed
	for _, n := range remove {
		for _, p := range n.innerPrefixes() {
			b.inner.remove(p, n)
			inner[p] = nil
		}
		if p := n.outerPrefix(); p.IsValid() {
			b.outer.remove(p, n)
			outer[p] = nil
		}
	}
	for i := range add {
		e := &add[i]
		for _, p := range e.innerPrefixes() {
			b.inner.add(p, e)
			inner[p] = nil
		}
		if p := e.outerPrefix(); p.IsValid() {
			b.outer.add(p, e)
			outer[p] = nil
		}
	}
	b.table.inner = update(b.table.inner, b.inner, inner)
	b.table.outer = update(b.table.outer, b.outer, outer)
	t := b.table
	return Result[V]{&t, inner, outer}
}

// Nodes returns all nodes in the order of Compare.
func (b *Builder[V]) Nodes() []Node {
	listed := make(map[*Entry[V]]bool, len(b.inner))
	for _, c := range []claims[V]{b.inner, b.outer} {
		for _, entries := range c {
			for _, e := range entries {
				listed[e] = true
			}
		}
	}
	nodes := make([]Node, 0, len(listed))
	for e := range listed {
		nodes = append(nodes, e.Node)
	}
	slices.SortFunc(nodes, Compare)
	return nodes
}

// innerPrefixes returns the valid prefixes without host bits.
func (n Node) innerPrefixes() []netip.Prefix {
	prefixes := make([]netip.Prefix, 0, len(n.Prefixes))
	for _, p := range n.Prefixes {
		if p.IsValid() {
			prefixes = append(prefixes, p.Masked())
		}
	}
	return prefixes
}

// outerPrefix returns the prefix of the endpoint's address; the zero Prefix if there is none.
func (n Node) outerPrefix() netip.Prefix {
	a := n.Endpoint.Addr().Unmap()
	return netip.PrefixFrom(a, a.BitLen())
}

func (c claims[V]) remove(p netip.Prefix, n Node) {
	left := slices.DeleteFunc(c[p], func(e *Entry[V]) bool { return Compare(e.Node, n) == 0 })
	if len(left) == 0 {
		delete(c, p)
		return
	}
	c[p] = left
}

func (c claims[V]) add(p netip.Prefix, e *Entry[V]) {
	at, found := slices.BinarySearchFunc(c[p], e,
		func(a, b *Entry[V]) int { return Compare(a.Node, b.Node) })
	if found {
		c[p][at] = e
		return
	}
	c[p] = slices.Insert(c[p], at, e)
}

// update returns a trie in which the changed prefixes lead to their first claims, which it adds to
// changed. It does not modify old.
func update[V any](
	old *bart.Fast[V], c claims[V], changed map[netip.Prefix]*Node,
) *bart.Fast[V] {
	for p := range changed {
		if e := c[p]; len(e) > 0 {
			changed[p] = &e[0].Node
		}
	}
	t := old
	switch {
	case t == nil:
		t = new(bart.Fast[V])
	case len(changed) >= manyChanges:
		t = old.Clone()
	default:
		for p := range changed {
			if e := c[p]; len(e) > 0 {
				t = t.InsertPersist(p, e[0].Value)
			} else {
				t = t.DeletePersist(p)
			}
		}
		return t
	}
	for p := range changed {
		if e := c[p]; len(e) > 0 {
			t.Insert(p, e[0].Value)
		} else {
			t.Delete(p)
		}
	}
	return t
}
