package ctrl

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// read lists what the kernel has: all devices and addresses, the routes of the main table, FOU ports, and for the devices
// that detail names their permanent neighbours and forwarding entries, or WireGuard peers. A command that was run counts
// as kernel state.
func (k *Kernel) read(detail func(dev string) bool) (State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, names, err := k.readLinks(detail)
	if err != nil {
		return State{}, err
	}
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := dump("addresses", func() ([]netlink.Addr, error) { return k.h.AddrList(nil, fam) })
		if err != nil {
			return State{}, err
		}
		for _, a := range addrs {
			if dev, ok := names[a.LinkIndex]; ok {
				s.Addrs = append(s.Addrs, Addr{Dev: dev, Prefix: prefixOf(a.IPNet)})
			}
		}
		routes, err := k.routes(fam, names)
		if err != nil {
			return State{}, err
		}
		s.Routes = append(s.Routes, routes...)
	}
	if s.FOU, err = k.fouPorts(); err != nil {
		return State{}, err
	}
	for _, l := range s.Links {
		if detail(l.Name) {
			if err := k.readDetail(&s, l); err != nil {
				return State{}, err
			}
		}
	}
	for _, c := range k.ran {
		s.Commands = append(s.Commands, c)
	}
	return s, nil
}

// readLinks lists the devices and their names by index.
func (k *Kernel) readLinks(detail func(dev string) bool) (State, map[int]string, error) {
	links, err := dump("devices", k.h.LinkList)
	if err != nil {
		return State{}, nil, err
	}
	var s State
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	k.wg.forgetMissing(names)
	for _, l := range links {
		v := linkValue(l, names)
		if k.wg.local(v.Name) {
			v.Kind = KindWireGuard
		}
		if v.Kind == KindVXLAN && detail(v.Name) {
			v.IgnoreRA = k.noRA[v.Name] || ignoresRA(v.Name)
		}
		v.Software = v.Kind == KindIPIP && detail(v.Name) && softwareOffload(v.Name)
		s.Links = append(s.Links, v)
	}
	return s, names, nil
}

// linkValue turns the library's link into ours.
func linkValue(l netlink.Link, names map[int]string) Link {
	a := l.Attrs()
	v := Link{Name: a.Name, Index: a.Index, MTU: a.MTU, TxQueueLen: max(a.TxQLen, 0), Up: a.Flags&net.FlagUp != 0}
	if len(a.HardwareAddr) == len(v.MAC) {
		v.MAC = MAC(a.HardwareAddr)
	}
	switch x := l.(type) {
	case *netlink.Device:
	case *netlink.Tuntap:
		v.Kind = KindTUN
	case *netlink.Vxlan:
		v.Kind = KindVXLAN
		v.VXLAN = VXLAN{VNI: x.VxlanId, Port: x.Port, Local: addrOf(x.SrcAddr), Parent: names[x.VtepDevIndex], Learning: x.Learning, GBP: x.GBP}
	case *netlink.Iptun:
		v.Kind = KindIPIP
		v.IPIP = IPIP{Local: addrOf(x.Local), TTL: int(x.Ttl), PathMTU: x.PMtuDisc != 0}
		if x.EncapType == fouEncap {
			v.IPIP.FOUPort = int(x.EncapDport)
		}
		if !addrOf(x.Remote).IsUnspecified() && addrOf(x.Remote).IsValid() {
			v.Kind = "ipip with a remote" // not a device of ours
		}
	default:
		v.Kind = LinkKind(l.Type())
	}
	return v
}

// fouEncap is TUNNEL_ENCAP_FOU of linux/if_tunnel.h.
const fouEncap = 1

// prefixOf keeps the host bits.
func prefixOf(n *net.IPNet) netip.Prefix {
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addrOf(n.IP), ones)
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip) // an invalid slice gives the zero Addr, which is what it means
	return a.Unmap()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// raFile holds whether a device heeds router advertisements.
func raFile(dev string) string { return "/proc/sys/net/ipv6/conf/" + dev + "/accept_ra" }

// ignoresRA says whether router advertisements are off for the device. Without IPv6 they are.
func ignoresRA(dev string) bool {
	b, err := os.ReadFile(raFile(dev))
	return errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(b)) == "0"
}

// ipv6DefaultMetric is what the kernel makes of metric 0 (IP6_RT_PRIO_USER in linux/ipv6_route.h).
const ipv6DefaultMetric = 1024

// routeKind names a route's type (RTN_... in linux/rtnetlink.h) if it says what becomes of packets to other hosts.
func routeKind(typ int) (RouteKind, bool) {
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

// routes lists the routes of the main table.
func (k *Kernel) routes(fam int, names map[int]string) ([]Route, error) {
	filter := netlink.Route{Table: unix.RT_TABLE_MAIN}
	rs, err := dump("routes", func() ([]netlink.Route, error) {
		return k.h.RouteListFiltered(fam, &filter, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, err
	}
	out := make([]Route, 0, len(rs))
	for _, r := range rs {
		if _, ok := routeKind(r.Type); !ok || r.Dst == nil {
			continue
		}
		out = append(out, routeValues(r, fam, names)...)
	}
	return out, nil
}

// routeValues gives a route for each of its next hops.
func routeValues(r netlink.Route, fam int, names map[int]string) []Route {
	kind, _ := routeKind(r.Type) // routes passes no others on
	v := Route{
		Kind: kind, Dst: prefixOf(r.Dst), Via: addrOf(r.Gw), Dev: names[r.LinkIndex], Metric: r.Priority, Protocol: int(r.Protocol),
		OnLink: r.Flags&int(netlink.FLAG_ONLINK) != 0, LinkOnly: fam == netlink.FAMILY_V4 && r.Scope == netlink.SCOPE_LINK,
	}
	if fam == netlink.FAMILY_V6 && v.Metric == ipv6DefaultMetric {
		v.Metric = 0
	}
	if kind != Forward {
		v.Dev = "" // IPv6 names lo
	}
	if len(r.MultiPath) == 0 {
		return []Route{v}
	}
	var out []Route
	for _, hop := range r.MultiPath {
		v.Via, v.Dev, v.OnLink = addrOf(hop.Gw), names[hop.LinkIndex], hop.Flags&int(netlink.FLAG_ONLINK) != 0
		out = append(out, v)
	}
	return out
}

// fouPorts lists the ports that unwrap bare IPv4.
func (k *Kernel) fouPorts() ([]FOUPort, error) {
	if !k.hasFOU() {
		return nil, nil
	}
	fous, err := dump("fou ports", func() ([]netlink.Fou, error) { return k.h.FouList(unix.AF_INET) })
	if err != nil {
		return nil, err
	}
	var out []FOUPort
	for _, f := range fous {
		if f.EncapType == netlink.FOU_ENCAP_DIRECT && f.Protocol == unix.IPPROTO_IPIP {
			out = append(out, FOUPort{f.Port})
		}
	}
	return out, nil
}

// readDetail adds what lives on one device.
func (k *Kernel) readDetail(s *State, l Link) error {
	switch l.Kind {
	case KindVXLAN:
		return k.readEntries(s, l)
	case KindWireGuard:
		t, peers, err := k.wg.read(l.Name)
		if err != nil {
			return fmt.Errorf("read wireguard device %s: %w", l.Name, err)
		}
		s.Tunnels = append(s.Tunnels, t)
		s.Peers = append(s.Peers, peers...)
	}
	return nil
}

// readEntries adds the permanent neighbours and forwarding entries of a VXLAN device.
func (k *Kernel) readEntries(s *State, l Link) error {
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6, unix.AF_BRIDGE} {
		ns, err := dump("neighbours", func() ([]netlink.Neigh, error) { return k.h.NeighList(l.Index, fam) })
		if err != nil {
			return err
		}
		for _, n := range ns {
			if n.State&netlink.NUD_PERMANENT == 0 || len(n.HardwareAddr) != len(MAC{}) {
				continue
			}
			m, ip := MAC(n.HardwareAddr), addrOf(n.IP)
			switch {
			case fam != unix.AF_BRIDGE:
				s.Neighbours = append(s.Neighbours, Neighbour{Dev: l.Name, IP: ip, MAC: m})
			case n.Flags&netlink.NTF_SELF != 0 && ip.IsValid():
				s.FDB = append(s.FDB, FDBEntry{Dev: l.Name, MAC: m, Dst: ip})
			}
		}
	}
	return nil
}
