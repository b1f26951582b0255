package underlay

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft/ctrl"
)

// byDefaultRoute lists the interfaces of default routes, lowest metric first.
func (c *chooser) byDefaultRoute() ([]Iface, error) {
	v4, v6 := c.defaultDevices(false), c.defaultDevices(true)
	switch {
	case c.o.IPv4 && c.o.IPv6:
		return c.bothFamilies(v4, v6)
	case c.o.IPv4 && len(v4) == 0:
		return nil, errors.New("no IPv4 default route")
	case c.o.IPv6 && len(v6) == 0:
		return nil, errors.New("no IPv6 default route")
	}
	return c.ifaces(slices.Concat(v4, v6))
}

// bothFamilies lists the interfaces that have default routes of both families, then those with one
// and an address of the other: nodes on one link need no router.
func (c *chooser) bothFamilies(v4, v6 []string) ([]Iface, error) {
	var devs []string
	for _, d := range v4 {
		if slices.Contains(v6, d) {
			devs = append(devs, d)
		}
	}
	all, err := c.ifaces(devs)
	for _, d := range slices.Concat(v4, v6) {
		i, e := c.iface(d)
		if slices.Contains(devs, d) || e != nil || i.Addr6.IsLinkLocalUnicast() {
			continue
		}
		family := "IPv6"
		if !slices.Contains(v4, d) {
			family = "IPv4"
		}
		i.Note = fmt.Sprintf("%s has no %s default route: nodes beyond its links are unreachable by %s",
			d, family, family)
		all = append(all, i)
	}
	switch {
	case len(all) > 0:
		return all, nil
	case err != nil:
		return nil, err
	case len(v4) == 0:
		return nil, errors.New("no IPv4 default route")
	case len(v6) == 0:
		return nil, fmt.Errorf("no IPv6 default route, and %s has no global IPv6 address", v4[0])
	}
	return nil, fmt.Errorf("IPv4 uses %s, IPv6 uses %s", v4[0], v6[0])
}

// ifaces makes the results for devices; it fails if none can be used.
func (c *chooser) ifaces(devs []string) ([]Iface, error) {
	var (
		all   []Iface
		first error
	)
	for _, d := range devs {
		i, err := c.iface(d)
		if err != nil {
			first = cmp.Or(first, err)
			continue
		}
		all = append(all, i)
	}
	if len(all) > 0 {
		first = nil
	}
	return all, first
}

// defaultDevices lists the devices of an enabled family's default routes, lowest metric first.
func (c *chooser) defaultDevices(v6 bool) []string {
	var rs []ctrl.Route
	for _, r := range c.net.routes {
		if r.Kind == ctrl.Forward && r.Dst.Bits() == 0 && r.Dst.Addr().Is6() == v6 &&
			c.enabled(r.Dst.Addr()) && !ctrl.OverlayName(r.Dev) {
			rs = append(rs, r)
		}
	}
	slices.SortStableFunc(rs, func(a, b ctrl.Route) int { return cmp.Compare(a.Metric, b.Metric) })
	var names []string
	for _, r := range rs {
		if !slices.Contains(names, r.Dev) {
			names = append(names, r.Dev)
		}
	}
	return names
}

// ethernetMTU is the MTU of the underlay, in bytes, if no device tells.
const ethernetMTU = 1500

// mtu returns the MTU of a device in bytes. Packets with an address of the loopback device as their
// source leave by another one: the default route's.
func (c *chooser) mtu(l ctrl.Link) int {
	if l.Index != loopbackIndex {
		return l.MTU
	}
	smallest := 0
	for _, d := range slices.Concat(c.defaultDevices(false), c.defaultDevices(true)) {
		if x, ok := c.net.link(d); ok && (smallest == 0 || x.MTU < smallest) {
			smallest = x.MTU
		}
	}
	return min(l.MTU, cmp.Or(smallest, ethernetMTU))
}

// onLink collects the destinations that the kernel reaches on a device without a gateway. A default
// route without a gateway does not prove that a node is on the link, and Weft's own routes are not
// part of the underlay. A longer route via a gateway or another device excludes its destinations:
// networks that isolate hosts may have one per peer.
func (c *chooser) onLink(dev string) PrefixSet {
	var on, off []netip.Prefix
	direct := func(r ctrl.Route) bool {
		return r.Dev == dev && !r.Via.IsValid() &&
			r.Kind == ctrl.Forward
	}
	for _, r := range c.net.routes {
		if direct(r) && c.enabled(r.Dst.Addr()) && r.Dst.Bits() > 0 &&
			r.Protocol != ctrl.RouteProtocol {
			on = append(on, r.Dst)
		}
	}
	for _, r := range c.net.routes {
		if !direct(r) && r.Protocol != ctrl.RouteProtocol && ctrl.Contains(on, r.Dst) &&
			!slices.Contains(on, r.Dst) && !ctrl.Contains(c.o.Overlay, r.Dst) {
			off = append(off, r.Dst)
		}
	}
	return NewPrefixSet(on...).Except(off...)
}
