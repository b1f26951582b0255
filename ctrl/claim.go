package ctrl

import (
	"net/netip"
	"slices"
	"strings"
)

// claims says what of the kernel's state is ours. Everything else is never changed and never removed.
type claims struct {
	networks []netip.Prefix
	wanted   map[string]bool // the devices that the plan wants
	devices  map[string]bool // wanted, or ours and stale
	stale    []Link          // ours and not wanted: they go
	staleFOU []FOUPort       // ports of stale devices
	former   map[Former]bool
	holes    map[netip.Prefix]bool // that the plan wants a blackhole for
}

// claim finds what is ours in have. A device is ours if the plan wants it, or if it has one of flannel's names and
// carries an address or a route of one of our networks: another daemon of ours, or a flannel, on the same host has
// another network. Where all networks are ours, so are the devices that carry nothing.
func claim(have, want State) claims {
	c := claims{networks: want.Networks, wanted: map[string]bool{}, devices: map[string]bool{}, former: setOf(want.Former), holes: map[netip.Prefix]bool{}}
	for _, l := range want.Links {
		c.wanted[l.Name], c.devices[l.Name] = true, true
	}
	for _, r := range want.Routes {
		if r.Kind == Blackhole {
			c.holes[r.Dst] = true
		}
	}
	carries, all := map[string]bool{}, c.inside(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	for _, a := range have.Addrs {
		if c.inside(hostPrefix(a.Prefix.Addr())) {
			carries[a.Dev] = true
		}
	}
	for _, r := range have.Routes {
		if c.inside(r.Dst) {
			carries[r.Dev] = true
		}
	}
	for _, l := range have.Links {
		switch {
		case c.wanted[l.Name]:
			if l.IPIP.FOUPort != 0 {
				c.staleFOU = append(c.staleFOU, FOUPort{l.IPIP.FOUPort})
			}
		case (all || carries[l.Name]) && l.removable():
			c.devices[l.Name] = true
			c.stale = append(c.stale, l)
			if l.IPIP.FOUPort != 0 {
				c.staleFOU = append(c.staleFOU, FOUPort{l.IPIP.FOUPort})
			}
		}
	}
	return c
}

// inside says whether p lies in one of our networks.
func (c claims) inside(p netip.Prefix) bool {
	return slices.ContainsFunc(c.networks, func(n netip.Prefix) bool {
		return n.Bits() <= p.Bits() && n.Contains(p.Addr())
	})
}

// route says whether a route is ours: inside our networks, and with our protocol number, or as flannel leaves it: on
// one of its devices, to a node's subnet via that node's address, or the blackhole that we want too: at flannel's metric
// it cuts off pods that come later.
func (c claims) route(r Route) bool {
	if !c.inside(r.Dst) {
		return false
	}
	return r.Protocol == RouteProtocol ||
		r.Protocol == protocolBoot && (c.devices[r.Dev] || c.former[Former{r.Dst, r.Via}] || r.Kind == Blackhole && c.holes[r.Dst])
}

// hostPrefix is an address alone: 10.5.77.0 gives 10.5.77.0/32.
func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// overlayName says whether a device has one of the names that flannel, and so we, give to devices:
// flannel0, flannel.1, flannel-v6.1, flannel.ipip, flannel-wg, flannel-wg-v6.
func overlayName(dev string) bool {
	rest, ok := strings.CutPrefix(dev, "flannel")
	if !ok || rest == "" {
		return false
	}
	digits := strings.TrimLeft(rest, "0123456789") == ""
	return digits || strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "-v6.") || strings.HasPrefix(rest, "-wg")
}
