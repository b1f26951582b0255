// Package underlay chooses the interface and the addresses that reach the other nodes, and follows
// them.
//
// [Choose] picks an [Iface] once, by the flags or by the default route. [Watch] repeats the choice
// whenever devices, addresses or routes change.
package underlay

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"weft/ctrl"
)

// Options restrict the choice of the underlay interface, as the flags of the same names do.
type Options struct {
	Iface []string // --iface: names or addresses, tried in order
	// --iface-regex: matched against addresses, then names; tried after Iface
	Regex []*regexp.Regexp
	// --iface-can-reach: take the interface of the route to this address; tried last
	CanReach   netip.Addr
	PublicIP   netip.Addr     // --public-ip: address published to peers
	PublicIPv6 netip.Addr     // --public-ipv6
	IPv4, IPv6 bool           // families that the interface needs an address of
	Overlay    []netip.Prefix // pod networks, whose routes do not concern the underlay
}

// Iface is the chosen underlay interface.
type Iface struct {
	Name            string
	Index           int
	Kind            ctrl.LinkKind // of the device; empty for hardware and devices that look like it
	MTU             int           // bytes
	Addr, Addr6     netip.Addr    // this node's, on the interface; invalid for a disabled family
	Public, Public6 netip.Addr    // published to peers: the flag's address, or Addr and Addr6
	Reason          string        // why this interface was chosen, one line for a human
	// destinations that the kernel reaches on this interface without a gateway
	OnLink PrefixSet
}

// Equal reports whether i and j are the same choice, the reason included.
func (i Iface) Equal(j Iface) bool {
	return i.Name == j.Name && i.Index == j.Index && i.Kind == j.Kind && i.MTU == j.MTU &&
		i.Addr == j.Addr && i.Addr6 == j.Addr6 && i.Public == j.Public && i.Public6 == j.Public6 &&
		i.Reason == j.Reason && i.OnLink.Equal(j.OnLink)
}

// hostNet is the snapshot of the host's network that the choice is made from.
type hostNet struct {
	links  []ctrl.Link
	addrs  []ctrl.IfaceAddr
	routes []ctrl.Route // of the main table
}

// routeFunc asks the kernel for the device and source address of the route to an address.
type routeFunc func(netip.Addr) (dev string, src netip.Addr, err error)

// chooser is one run of the choice. tried holds the rejected candidates and the reasons.
type chooser struct {
	o       Options
	net     hostNet
	routeTo routeFunc
	tried   []string
}

// choose picks the interface. It is pure except for routeTo.
func choose(o Options, net hostNet, routeTo routeFunc) (Iface, error) {
	c := chooser{o: o, net: net, routeTo: routeTo}
	var (
		i  Iface
		ok bool
	)
	if len(o.Iface) == 0 && len(o.Regex) == 0 && !o.CanReach.IsValid() {
		i, ok = c.automatic()
	} else {
		i, ok = c.fromFlags()
	}
	if !ok {
		return Iface{}, fmt.Errorf("no interface found: tried %s; existing: %s",
			strings.Join(c.tried, ", "), c.describe())
	}
	i.Public, i.Public6 = i.Addr, i.Addr6
	if o.PublicIP.IsValid() && o.IPv4 {
		i.Public = o.PublicIP
	}
	if o.PublicIPv6.IsValid() && o.IPv6 {
		i.Public6 = o.PublicIPv6
	}
	if i.MTU <= 0 {
		return Iface{}, fmt.Errorf("interface %s has no MTU", i.Name)
	}
	i.OnLink = c.onLink(i.Name)
	return i, nil
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

// fromFlags tries the flags in their order; the first match wins.
func (c *chooser) fromFlags() (Iface, bool) {
	for _, s := range c.o.Iface {
		i, err := c.byNameOrAddr(s)
		if err == nil {
			return c.selected(i, "--iface="+s)
		}
		c.reject("--iface="+s, err)
	}
	for _, re := range c.o.Regex {
		i, err := c.byRegex(re)
		if err == nil {
			return c.selected(i, "--iface-regex="+re.String())
		}
		c.reject("--iface-regex="+re.String(), err)
	}
	if c.o.CanReach.IsValid() {
		i, err := c.byRouteTo(c.o.CanReach)
		if err == nil {
			return c.selected(i, "--iface-can-reach="+c.o.CanReach.String())
		}
		c.reject("--iface-can-reach="+c.o.CanReach.String(), err)
	}
	return Iface{}, false
}

// automatic takes the interface that has the public address, else the one of the default route.
func (c *chooser) automatic() (Iface, bool) {
	public := c.o.PublicIP
	if !public.IsValid() {
		public = c.o.PublicIPv6
	}
	if public.IsValid() {
		i, err := c.byNameOrAddr(public.String())
		if err == nil {
			return c.selected(i, "has the public address "+public.String())
		}
		c.reject("public address "+public.String(), err)
	}
	i, err := c.byDefaultRoute()
	if err != nil {
		c.reject("default route", err)
		return Iface{}, false
	}
	return c.selected(i, "default route")
}

func (c *chooser) selected(i Iface, reason string) (Iface, bool) {
	i.Reason = reason
	if len(c.tried) > 0 {
		i.Reason += " (after " + strings.Join(c.tried, ", ") + ")"
	}
	return i, true
}

func (c *chooser) reject(candidate string, err error) {
	c.tried = append(c.tried, fmt.Sprintf("%s (%v)", candidate, err))
}

// byNameOrAddr finds the interface by one of its addresses or by its exact name.
func (c *chooser) byNameOrAddr(s string) (Iface, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		for _, x := range c.net.addrs {
			if x.Addr == a.Unmap().WithZone("") {
				return c.iface(x.Dev, x.Addr)
			}
		}
		return Iface{}, errors.New("no interface has this address")
	}
	return c.iface(s)
}

// byRegex matches addresses first, then names. Overlay devices are skipped, because Weft assigns
// their addresses.
func (c *chooser) byRegex(re *regexp.Regexp) (Iface, error) {
	var last error
	for _, l := range c.net.links {
		if ctrl.OverlayName(l.Name) {
			continue
		}
		var matched []netip.Addr
		for _, a := range c.ordered(l.Name) {
			if c.enabled(a) && usable(a) && re.MatchString(a.String()) {
				matched = append(matched, a)
			}
		}
		if len(matched) == 0 {
			continue
		}
		i, err := c.iface(l.Name, matched...)
		if err == nil {
			return i, nil
		}
		last = err
	}
	for _, l := range c.net.links {
		if !ctrl.OverlayName(l.Name) && re.MatchString(l.Name) {
			i, err := c.iface(l.Name)
			if err == nil {
				return i, nil
			}
			last = err
		}
	}
	return Iface{}, cmp.Or(last, errors.New("matches no address and no name"))
}

// byRouteTo takes the device of the route to dst, with the kernel's preferred source address.
func (c *chooser) byRouteTo(dst netip.Addr) (Iface, error) {
	dev, src, err := c.routeTo(dst)
	if err != nil {
		return Iface{}, err
	}
	if !src.IsValid() {
		return c.iface(dev)
	}
	return c.iface(dev, src)
}

// byDefaultRoute takes the interface of the default route with the lowest metric. A dual-stack
// interface must have a default route of each family.
func (c *chooser) byDefaultRoute() (Iface, error) {
	v4, v6 := c.defaultDevices(false), c.defaultDevices(true)
	switch {
	case c.o.IPv4 && len(v4) == 0:
		return Iface{}, errors.New("no IPv4 default route")
	case c.o.IPv6 && len(v6) == 0:
		return Iface{}, errors.New("no IPv6 default route")
	case !c.o.IPv6:
		return c.iface(v4[0])
	case !c.o.IPv4:
		return c.iface(v6[0])
	}
	for _, d := range v4 {
		if slices.Contains(v6, d) {
			return c.iface(d)
		}
	}
	return Iface{}, fmt.Errorf("IPv4 uses %s, IPv6 uses %s", v4[0], v6[0])
}

// defaultDevices lists the devices of a family's default routes, lowest metric first.
func (c *chooser) defaultDevices(v6 bool) []string {
	var rs []ctrl.Route
	for _, r := range c.net.routes {
		if r.Kind == ctrl.Forward && r.Dst.Bits() == 0 && r.Dst.Addr().Is6() == v6 &&
			!ctrl.OverlayName(r.Dev) {
			rs = append(rs, r)
		}
	}
	slices.SortStableFunc(rs, func(a, b ctrl.Route) int { return cmp.Compare(a.Metric, b.Metric) })
	var names []string
	for _, r := range rs {
		names = append(names, r.Dev)
	}
	return names
}

// iface makes the result for a device. The addresses in fixed were asked for, so they are taken
// even if they are loopback addresses. The other family's address is the first in order.
func (c *chooser) iface(dev string, fixed ...netip.Addr) (Iface, error) {
	n := slices.IndexFunc(c.net.links, func(l ctrl.Link) bool { return l.Name == dev })
	if n < 0 {
		return Iface{}, errors.New("no such interface")
	}
	l := c.net.links[n]
	i := Iface{Name: l.Name, Index: l.Index, Kind: l.Kind, MTU: l.MTU}
	others := slices.DeleteFunc(c.ordered(dev), func(a netip.Addr) bool { return !usable(a) })
	for _, a := range slices.Concat(fixed, others) {
		switch {
		case !c.enabled(a):
		case a.Is4() && !i.Addr.IsValid():
			i.Addr = a
		case a.Is6() && !i.Addr6.IsValid():
			i.Addr6 = a
		}
	}
	switch {
	case c.o.IPv4 && !i.Addr.IsValid():
		return Iface{}, fmt.Errorf("%s has no IPv4 address that other nodes could reach", dev)
	case c.o.IPv6 && !i.Addr6.IsValid():
		return Iface{}, fmt.Errorf("%s has no IPv6 address that other nodes could reach", dev)
	}
	return i, nil
}

// enabled reports whether an address is of an enabled family.
func (c *chooser) enabled(a netip.Addr) bool { return a.Is4() && c.o.IPv4 || a.Is6() && c.o.IPv6 }

// usable reports whether other nodes could reach an address of this kind: as in flannel
// (pkg/ip/iface.go), any but a loopback address.
func usable(a netip.Addr) bool { return a.IsGlobalUnicast() || a.IsLinkLocalUnicast() }

// ordered lists a device's addresses, best first: global before link-local, permanent before
// dynamic, stable before temporary. Deprecated addresses are left out.
func (c *chooser) ordered(dev string) []netip.Addr {
	var as []ctrl.IfaceAddr
	for _, a := range c.net.addrs {
		if a.Dev == dev && !a.Deprecated {
			as = append(as, a)
		}
	}
	slices.SortStableFunc(as, func(a, b ctrl.IfaceAddr) int {
		return cmp.Or(
			falseFirst(a.Addr.IsLinkLocalUnicast(), b.Addr.IsLinkLocalUnicast()),
			falseFirst(!a.Permanent, !b.Permanent),
			falseFirst(a.Temporary, b.Temporary),
		)
	})
	var out []netip.Addr
	for _, a := range as {
		out = append(out, a.Addr)
	}
	return out
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// describe lists the existing interfaces and their addresses, for the error.
func (c *chooser) describe() string {
	var s []string
	for _, l := range c.net.links {
		part := l.Name
		for _, a := range c.ordered(l.Name) {
			part += " " + a.String()
		}
		s = append(s, part)
	}
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}
