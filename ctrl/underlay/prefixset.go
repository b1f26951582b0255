package underlay

import (
	"net/netip"
	"slices"
	"strings"
)

// PrefixSet is a set of addresses with the rules of a routing table: of the prefixes that contain
// an address, the longest decides whether it is in the set.
type PrefixSet struct{ in, out []netip.Prefix } // sorted, without duplicates

// NewPrefixSet makes a set; duplicates and order do not matter.
func NewPrefixSet(in ...netip.Prefix) PrefixSet { return PrefixSet{in: sorted(in)} }

// Except returns the set without the addresses of out, where no longer prefix of the set contains
// them.
func (s PrefixSet) Except(out ...netip.Prefix) PrefixSet {
	return PrefixSet{in: s.in, out: sorted(out)}
}

func sorted(ps []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(ps))
	for _, p := range ps {
		out = append(out, p.Masked())
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// Equal reports whether both sets have the same prefixes.
func (s PrefixSet) Equal(t PrefixSet) bool {
	return slices.Equal(s.in, t.in) && slices.Equal(s.out, t.out)
}

// Contains reports whether a is in the set.
func (s PrefixSet) Contains(a netip.Addr) bool { return longest(s.in, a) > longest(s.out, a) }

// longest returns the length of the longest prefix that contains a, or -1 if none does.
func longest(ps []netip.Prefix, a netip.Addr) int {
	bits := -1
	for _, p := range ps {
		if p.Contains(a) {
			bits = max(bits, p.Bits())
		}
	}
	return bits
}

// String lists the prefixes.
func (s PrefixSet) String() string {
	switch {
	case len(s.in) == 0:
		return "no prefix"
	case len(s.out) == 0:
		return join(s.in)
	}
	return join(s.in) + " but not " + join(s.out)
}

func join(ps []netip.Prefix) string {
	var s []string
	for _, p := range ps {
		s = append(s, p.String())
	}
	return strings.Join(s, " ")
}
