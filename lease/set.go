package lease

import (
	"strings"

	"weft/lease/ordered"
)

// Set is an immutable set of leases, ordered by subnet. Sets that follow one another share the
// leases that have not changed, and [ordered.Diff] finds the others. The leases must not be
// modified.
type Set = ordered.Set[*Lease]

// NewSet returns the set of the leases, in any order.
func NewSet(leases ...Lease) Set {
	pointers := make([]*Lease, len(leases))
	for i := range leases {
		pointers[i] = &leases[i]
	}
	return ordered.New(pointers)
}

// List returns the leases of a set in their order. It copies all of them.
func List(s Set) []Lease {
	list := make([]Lease, 0, s.Len())
	for l := range s.All() {
		list = append(list, *l)
	}
	return list
}

// Order orders leases by subnet and, as two nodes may list the same subnet, by node.
func (l *Lease) Order(o *Lease) int {
	if c := compareSubnets(l, o); c != 0 {
		return c
	}
	return strings.Compare(l.Node, o.Node)
}

// Change is a lease that two sets do not share: added if Before is nil, removed if After is nil.
type Change struct{ Before, After *Lease }

// Changes returns the differences of two sets, without leases that were only written again.
func Changes(before, after Set) []Change {
	var changes []Change
	for b, a := range ordered.Diff(before, after) {
		if b == nil || a == nil || !b.Equal(*a) {
			changes = append(changes, Change{b, a})
		}
	}
	return changes
}
