package lease

import (
	"net/netip"
	"slices"
	"sort"
)

// census answers questions about a list of leases without a walk along it: thousands of kept leases are compared with
// thousands of listed ones at each change.
type census struct {
	nodes4, nodes6   map[netip.Addr]bool // nodes6: of nodes without an IPv4 address
	ranges4, ranges6 ranges
}

func newCensus(list []Lease) census {
	c := census{nodes4: make(map[netip.Addr]bool), nodes6: make(map[netip.Addr]bool)}
	var subnets4, subnets6 []netip.Prefix
	for _, l := range list {
		if l.PublicIP.IsValid() {
			c.nodes4[l.PublicIP] = true
		} else if l.PublicIPv6.IsValid() {
			c.nodes6[l.PublicIPv6] = true
		}
		subnets4, subnets6 = append(subnets4, l.Subnet), append(subnets6, l.Subnet6)
	}
	c.ranges4, c.ranges6 = newRanges(subnets4), newRanges(subnets6)
	return c
}

// has reports whether a lease of the node is listed: SameNode.
func (c census) has(a Attrs) bool {
	if a.PublicIP.IsValid() {
		return c.nodes4[a.PublicIP]
	}
	return c.nodes6[a.PublicIPv6]
}

// overlaps reports whether a listed lease shares addresses with l: Overlaps.
func (c census) overlaps(l Lease) bool {
	return c.ranges4.overlap(l.Subnet) || c.ranges6.overlap(l.Subnet6)
}

// ranges are prefixes ordered by their first address.
type ranges struct {
	firsts []netip.Addr
	lasts  []netip.Addr // lasts[i] is the highest address of the first i+1 prefixes
}

// newRanges passes over prefixes that are unset.
func newRanges(prefixes []netip.Prefix) ranges {
	prefixes = slices.DeleteFunc(prefixes, func(p netip.Prefix) bool { return !p.IsValid() })
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	var r ranges
	var highest netip.Addr
	for _, p := range prefixes {
		if last := lastAddr(p); highest.Less(last) {
			highest = last
		}
		r.firsts, r.lasts = append(r.firsts, p.Addr()), append(r.lasts, highest)
	}
	return r
}

// overlap reports whether p, which may be unset, shares addresses with one of the prefixes.
func (r ranges) overlap(p netip.Prefix) bool {
	if !p.IsValid() {
		return false
	}
	last := lastAddr(p)
	n := sort.Search(len(r.firsts), func(i int) bool { return last.Less(r.firsts[i]) }) // the first n begin before p ends
	return n > 0 && !r.lasts[n-1].Less(p.Addr())
}
