package ctrl

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Read lists the kernel's state: all devices and addresses, the routes of the main table, FOU
// ports, IPsec policies, and for the devices that detail selects their permanent neighbours and
// forwarding entries, or WireGuard peers. A command that was run counts as kernel state.
func (k *Kernel) Read(detail func(dev string) bool) (State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, names, err := k.readLinks(detail)
	if err != nil {
		return State{}, err
	}
	all := func(Route) bool { return true }
	if err := k.readAddresses(&s, names, all); err != nil {
		return State{}, err
	}
	if s.FOU, err = k.fouPorts(); err != nil {
		return State{}, err
	}
	drivers := linkDrivers()
	for _, l := range s.Links {
		if d := drivers[l.Kind]; d.readObjects != nil && detail(l.Name) {
			if err := d.readObjects(k, &s, l); err != nil {
				return State{}, err
			}
		}
	}
	if err := k.readPolicies(&s); err != nil {
		return State{}, err
	}
	for _, c := range k.ran {
		s.Commands = append(s.Commands, c)
	}
	return s, nil
}

// ReadHost lists the devices and addresses, and those routes of the main table that are not the
// overlay's: neither with Weft's protocol nor, except default routes, on an overlay device.
func (k *Kernel) ReadHost() (State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, names, err := k.readLinks(func(string) bool { return false })
	if err != nil {
		return State{}, err
	}
	err = k.readAddresses(&s, names, func(r Route) bool {
		return r.Protocol != RouteProtocol && (r.Dst.Bits() == 0 || !OverlayName(r.Dev))
	})
	return s, err
}

// readAddresses adds the addresses and the routes that keep selects, of both families.
func (k *Kernel) readAddresses(s *State, names map[int]string, keep func(Route) bool) error {
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := dump("addresses", func() ([]netlink.Addr,
			error) {
			return k.h.AddrList(nil, fam)
		})
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if dev, ok := names[a.LinkIndex]; ok {
				s.Addrs = append(s.Addrs, Addr{Dev: dev, Prefix: prefixOf(a.IPNet)})
			}
		}
		routes, err := k.routes(fam, names, keep)
		if err != nil {
			return err
		}
		s.Routes = append(s.Routes, routes...)
	}
	return nil
}

// IfaceAddr is an address on a device with the flags that matter for the choice of an underlay
// address.
type IfaceAddr struct {
	Dev  string
	Addr netip.Addr
	Bits int // prefix length
	// Secondary is a temporary IPv6 address, or an IPv4 address in the prefix of an earlier one:
	// the kernel has one flag for both.
	Secondary             bool
	Deprecated, Permanent bool
	// Tentative addresses cannot be used yet (RFC 4862, 5.4). Duplicate ones are another host's.
	Tentative, Duplicate bool
}

// IfaceAddrs lists the addresses of all devices.
func (k *Kernel) IfaceAddrs() ([]IfaceAddr, error) {
	names, err := k.linkNames()
	if err != nil {
		return nil, err
	}
	var out []IfaceAddr
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := dump("addresses", func() ([]netlink.Addr,
			error) {
			return k.h.AddrList(nil, fam)
		})
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			out = append(out, ifaceAddr(names[a.LinkIndex], a))
		}
	}
	return out, nil
}

func ifaceAddr(dev string, a netlink.Addr) IfaceAddr {
	p := prefixOf(a.IPNet)
	has := func(flag int) bool { return a.Flags&flag != 0 }
	return IfaceAddr{
		Dev: dev, Addr: p.Addr(), Bits: p.Bits(),
		Secondary:  has(unix.IFA_F_SECONDARY),
		Deprecated: has(unix.IFA_F_DEPRECATED),
		Permanent:  has(unix.IFA_F_PERMANENT),
		Tentative:  has(unix.IFA_F_TENTATIVE) && !has(unix.IFA_F_OPTIMISTIC),
		Duplicate:  has(unix.IFA_F_DADFAILED),
	}
}

// RouteTo returns the device and the preferred source address of the route to dst. An invalid src
// means none.
func (k *Kernel) RouteTo(dst netip.Addr) (dev string, src netip.Addr, err error) {
	rs, err := dump("the route", func() ([]netlink.Route,
		error) {
		return k.h.RouteGet(dst.AsSlice())
	})
	if err != nil {
		return "", netip.Addr{}, err
	}
	if len(rs) == 0 {
		return "", netip.Addr{}, errors.New("no route")
	}
	l, err := k.h.LinkByIndex(rs[0].LinkIndex)
	if err != nil {
		return "", netip.Addr{}, fmt.Errorf("device of the route: %w", err)
	}
	return l.Attrs().Name, addrOf(rs[0].Src), nil
}

// prefixOf converts a net.IPNet, keeping the host bits.
func prefixOf(n *net.IPNet) netip.Prefix {
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addrOf(n.IP), ones)
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip) // an invalid slice, which means no address, gives the zero Addr
	return a.Unmap()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// ipv6DefaultMetric is the metric that the kernel stores for metric 0 (IP6_RT_PRIO_USER in
// linux/ipv6_route.h).
const ipv6DefaultMetric = 1024

// routeKind converts a route type (RTN_... in linux/rtnetlink.h). ok is false for types that do not
// concern packets to other hosts.
func routeKind(typ int) (kind RouteKind, ok bool) {
	switch typ {
	case unix.RTN_UNICAST:
		return Forward, true
	case unix.RTN_BLACKHOLE:
		return Blackhole, true
	case unix.RTN_UNREACHABLE:
		return "unreachable", true
	case unix.RTN_PROHIBIT:
		return "prohibit", true
	case unix.RTN_THROW:
		return "throw", true
	}
	return "", false
}

// normal returns a route of the kernel in the form of a plan.
func (r Route) normal() Route {
	if r.Dst.Addr().Is6() && r.Metric == ipv6DefaultMetric {
		r.Metric = 0
	}
	if r.Kind != Forward {
		r.Dev = "" // the kernel reports lo for IPv6
	}
	return r
}

// readEntries adds the permanent neighbours and forwarding entries of a VXLAN device.
func (k *Kernel) readEntries(s *State, l Link) error {
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE} {
		all, err := dump("neighbours", func() (all []Object, err error) {
			head := &netlink.Ndmsg{Family: fam, Index: uint32(l.Index)}
			err = k.dumpMessages(unix.RTM_GETNEIGH, head, func(data []byte) {
				// Older kernels list the entries of all devices.
				n, ok := parseNeighbour(data)
				if ok && n.permanent && n.index == l.Index && n.object != nil {
					all = append(all, n.on(l.Name))
				}
			})
			return all, err
		})
		if err != nil {
			return err
		}
		for _, o := range all {
			s.add(o)
		}
	}
	return nil
}
