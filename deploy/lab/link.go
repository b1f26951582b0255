package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Counters are the counters of a device since its creation.
type Counters struct {
	RxPackets, RxBytes, RxDropped uint64
	TxPackets, TxBytes, TxDropped uint64
}

// Link describes a device.
type Link struct {
	Name, Kind string
	Index, MTU int
	Up         bool
	TxQueueLen int
	Addrs      []netip.Prefix // without IPv6 link-local ones
	Counters   Counters
}

// Link returns the device of the given name.
func (ns *NS) Link(name string) (Link, error) {
	link, err := ns.links.LinkByName(name)
	if err != nil {
		return Link{}, fmt.Errorf("%s: look up device %s: %w", ns.Name, name, err)
	}
	a := link.Attrs()
	l := Link{Name: a.Name, Kind: link.Type(), Index: a.Index, MTU: a.MTU,
		Up: a.Flags&net.FlagUp != 0, TxQueueLen: a.TxQLen}
	if s := a.Statistics; s != nil {
		l.Counters = Counters{s.RxPackets, s.RxBytes, s.RxDropped,
			s.TxPackets, s.TxBytes, s.TxDropped}
	}
	addrs, err := ns.links.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return Link{}, fmt.Errorf("%s: list addresses of %s: %w", ns.Name, name, err)
	}
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok && !p.Addr().IsLinkLocalUnicast() {
			l.Addrs = append(l.Addrs, p)
		}
	}
	return l, nil
}

// HasLink reports whether a device of the given name exists.
func (ns *NS) HasLink(name string) bool {
	_, err := ns.links.LinkByName(name)
	return err == nil
}

// DeleteLink removes a device.
func (ns *NS) DeleteLink(name string) error {
	return ns.change("delete", name, ns.links.LinkDel)
}

// SetUp sets a device up or down.
func (ns *NS) SetUp(name string, up bool) error {
	if up {
		return ns.change("set up", name, ns.links.LinkSetUp)
	}
	return ns.change("set down", name, ns.links.LinkSetDown)
}

// SetMTU changes a device's MTU.
func (ns *NS) SetMTU(name string, mtu int) error {
	return ns.change("set MTU of", name, func(l netlink.Link) error {
		return ns.links.LinkSetMTU(l, mtu)
	})
}

// AddAddr adds an address to a device. An IPv6 address is usable at once (no duplicate address
// detection).
func (ns *NS) AddAddr(name string, p netip.Prefix) error {
	return ns.change("add "+p.String()+" to", name, func(l netlink.Link) error {
		address := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			address.Flags = unix.IFA_F_NODAD
		}
		return ns.links.AddrAdd(l, address)
	})
}

// DeleteAddr removes an address from a device.
func (ns *NS) DeleteAddr(name string, p netip.Prefix) error {
	return ns.change("delete "+p.String()+" from", name, func(l netlink.Link) error {
		return ns.links.AddrDel(l, &netlink.Addr{IPNet: ipNet(p)})
	})
}

// change looks a device up and calls f for it; action is the verb for errors.
func (ns *NS) change(action, name string, f func(netlink.Link) error) error {
	link, err := ns.links.LinkByName(name)
	if err == nil {
		err = f(link)
	}
	if err != nil {
		return fmt.Errorf("%s: %s device %s: %w", ns.Name, action, name, err)
	}
	return nil
}

// Route is a route of the main table.
type Route struct {
	Dst      netip.Prefix
	Via      netip.Addr
	Device   string
	Source   netip.Addr
	Protocol int
	Scope    int
}

// Routes lists the main table in both families, without the IPv6 routes that the kernel adds
// itself.
func (ns *NS) Routes() ([]Route, error) {
	list, err := ns.links.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("%s: list routes: %w", ns.Name, err)
	}
	links, err := ns.links.LinkList()
	if err != nil {
		return nil, fmt.Errorf("%s: list devices: %w", ns.Name, err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var routes []Route
	for _, r := range list {
		dst, ok := prefixOf(r.Dst)
		if !ok || dst.Addr().Is6() && r.Protocol == unix.RTPROT_KERNEL {
			continue
		}
		via, _ := netip.AddrFromSlice(r.Gw) // no gateway: the zero address
		src, _ := netip.AddrFromSlice(r.Src)
		routes = append(routes, Route{
			Dst: dst, Via: via.Unmap(), Device: names[r.LinkIndex], Source: src.Unmap(),
			Protocol: int(r.Protocol), Scope: int(r.Scope)})
	}
	return routes, nil
}

// AddRoute adds or replaces a route via a gateway, via a device, or via both.
func (ns *NS) AddRoute(dst netip.Prefix, via netip.Addr, device string) error {
	route := &netlink.Route{Dst: ipNet(dst)}
	var err error
	if via.IsValid() {
		route.Gw = via.AsSlice()
	}
	if device != "" {
		var link netlink.Link
		if link, err = ns.links.LinkByName(device); err == nil {
			route.LinkIndex = link.Attrs().Index
		}
	}
	if err == nil {
		err = ns.links.RouteReplace(route)
	}
	if err != nil {
		return fmt.Errorf("%s: add route %s via %s %s: %w", ns.Name, dst, via, device, err)
	}
	return nil
}

// SetRouteMTU replaces the route to dst by one with a path MTU, as if a router on the way had
// reported it. via is the gateway; it is the zero Addr for an on-link route.
func (ns *NS) SetRouteMTU(dst netip.Prefix, via netip.Addr, device string, mtu int) error {
	return ns.change("set MTU of route "+dst.String()+" via", device, func(l netlink.Link) error {
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(dst), MTU: mtu}
		if via.IsValid() {
			route.Gw = via.AsSlice()
		}
		return ns.links.RouteReplace(route)
	})
}

// AddLocalRoute makes every address of a prefix local to the namespace, as source and as
// destination.
func (ns *NS) AddLocalRoute(p netip.Prefix) error {
	return ns.change("add local "+p.String()+" to", "lo", func(l netlink.Link) error {
		return ns.links.RouteReplace(&netlink.Route{
			LinkIndex: l.Attrs().Index, Dst: ipNet(p), Type: unix.RTN_LOCAL,
			Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST})
	})
}

// DeleteRoute removes a route by its destination.
func (ns *NS) DeleteRoute(dst netip.Prefix) error {
	if err := ns.links.RouteDel(&netlink.Route{Dst: ipNet(dst)}); err != nil {
		return fmt.Errorf("%s: delete route %s: %w", ns.Name, dst, err)
	}
	return nil
}

// addBridge adds a bridge that is up, without the delays of spanning tree and without multicast
// snooping.
func addBridge(ns *NS, name string, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	off := false
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}
	if err := ns.links.LinkAdd(bridge); err != nil {
		return err
	}
	return ns.links.LinkSetUp(bridge)
}

// addVeth adds a veth pair between two namespaces, both ends up.
func addVeth(a *NS, nameA string, b *NS, nameB string, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = nameA, mtu
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU = nameB, uint32(mtu)
	veth.PeerNamespace = netlink.NsFd(b.file.Fd())
	if err := a.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("add link %s/%s to %s/%s: %w", a.Name, nameA, b.Name, nameB, err)
	}
	return errors.Join(a.SetUp(nameA, true), b.SetUp(nameB, true))
}

// setMaster makes a device a port of a bridge.
func setMaster(ns *NS, name, bridge string) error {
	master, err := ns.links.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("look up bridge %s: %w", bridge, err)
	}
	return ns.change("add to "+bridge, name, func(l netlink.Link) error {
		return ns.links.LinkSetMaster(l, master)
	})
}

// joinUnderlay connects the node to its subnet's bridge and adds its addresses and default routes.
func (n *Node) joinUnderlay() error {
	port, root, o := "u-"+n.Name, n.lab.Root.NS, n.lab.options
	if err := addVeth(root, port, n.NS, underlayPort, o.MTU); err != nil {
		return err
	}
	err := errors.Join(o.Mode.apply(root, port, false), o.Mode.apply(n.NS, underlayPort, true))
	if err != nil {
		return err
	}
	if err := setMaster(root, port, bridgeName(n.subnet)); err != nil {
		return err
	}
	return n.addUnderlayAddrs()
}

// addUnderlayAddrs adds the node's underlay addresses and, unless the lab is direct, default
// routes.
func (n *Node) addUnderlayAddrs() error {
	o := n.lab.options
	for _, family := range []struct {
		addr     netip.Addr
		underlay []netip.Prefix
	}{{n.Addr, o.Underlay}, {n.Addr6, o.Underlay6}} {
		if !family.addr.IsValid() {
			continue
		}
		subnet := family.underlay[n.subnet]
		if err := n.AddAddr(underlayPort,
			netip.PrefixFrom(family.addr, subnet.Bits())); err != nil {
			return err
		}
		if o.Direct {
			continue
		}
		if err := n.AddRoute(defaultRoute(family.addr), hostOf(subnet, 1),
			underlayPort); err != nil {
			return err
		}
	}
	return nil
}

// joinManagement links the node to root, with a /30 of the management network.
func (n *Node) joinManagement() error {
	network := n.lab.options.Management
	if !network.IsValid() {
		return nil
	}
	root := n.lab.Root.NS
	port := fmt.Sprintf("m%d-%s%d", network.Addr().As4()[2], n.lab.options.NamePrefix, n.index+1)
	if err := addVeth(root, port, n.NS, managementPort, defaultMTU); err != nil {
		return err
	}
	n.RootManagement = hostOf(network, 4*n.index+1)
	n.Management = hostOf(network, 4*n.index+2)
	return errors.Join(root.AddAddr(port, netip.PrefixFrom(n.RootManagement, 30)),
		n.AddAddr(managementPort, netip.PrefixFrom(n.Management, 30)))
}

// linkDirectly links the two nodes of a direct lab.
func (l *Lab) linkDirectly() error {
	a, b := l.Nodes[0], l.Nodes[1]
	if err := addVeth(a.NS, underlayPort, b.NS, underlayPort, l.options.MTU); err != nil {
		return err
	}
	for _, n := range l.Nodes {
		if err := l.options.Mode.apply(n.NS, underlayPort, true); err != nil {
			return err
		}
		if err := n.addUnderlayAddrs(); err != nil {
			return err
		}
	}
	return nil
}

// connectPod connects the i-th pod to the node's bridge.
func (n *Node) connectPod(p *Pod, i, mtu int) error {
	port := fmt.Sprintf("pod%d", i+1)
	if err := addVeth(n.NS, port, p.NS, podPort, mtu); err != nil {
		return err
	}
	return setMaster(n.NS, port, podBridge)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf converts n; it returns false if n is nil or no valid network.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), ok
}
