package underlay

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/ctrl"
)

// hostNet is the snapshot of the host's network that the choice is made from.
type hostNet struct {
	links  []ctrl.Link
	addrs  []ctrl.IfaceAddr
	routes []ctrl.Route // of the main table
}

// link finds a device by its name.
func (h hostNet) link(name string) (ctrl.Link, bool) {
	n := slices.IndexFunc(h.links, func(l ctrl.Link) bool { return l.Name == name })
	if n < 0 {
		return ctrl.Link{}, false
	}
	return h.links[n], true
}

// owner returns the device that has an address, one with a duplicate only if there is no other.
func (h hostNet) owner(a netip.Addr) (dev string, ok bool) {
	for _, x := range h.addrs {
		if x.Addr != a {
			continue
		}
		if !x.Duplicate {
			return x.Dev, true
		}
		dev, ok = x.Dev, true
	}
	return dev, ok
}

// find returns a device's address with its flags.
func (h hostNet) find(dev string, a netip.Addr) (ctrl.IfaceAddr, bool) {
	n := slices.IndexFunc(h.addrs, func(x ctrl.IfaceAddr) bool { return x.Dev == dev && x.Addr == a })
	if n < 0 {
		return ctrl.IfaceAddr{}, false
	}
	return h.addrs[n], true
}

// rank is the class of an address, a set of defects; a higher one is worse.
type rank int

const (
	single     rank = 1 << iota // a prefix of one address, as virtual IPs have
	deprecated                  // usable, but about to go (RFC 4862, 5.5.4)
	linkLocal
)

func rankOf(a ctrl.IfaceAddr) rank {
	var r rank
	if a.Bits == a.Addr.BitLen() {
		r |= single
	}
	if a.Deprecated {
		r |= deprecated
	}
	if a.Addr.IsLinkLocalUnicast() {
		r |= linkLocal
	}
	return r
}

// virtual reports whether a device's address looks like a virtual IP: without a lifetime, as DHCP
// gives one, and in a prefix of its own.
func (h hostNet) virtual(dev string, a netip.Addr) bool {
	x, ok := h.find(dev, a)
	return ok && x.Permanent && rankOf(x)&single != 0
}

// rank returns the rank of a device's address. It fails if the address belongs to another host.
func (h hostNet) rank(dev string, a netip.Addr) (rank, error) {
	x, ok := h.find(dev, a)
	if !ok {
		return 0, nil // the source of a route need not be the device's
	}
	if x.Duplicate {
		return 0, fmt.Errorf("%s on %s is a duplicate: another host has it", a, dev)
	}
	return rankOf(x), nil
}

// ordered lists a device's addresses, best first: those in first, then by rank, primary before
// secondary, those in second, permanent before dynamic. Duplicates are left out.
func (h hostNet) ordered(dev string, first, second []netip.Addr) []netip.Addr {
	var as []ctrl.IfaceAddr
	for _, a := range h.addrs {
		if a.Dev == dev && !a.Duplicate {
			as = append(as, a)
		}
	}
	slices.SortStableFunc(as, func(a, b ctrl.IfaceAddr) int {
		return cmp.Or(
			trueFirst(slices.Contains(first, a.Addr), slices.Contains(first, b.Addr)),
			cmp.Compare(rankOf(a)&^single, rankOf(b)&^single),
			trueFirst(!a.Secondary, !b.Secondary),
			cmp.Compare(rankOf(a), rankOf(b)),
			trueFirst(slices.Contains(second, a.Addr), slices.Contains(second, b.Addr)),
			trueFirst(a.Permanent, b.Permanent),
		)
	})
	var out []netip.Addr
	for _, a := range as {
		out = append(out, a.Addr)
	}
	return out
}

func trueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// duplicates lists the addresses of a device that other hosts have, for an error.
func (h hostNet) duplicates(dev string) string {
	var s []string
	for _, a := range h.addrs {
		if a.Dev == dev && a.Duplicate {
			s = append(s, a.Addr.String())
		}
	}
	if len(s) == 0 {
		return ""
	}
	return " (duplicates of other hosts: " + strings.Join(s, " ") + ")"
}

// tentative reports whether an address of the choice is not usable yet.
func (h hostNet) tentative(i Iface) bool {
	return slices.ContainsFunc(h.addrs, func(a ctrl.IfaceAddr) bool {
		return a.Tentative && a.Dev == i.Name && (a.Addr == i.Addr || a.Addr == i.Addr6)
	})
}

// settled leaves out tentative addresses, except those in use: an address becomes tentative again
// when its link was down.
func (h hostNet) settled(inUse Iface) hostNet {
	var as []ctrl.IfaceAddr
	for _, a := range h.addrs {
		mine := a.Dev == inUse.Name && (a.Addr == inUse.Addr || a.Addr == inUse.Addr6)
		if !a.Tentative || a.Duplicate || mine {
			as = append(as, a)
		}
	}
	return hostNet{links: h.links, addrs: as, routes: h.routes}
}

// describe lists the existing interfaces and their addresses, for the error.
func (h hostNet) describe() string {
	var s []string
	for _, l := range h.links {
		part := l.Name
		for _, a := range h.ordered(l.Name, nil, nil) {
			part += " " + a.String()
		}
		s = append(s, part)
	}
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}
