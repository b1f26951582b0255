package ctrl

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// IfaceOptions are the wishes about the underlay interface, as the flags of the same names give them.
type IfaceOptions struct {
	Iface      []string         // --iface: names or addresses, tried in order
	Regex      []*regexp.Regexp // --iface-regex: on addresses first, then on names; after all of Iface
	CanReach   netip.Addr       // --iface-can-reach: what the kernel would use for this address; last
	PublicIP   netip.Addr       // --public-ip: the address told to peers
	PublicIPv6 netip.Addr       // --public-ipv6
	IPv4, IPv6 bool             // the families that the interface needs an address of
	Overlay    []netip.Prefix   // the pods' networks: routes in them come and go, and say nothing about the underlay
}

// Iface is the chosen underlay interface.
type Iface struct {
	Name            string
	Index           int
	Kind            LinkKind   // of the device; empty for hardware and what looks like it
	MTU             int        // bytes
	Addr, Addr6     netip.Addr // ours on the interface; invalid for a family that is off
	Public, Public6 netip.Addr // what peers are told: the flag's address, or Addr and Addr6
	Reason          string     // why this one, in a line for a human
	OnLink          PrefixSet  // what the kernel reaches on this interface without a gateway
}

// PrefixSet is a set of addresses, told by prefixes as a routing table tells it: of the prefixes that hold an address,
// the longest decides. It can be compared with ==, so that an Iface can.
type PrefixSet struct{ in, out string }

// NewPrefixSet makes a set; duplicates and order do not matter.
func NewPrefixSet(in ...netip.Prefix) PrefixSet { return PrefixSet{in: prefixList(in)} }

// Except is the set without what the prefixes hold.
func (s PrefixSet) Except(out ...netip.Prefix) PrefixSet {
	return PrefixSet{in: s.in, out: prefixList(out)}
}

func prefixList(ps []netip.Prefix) string {
	var s []string
	for _, p := range ps {
		s = append(s, p.Masked().String())
	}
	slices.Sort(s)
	return strings.Join(slices.Compact(s), " ")
}

// Contains says whether a is in the set.
func (s PrefixSet) Contains(a netip.Addr) bool { return longest(s.in, a) > longest(s.out, a) }

// longest is the length of the longest prefix of a list that holds a, and -1 if none does.
func longest(list string, a netip.Addr) int {
	bits := -1
	for f := range strings.FieldsSeq(list) {
		if p := netip.MustParsePrefix(f); p.Contains(a) {
			bits = max(bits, p.Bits())
		}
	}
	return bits
}

// String lists the prefixes.
func (s PrefixSet) String() string {
	switch {
	case s.in == "":
		return "no prefix"
	case s.out == "":
		return s.in
	}
	return s.in + " but not " + s.out
}

// netView is what the choice is made from.
type netView struct {
	links  []Link
	addrs  []ifaceAddr
	routes []Route // of the main table
}

// ifaceAddr is an address with what decides its place in the order of preference.
type ifaceAddr struct {
	dev                              string
	addr                             netip.Addr
	temporary, deprecated, permanent bool
}

// reachFunc asks the kernel by which device, and from which address, it would reach an address.
type reachFunc func(netip.Addr) (dev string, src netip.Addr, err error)

// chooser is one run of the choice; tried collects why earlier candidates were passed over.
type chooser struct {
	o     IfaceOptions
	v     netView
	reach reachFunc
	tried []string
}

// choose picks the interface. It is pure but for reach.
func choose(o IfaceOptions, v netView, reach reachFunc) (Iface, error) {
	c := chooser{o: o, v: v, reach: reach}
	var (
		i  Iface
		ok bool
	)
	if len(o.Iface) == 0 && len(o.Regex) == 0 && !o.CanReach.IsValid() {
		i, ok = c.unasked()
	} else {
		i, ok = c.asked()
	}
	if !ok {
		return Iface{}, fmt.Errorf("no interface: tried %s; there are %s", strings.Join(c.tried, ", "), c.inventory())
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

// onLink gathers what the kernel reaches on a device without a gateway. A default route of that kind says nothing about
// who is on the link, and our own routes are not the underlay. A longer route by a gateway, or by another device, takes
// its part out: on networks that keep hosts apart, each peer may have one.
func (c *chooser) onLink(dev string) PrefixSet {
	var on, off []netip.Prefix
	straight := func(r Route) bool { return r.Dev == dev && !r.Via.IsValid() && r.Kind == Forward }
	for _, r := range c.v.routes {
		if straight(r) && c.wanted(r.Dst.Addr()) && r.Dst.Bits() > 0 && r.Protocol != RouteProtocol {
			on = append(on, r.Dst)
		}
	}
	link, overlay := claims{networks: on}, claims{networks: c.o.Overlay}
	for _, r := range c.v.routes {
		if !straight(r) && r.Protocol != RouteProtocol && link.inside(r.Dst) && !slices.Contains(on, r.Dst) && !overlay.inside(r.Dst) {
			off = append(off, r.Dst)
		}
	}
	return NewPrefixSet(on...).Except(off...)
}

// asked goes through the flags in their order; the first match wins.
func (c *chooser) asked() (Iface, bool) {
	for _, s := range c.o.Iface {
		if i, err := c.byNameOrAddr(s); err == nil {
			return c.because(i, "--iface="+s)
		} else {
			c.miss("--iface="+s, err)
		}
	}
	for _, re := range c.o.Regex {
		if i, err := c.byRegex(re); err == nil {
			return c.because(i, "--iface-regex="+re.String())
		} else {
			c.miss("--iface-regex="+re.String(), err)
		}
	}
	if c.o.CanReach.IsValid() {
		if i, err := c.byReach(c.o.CanReach); err == nil {
			return c.because(i, "--iface-can-reach="+c.o.CanReach.String())
		} else {
			c.miss("--iface-can-reach="+c.o.CanReach.String(), err)
		}
	}
	return Iface{}, false
}

// unasked takes the owner of the public address, else the default route's interface.
func (c *chooser) unasked() (Iface, bool) {
	key := c.o.PublicIP
	if !key.IsValid() {
		key = c.o.PublicIPv6
	}
	if key.IsValid() {
		i, err := c.byNameOrAddr(key.String())
		if err == nil {
			return c.because(i, "it has the public address "+key.String())
		}
		c.miss("public address "+key.String(), err)
	}
	i, err := c.byDefaultRoute()
	if err != nil {
		c.miss("default route", err)
		return Iface{}, false
	}
	return c.because(i, "default route")
}

func (c *chooser) because(i Iface, why string) (Iface, bool) {
	i.Reason = why
	if len(c.tried) > 0 {
		i.Reason += " (after " + strings.Join(c.tried, ", ") + ")"
	}
	return i, true
}

func (c *chooser) miss(what string, err error) {
	c.tried = append(c.tried, fmt.Sprintf("%s (%v)", what, err))
}

// byNameOrAddr finds the interface by an address it has or by its exact name.
func (c *chooser) byNameOrAddr(s string) (Iface, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		for _, x := range c.v.addrs {
			if x.addr == a.Unmap().WithZone("") {
				return c.iface(x.dev, x.addr)
			}
		}
		return Iface{}, errors.New("no interface has this address")
	}
	return c.iface(s)
}

// byRegex matches addresses first, then names. Devices of an overlay are left out: their addresses come from us.
func (c *chooser) byRegex(re *regexp.Regexp) (Iface, error) {
	var last error
	for _, l := range c.v.links {
		if overlayName(l.Name) {
			continue
		}
		var fixed []netip.Addr
		for _, a := range c.ordered(l.Name) {
			if c.wanted(a) && usable(a) && re.MatchString(a.String()) {
				fixed = append(fixed, a)
			}
		}
		if len(fixed) == 0 {
			continue
		}
		i, err := c.iface(l.Name, fixed...)
		if err == nil {
			return i, nil
		}
		last = err
	}
	for _, l := range c.v.links {
		if !overlayName(l.Name) && re.MatchString(l.Name) {
			i, err := c.iface(l.Name)
			if err == nil {
				return i, nil
			}
			last = err
		}
	}
	return Iface{}, cmp.Or(last, errors.New("matches no address and no name"))
}

// byReach asks the kernel; its preferred source becomes our address.
func (c *chooser) byReach(dst netip.Addr) (Iface, error) {
	dev, src, err := c.reach(dst)
	if err != nil {
		return Iface{}, err
	}
	if !src.IsValid() {
		return c.iface(dev)
	}
	return c.iface(dev, src)
}

// byDefaultRoute takes the interface of the default route with the lowest metric. With both families on, the
// interface must have a default route of each.
func (c *chooser) byDefaultRoute() (Iface, error) {
	devs := func(v6 bool) []string {
		var rs []Route
		for _, r := range c.v.routes {
			if r.Kind == Forward && r.Dst.Bits() == 0 && r.Dst.Addr().Is6() == v6 && !overlayName(r.Dev) {
				rs = append(rs, r)
			}
		}
		slices.SortStableFunc(rs, func(a, b Route) int { return cmp.Compare(a.Metric, b.Metric) })
		var names []string
		for _, r := range rs {
			names = append(names, r.Dev)
		}
		return names
	}
	v4, v6 := devs(false), devs(true)
	switch {
	case c.o.IPv4 && len(v4) == 0:
		return Iface{}, errors.New("there is none for IPv4")
	case c.o.IPv6 && len(v6) == 0:
		return Iface{}, errors.New("there is none for IPv6")
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
	return Iface{}, fmt.Errorf("that of IPv4 uses %s, that of IPv6 uses %s", v4[0], v6[0])
}

// iface makes the result for a device. Addresses in fixed were asked for, so they are taken even if they are of the
// loopback network; the other family's is the first in order.
func (c *chooser) iface(dev string, fixed ...netip.Addr) (Iface, error) {
	n := slices.IndexFunc(c.v.links, func(l Link) bool { return l.Name == dev })
	if n < 0 {
		return Iface{}, errors.New("no such interface")
	}
	l := c.v.links[n]
	i := Iface{Name: l.Name, Index: l.Index, Kind: l.Kind, MTU: l.MTU}
	others := slices.DeleteFunc(c.ordered(dev), func(a netip.Addr) bool { return !usable(a) })
	for _, a := range slices.Concat(fixed, others) {
		switch {
		case !c.wanted(a):
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

// wanted reports whether an address is of a family that is on.
func (c *chooser) wanted(a netip.Addr) bool { return a.Is4() && c.o.IPv4 || a.Is6() && c.o.IPv6 }

// usable reports whether an address is of a kind that other nodes could reach: as flannel (pkg/ip/iface.go), not one of
// the loopback network.
func usable(a netip.Addr) bool { return a.IsGlobalUnicast() || a.IsLinkLocalUnicast() }

// ordered lists a device's addresses, best first: global before link-local, permanent before dynamic, plain before
// temporary; deprecated ones are left out.
func (c *chooser) ordered(dev string) []netip.Addr {
	var as []ifaceAddr
	for _, a := range c.v.addrs {
		if a.dev == dev && !a.deprecated {
			as = append(as, a)
		}
	}
	slices.SortStableFunc(as, func(a, b ifaceAddr) int {
		return cmp.Or(
			falseFirst(a.addr.IsLinkLocalUnicast(), b.addr.IsLinkLocalUnicast()),
			falseFirst(!a.permanent, !b.permanent),
			falseFirst(a.temporary, b.temporary),
		)
	})
	var out []netip.Addr
	for _, a := range as {
		out = append(out, a.addr)
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

// inventory lists what exists, for the error.
func (c *chooser) inventory() string {
	var s []string
	for _, l := range c.v.links {
		part := l.Name
		for _, a := range c.ordered(l.Name) {
			part += " " + a.String()
		}
		s = append(s, part)
	}
	if len(s) == 0 {
		return "no interfaces at all"
	}
	return strings.Join(s, ", ")
}
