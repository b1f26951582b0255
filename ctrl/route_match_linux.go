package ctrl

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouteMatcher finds the routes of single addresses, through all tables and policy rules. It knows
// the devices that existed when it was made.
type RouteMatcher struct {
	k     *Kernel
	names map[int]string
}

// RouteMatcher makes a matcher for a series of lookups. It works in the network namespace of the
// calling thread.
func (k *Kernel) RouteMatcher() (*RouteMatcher, error) {
	names, err := k.linkNames()
	if err != nil {
		return nil, err
	}
	return &RouteMatcher{k, names}, nil
}

// Match returns the route of packets from src to dst. An invalid src, or one that is not an address
// of this host, means none. It fails if there is no route, or one that rejects packets.
func (m *RouteMatcher) Match(dst, src netip.Addr) (RouteMatch, error) {
	o := &netlink.RouteGetOptions{FIBMatch: true}
	if src.IsValid() {
		o.SrcAddr = src.AsSlice()
	}
	var rs []netlink.Route
	err := retryInterrupted(func() (err error) {
		rs, err = m.k.h.RouteGetWithOptions(dst.AsSlice(), o)
		return err
	})
	switch {
	case err != nil && src.IsValid(): // the error does not tell whether src is the cause
		return m.Match(dst, netip.Addr{})
	case err != nil:
		return RouteMatch{}, fmt.Errorf("route to %s: %w", dst, err)
	case len(rs) == 0:
		return RouteMatch{}, fmt.Errorf("route to %s: none", dst)
	}
	return m.value(dst, rs[0]), nil
}

func (m *RouteMatcher) value(dst netip.Addr, r netlink.Route) RouteMatch {
	v := RouteMatch{
		Dst: netip.PrefixFrom(defaultOf(dst), 0), Via: addrOf(r.Gw), Dev: m.names[r.LinkIndex],
		Protocol: int(r.Protocol), Table: r.Table, Local: r.Type == unix.RTN_LOCAL,
	}
	if r.Dst != nil {
		v.Dst = prefixOf(r.Dst)
	}
	if len(r.MultiPath) > 0 {
		v.Via, v.Dev = addrOf(r.MultiPath[0].Gw), m.names[r.MultiPath[0].LinkIndex]
	}
	return v
}

// defaultOf returns the unspecified address of a's family.
func defaultOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// RulesFor lists the priorities of the policy rules that look addresses of a's family up in a
// table.
func (m *RouteMatcher) RulesFor(a netip.Addr, table int) ([]int, error) {
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	rules, err := dump("policy rules", func() ([]netlink.Rule, error) {
		return m.k.h.RuleList(family)
	})
	if err != nil {
		return nil, err
	}
	var priorities []int
	for _, r := range rules {
		if r.Table == table {
			priorities = append(priorities, r.Priority)
		}
	}
	return priorities, nil
}
