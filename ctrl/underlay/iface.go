// Package underlay chooses the interface and the addresses that reach the other nodes, and follows
// them.
//
// [Choose] picks an [Iface] once, by the flags or by the default route. [Watch] repeats the choice
// whenever devices, addresses or routes change. The interface and the addresses in use stay in use
// while they exist: a virtual IP or the default route of a VPN must not move a node.
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
	PublicIP   netip.Addr // --public-ip: address published to peers
	PublicIPv6 netip.Addr // --public-ipv6
	IPv4, IPv6 bool       // families that the interface needs an address of
	// Previous and Previous6 were published by an earlier run. They come first among equal
	// addresses of an interface, and their interface is used if there is no default route.
	Previous, Previous6 netip.Addr
	Overlay             []netip.Prefix // pod networks, whose routes do not concern the underlay
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
	Note            string        // a better or missing choice, one line for a human; may be empty
	// destinations that the kernel reaches on this interface without a gateway
	OnLink PrefixSet

	rank rank // of both addresses
}

// Equal reports whether i and j are the same choice. Reason and Note do not matter.
func (i Iface) Equal(j Iface) bool {
	return i.Name == j.Name && i.Index == j.Index && i.Kind == j.Kind && i.MTU == j.MTU &&
		i.Addr == j.Addr && i.Addr6 == j.Addr6 && i.Public == j.Public && i.Public6 == j.Public6 &&
		i.OnLink.Equal(j.OnLink)
}

// loopbackIndex is the index of the loopback device in every network namespace (LOOPBACK_IFINDEX in
// the kernel's include/net/flow.h).
const loopbackIndex = 1

// routeFunc asks the kernel for the device and source address of the route to an address.
type routeFunc func(netip.Addr) (dev string, src netip.Addr, err error)

// chooser is one run of the choice. tried holds the rejected candidates and the reasons.
type chooser struct {
	o       Options
	net     hostNet
	routeTo routeFunc
	prefer  []netip.Addr // addresses that come first on their interface
	tried   []string
}

// choose picks the interface; inUse is zero if none is in use. It is pure except for routeTo.
func choose(o Options, net hostNet, routeTo routeFunc, inUse Iface) (Iface, error) {
	c := chooser{o: o, net: net, routeTo: routeTo}
	fresh, err := c.best()
	i, ok := c.keep(inUse, fresh, err)
	switch {
	case ok:
	case inUse.Name == "" && err != nil:
		return Iface{}, err
	case inUse.Name == "":
		i = fresh
	default:
		c = chooser{o: o, net: net, routeTo: routeTo, prefer: preferred(inUse)}
		if i, err = c.successor(inUse); err != nil {
			return Iface{}, err
		}
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

// best returns the first match.
func (c *chooser) best() (Iface, error) {
	all := c.matches()
	if len(all) == 0 {
		return Iface{}, c.errNone()
	}
	return all[0], nil
}

func (c *chooser) errNone() error {
	return fmt.Errorf("no interface found: tried %s; existing: %s", strings.Join(c.tried, ", "),
		c.net.describe())
}

// matches lists the interfaces that could be used, best first.
func (c *chooser) matches() []Iface {
	if c.automatic() {
		return c.byRoutes()
	}
	return c.byFlags()
}

// automatic reports whether no flag names an interface.
func (c *chooser) automatic() bool {
	return len(c.o.Iface) == 0 && len(c.o.Regex) == 0 && !c.o.CanReach.IsValid()
}

// byFlags lists the matches of the flags, in their order.
func (c *chooser) byFlags() []Iface {
	var all []Iface
	for _, s := range c.o.Iface {
		i, err := c.byNameOrAddr(s)
		all = c.add(all, "--iface="+s, err, i)
	}
	for _, re := range c.o.Regex {
		is, err := c.byRegex(re)
		all = c.add(all, "--iface-regex="+re.String(), err, is...)
	}
	if c.o.CanReach.IsValid() {
		i, err := c.byRouteTo(c.o.CanReach)
		all = c.add(all, "--iface-can-reach="+c.o.CanReach.String(), err, i)
	}
	return all
}

// byRoutes lists the interface that has the public address, those of default routes, and the one
// that was used before. Link-local addresses come last: a DHCP client that got no answer makes one
// up (RFC 3927), some with a default route.
func (c *chooser) byRoutes() []Iface {
	var all []Iface
	if public := cmp.Or(c.o.PublicIP, c.o.PublicIPv6); public.IsValid() {
		i, err := c.byNameOrAddr(public.String())
		reason := "public address " + public.String()
		if err == nil {
			reason = "has the " + reason
		}
		all = c.add(all, reason, err, i)
	}
	is, err := c.byDefaultRoute()
	all = c.add(all, "default route", err, is...)
	for _, a := range []netip.Addr{c.o.Previous, c.o.Previous6} {
		if dev, ok := c.net.owner(a); ok && c.enabled(a) {
			i, err := c.iface(dev, a)
			all = c.add(all, "previously published "+a.String(), err, i)
		}
	}
	slices.SortStableFunc(all, func(i, j Iface) int {
		return cmp.Compare(i.rank&linkLocal, j.rank&linkLocal)
	})
	return all
}

// add appends the matches of a flag or route, or records why there are none.
func (c *chooser) add(all []Iface, reason string, err error, is ...Iface) []Iface {
	if err != nil {
		c.tried = append(c.tried, fmt.Sprintf("%s (%v)", reason, err))
		return all
	}
	if len(c.tried) > 0 {
		reason += " (after " + strings.Join(c.tried, ", ") + ")"
	}
	for _, i := range is {
		i.Reason = reason
		all = append(all, i)
	}
	return all
}

// byNameOrAddr finds the interface by one of its addresses or by its exact name.
func (c *chooser) byNameOrAddr(s string) (Iface, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap().WithZone("")
		dev, ok := c.net.owner(a)
		if !ok {
			return Iface{}, errors.New("no interface has this address")
		}
		return c.iface(dev, a)
	}
	return c.iface(s)
}

// byRegex matches addresses first, then names. Overlay devices are skipped, because Weft assigns
// their addresses. Interfaces with addresses of services only, such as lo and kube-ipvs0, come
// last.
func (c *chooser) byRegex(re *regexp.Regexp) ([]Iface, error) {
	var (
		byAddr, byName []Iface
		last           error
	)
	try := func(all []Iface, dev string, fixed ...netip.Addr) []Iface {
		i, err := c.iface(dev, fixed...)
		if err != nil {
			last = err
			return all
		}
		return append(all, i)
	}
	for _, l := range c.net.links {
		if ctrl.OverlayName(l.Name) {
			continue
		}
		matched := slices.DeleteFunc(c.usable(l.Name), func(a netip.Addr) bool {
			return !c.enabled(a) || !re.MatchString(a.String())
		})
		if len(matched) > 0 {
			byAddr = try(byAddr, l.Name, matched...)
		}
		if re.MatchString(l.Name) {
			byName = try(byName, l.Name)
		}
	}
	for _, is := range [][]Iface{byAddr, byName} {
		slices.SortStableFunc(is, func(i, j Iface) int { return cmp.Compare(i.rank, j.rank) })
	}
	all := append(byAddr, byName...)
	if len(all) == 0 {
		return nil, cmp.Or(last, errors.New("matches no address and no name"))
	}
	return all, nil
}

// byRouteTo takes the device of the route to dst, with the kernel's preferred source address. The
// kernel routes a node's own addresses by the loopback device, so their own device is taken.
func (c *chooser) byRouteTo(dst netip.Addr) (Iface, error) {
	if dev, ok := c.net.owner(dst); ok {
		return c.iface(dev, dst)
	}
	dev, src, err := c.routeTo(dst)
	if err != nil {
		return Iface{}, err
	}
	if l, ok := c.net.link(dev); ok && l.Index == loopbackIndex {
		return Iface{}, fmt.Errorf("the route is by the loopback device %s", dev)
	}
	if !src.IsValid() {
		return c.iface(dev)
	}
	return c.iface(dev, src)
}

// iface makes the result for a device. The addresses in fixed were asked for, so they are taken
// even if they are loopback addresses. The other family's address is the first in order.
func (c *chooser) iface(dev string, fixed ...netip.Addr) (Iface, error) {
	l, ok := c.net.link(dev)
	if !ok {
		return Iface{}, errors.New("no such interface")
	}
	i := Iface{Name: l.Name, Index: l.Index, Kind: l.Kind, MTU: c.mtu(l)}
	for _, a := range slices.Concat(fixed, c.usable(dev)) {
		switch {
		case !c.enabled(a):
		case a.Is4() && !i.Addr.IsValid():
			i.Addr = a
		case a.Is6() && !i.Addr6.IsValid():
			i.Addr6 = a
		}
	}
	for _, family := range []struct {
		name string
		on   bool
		addr netip.Addr
	}{{"IPv4", c.o.IPv4, i.Addr}, {"IPv6", c.o.IPv6, i.Addr6}} {
		if !family.on {
			continue
		}
		if !family.addr.IsValid() {
			return Iface{}, fmt.Errorf("%s has no %s address that other nodes could reach%s", dev,
				family.name, c.net.duplicates(dev))
		}
		r, err := c.net.rank(dev, family.addr)
		if err != nil {
			return Iface{}, err
		}
		i.rank |= r
	}
	return i, nil
}

// enabled reports whether an address is of an enabled family.
func (c *chooser) enabled(a netip.Addr) bool { return a.Is4() && c.o.IPv4 || a.Is6() && c.o.IPv6 }

// usable lists the addresses of a device that other nodes could reach, best first: as in flannel
// (pkg/ip/iface.go), any but a loopback address.
func (c *chooser) usable(dev string) []netip.Addr {
	as := c.net.ordered(dev, c.prefer, []netip.Addr{c.o.Previous, c.o.Previous6})
	return slices.DeleteFunc(as, func(a netip.Addr) bool {
		return !a.IsGlobalUnicast() && !a.IsLinkLocalUnicast()
	})
}
