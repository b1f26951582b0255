package lease

import (
	"net/netip"
	"slices"
	"sort"
)

// leaseIndex looks up leases in a list without scanning it: each change may compare thousands of
// retained leases with thousands of listed ones.
type leaseIndex struct {
	nodes4, nodes6   map[netip.Addr]bool // nodes6 holds nodes without an IPv4 address
	ranges4, ranges6 addrRanges
}

func newLeaseIndex(list Set) leaseIndex {
	x := leaseIndex{nodes4: make(map[netip.Addr]bool), nodes6: make(map[netip.Addr]bool)}
	var subnets4, subnets6 []netip.Prefix
	for l := range list.All() {
		if l.PublicIP.IsValid() {
			x.nodes4[l.PublicIP] = true
		} else if l.PublicIPv6.IsValid() {
			x.nodes6[l.PublicIPv6] = true
		}
		subnets4, subnets6 = append(subnets4, l.Subnet), append(subnets6, l.Subnet6)
	}
	x.ranges4, x.ranges6 = newAddrRanges(subnets4), newAddrRanges(subnets6)
	return x
}

// hasNode reports whether a listed lease belongs to the node of a, as SameNode does.
func (x leaseIndex) hasNode(a Attrs) bool {
	if a.PublicIP.IsValid() {
		return x.nodes4[a.PublicIP]
	}
	return x.nodes6[a.PublicIPv6]
}

// overlaps reports whether a listed lease overlaps l, as Lease.Overlaps does.
func (x leaseIndex) overlaps(l Lease) bool {
	return x.ranges4.overlap(l.Subnet) || x.ranges6.overlap(l.Subnet6)
}

// addrRanges holds prefixes ordered by their first address.
type addrRanges struct {
	firsts []netip.Addr
	lasts  []netip.Addr // lasts[i] is the highest address of the first i+1 prefixes
}

// newAddrRanges ignores unset prefixes.
func newAddrRanges(prefixes []netip.Prefix) addrRanges {
	prefixes = slices.DeleteFunc(prefixes, func(p netip.Prefix) bool { return !p.IsValid() })
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	var r addrRanges
	var highest netip.Addr
	for _, p := range prefixes {
		if last := lastAddr(p); highest.Less(last) {
			highest = last
		}
		r.firsts, r.lasts = append(r.firsts, p.Addr()), append(r.lasts, highest)
	}
	return r
}

// overlap reports whether p, which may be unset, overlaps one of the prefixes.
func (r addrRanges) overlap(p netip.Prefix) bool {
	if !p.IsValid() {
		return false
	}
	last := lastAddr(p)
	// The first n prefixes begin before p ends.
	n := sort.Search(len(r.firsts), func(i int) bool { return last.Less(r.firsts[i]) })
	return n > 0 && !r.lasts[n-1].Less(p.Addr())
}
