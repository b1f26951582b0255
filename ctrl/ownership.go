package ctrl

import (
	"net/netip"
	"slices"
)

// ownership is the part of the kernel's state that Weft owns. Everything else is never changed or
// removed.
type ownership struct {
	networks   []netip.Prefix
	wanted     map[string]bool // devices that the plan wants
	devices    map[string]bool // wanted, or owned and stale
	stale      []Link          // owned but not wanted: to be deleted
	staleFOU   []FOUPort       // ports of owned devices, wanted or stale
	flannel    map[FlannelRoute]bool
	blackholes map[netip.Prefix]bool // destinations that the plan wants a blackhole for
}

// findOwnership determines the owned part of have. Weft owns a device if the plan wants it, or if
// it has an overlay name and an address or a route inside the wanted networks: another daemon or a
// flannel on the same host uses other networks. If the wanted networks cover all addresses, devices
// without addresses and routes are owned, too.
func findOwnership(have, want State) ownership {
	o := ownership{
		networks: want.Networks, wanted: map[string]bool{}, devices: map[string]bool{},
		flannel: setOf(want.FlannelRoutes), blackholes: map[netip.Prefix]bool{},
	}
	for _, l := range want.Links {
		o.wanted[l.Name], o.devices[l.Name] = true, true
	}
	for _, r := range want.Routes {
		if r.Kind == Blackhole {
			o.blackholes[r.Dst] = true
		}
	}
	used := o.usedDevices(have)
	all := Contains(o.networks, netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	for _, l := range have.Links {
		if !o.wanted[l.Name] {
			if !l.deletable() || !all && !used[l.Name] {
				continue
			}
			o.devices[l.Name] = true
			o.stale = append(o.stale, l)
		}
		if l.IPIP.FOUPort != 0 {
			o.staleFOU = append(o.staleFOU, FOUPort{l.IPIP.FOUPort})
		}
	}
	return o
}

// usedDevices returns the devices with an address or a route inside the networks.
func (o ownership) usedDevices(have State) map[string]bool {
	used := map[string]bool{}
	for _, a := range have.Addrs {
		if Contains(o.networks, HostPrefix(a.Prefix.Addr())) {
			used[a.Dev] = true
		}
	}
	for _, r := range have.Routes {
		if Contains(o.networks, r.Dst) {
			used[r.Dev] = true
		}
	}
	return used
}

// Contains reports whether p lies inside one of the networks.
func Contains(networks []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool {
		return n.Bits() <= p.Bits() && n.Contains(p.Addr())
	})
}

// ownsRoute reports whether Weft owns a route: inside the networks, and with Weft's protocol number
// or in a form that flannel leaves. Flannel leaves routes on its devices, routes to a node's subnet
// via that node's address, and blackholes, of which only those that the plan wants too are owned:
// at flannel's metric they cut off pods that start later.
func (o ownership) ownsRoute(r Route) bool {
	if !Contains(o.networks, r.Dst) {
		return false
	}
	return r.Protocol == RouteProtocol || r.Protocol == protocolBoot &&
		(o.devices[r.Dev] || o.flannel[FlannelRoute{r.Dst, r.Via}] || r.Kind == Blackhole &&
			o.blackholes[r.Dst])
}

// HostPrefix returns the prefix of a single address: 10.5.77.0 gives 10.5.77.0/32.
func HostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
