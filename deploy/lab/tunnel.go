package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Parameters of the kernel tunnels that the benchmarks compare with, as flannel sets them.
const (
	vxlanDevice, ipipDevice = "vxlan1", "ipip1"
	vxlanID                 = 1
	vxlanPort               = 8472 // the kernel's default
	fouPort                 = 8285 // flannel's for the same bytes

	// Overhead over IPv4 in bytes: inner Ethernet, outer IP, UDP and VXLAN headers (50); outer IP
	// header (20); outer IP and UDP headers (28).
	vxlanOverhead, ipipOverhead, fouOverhead = 50, 20, 28
)

// Peer is the remote node of a kernel tunnel.
type Peer struct {
	Node   *Node
	Subnet netip.Prefix // of the node's pods
}

// RoutePeers adds routes to the peers' subnets via the peers, without a tunnel. It returns the MTU
// for pods.
func (n *Node) RoutePeers(peers []Peer) (mtu int, err error) {
	for _, p := range peers {
		if err := n.AddRoute(p.Subnet, p.Node.Addr, underlayPort); err != nil {
			return 0, err
		}
	}
	return n.lab.options.MTU, nil
}

// TunnelVXLAN routes the peers' subnets through a VXLAN device, with static ARP and FDB entries as
// flannel sets them. It returns the MTU for pods.
func (n *Node) TunnelVXLAN(own netip.Prefix, peers []Peer) (mtu int, err error) {
	mtu = n.lab.options.MTU - vxlanOverhead
	under, err := n.links.LinkByName(underlayPort)
	if err != nil {
		return 0, fmt.Errorf("%s: look up %s: %w", n.Name, underlayPort, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = vxlanDevice, mtu, n.tunnelMAC()
	device := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: vxlanID, Port: vxlanPort,
		VtepDevIndex: under.Attrs().Index, SrcAddr: n.Addr.AsSlice()}
	if err := n.addTunnel(device, own); err != nil {
		return 0, err
	}
	index := device.Attrs().Index
	for _, p := range peers {
		vtep := p.Subnet.Masked().Addr()
		arp := &netlink.Neigh{LinkIndex: index, State: unix.NUD_PERMANENT,
			IP: vtep.AsSlice(), HardwareAddr: p.Node.tunnelMAC()}
		fdb := &netlink.Neigh{LinkIndex: index, State: unix.NUD_PERMANENT,
			Family: unix.AF_BRIDGE, Flags: unix.NTF_SELF,
			IP: p.Node.Addr.AsSlice(), HardwareAddr: p.Node.tunnelMAC()}
		for _, entry := range []*netlink.Neigh{arp, fdb} {
			if err := n.links.NeighSet(entry); err != nil {
				return 0, fmt.Errorf("%s: add neighbour %s on %s: %w", n.Name, p.Node.Name,
					vxlanDevice, err)
			}
		}
		if err := n.routeOnLink(index, p.Subnet, vtep); err != nil {
			return 0, err
		}
	}
	return mtu, nil
}

// TunnelIPIP routes the peers' subnets through an IPIP device. It returns the MTU for pods. Without
// the ipip driver the error wraps EOPNOTSUPP.
func (n *Node) TunnelIPIP(own netip.Prefix, peers []Peer) (mtu int, err error) {
	return n.tunnelIPIP(&netlink.Iptun{}, ipipOverhead, own, peers)
}

// TunnelFOU routes the peers' subnets through an IPIP device that encapsulates in UDP (foo over
// UDP), with the bytes of flannel's udp backend. It returns the MTU for pods. Without the module
// fou the error wraps ENOENT.
func (n *Node) TunnelFOU(own netip.Prefix, peers []Peer) (mtu int, err error) {
	port := netlink.Fou{Family: unix.AF_INET, Port: fouPort, Protocol: unix.IPPROTO_IPIP,
		EncapType: netlink.FOU_ENCAP_DIRECT}
	// The handle has no socket for it.
	if err := n.Do(func() error { return netlink.FouAdd(port) }); err != nil {
		return 0, fmt.Errorf("%s: open foo over UDP port %d: %w", n.Name, fouPort, err)
	}
	device := &netlink.Iptun{EncapType: netlink.FOU_ENCAP_DIRECT, EncapSport: fouPort,
		EncapDport: fouPort, PMtuDisc: 1}
	return n.tunnelIPIP(device, fouOverhead, own, peers)
}

// tunnelIPIP adds an IPIP device with the settings of device, and routes through it to the peers.
func (n *Node) tunnelIPIP(
	device *netlink.Iptun, overhead int, own netip.Prefix, peers []Peer,
) (mtu int, err error) {
	mtu = n.lab.options.MTU - overhead
	device.LinkAttrs = netlink.NewLinkAttrs()
	device.Name, device.MTU = ipipDevice, mtu
	device.Local, device.Remote = n.Addr.AsSlice(), net.IPv4zero
	if err := n.addTunnel(device, own); err != nil {
		return 0, err
	}
	link, err := n.links.LinkByName(ipipDevice)
	if err != nil {
		return 0, fmt.Errorf("%s: look up %s: %w", n.Name, ipipDevice, err)
	}
	for _, p := range peers {
		if err := n.routeOnLink(link.Attrs().Index, p.Subnet, p.Node.Addr); err != nil {
			return 0, err
		}
	}
	return mtu, nil
}

// RouteThrough routes the peers' subnets through an existing tunnel device that adds overhead bytes
// per packet. It sets the device's MTU accordingly and returns it as the MTU for pods.
func (n *Node) RouteThrough(
	device string, overhead int, own netip.Prefix, peers []Peer,
) (mtu int, err error) {
	mtu = n.lab.options.MTU - overhead
	if err := n.SetMTU(device, mtu); err != nil {
		return 0, err
	}
	if err := n.activate(device, own); err != nil {
		return 0, err
	}
	for _, p := range peers {
		if err := n.AddRoute(p.Subnet, netip.Addr{}, device); err != nil {
			return 0, err
		}
	}
	return mtu, nil
}

// HasDriver reports whether the kernel supports a kind of device ("wireguard"), by adding one.
func (ns *NS) HasDriver(kind string) bool {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe0"
	device := &netlink.GenericLink{LinkAttrs: attrs, LinkType: kind}
	err := ns.links.LinkAdd(device)
	if err == nil {
		err = ns.links.LinkDel(device)
	}
	// A supported kind without its attributes fails with another error.
	return !errors.Is(err, unix.EOPNOTSUPP)
}

// addTunnel adds a device and activates it.
func (n *Node) addTunnel(device netlink.Link, own netip.Prefix) error {
	name := device.Attrs().Name
	if err := n.links.LinkAdd(device); err != nil {
		return fmt.Errorf("%s: add device %s: %w", n.Name, name, err)
	}
	return n.activate(name, own)
}

// activate adds the first address of the node's own subnet to a device and sets it up.
func (n *Node) activate(name string, own netip.Prefix) error {
	addr := netip.PrefixFrom(own.Masked().Addr(), own.Addr().BitLen())
	if err := n.AddAddr(name, addr); err != nil {
		return err
	}
	return n.SetUp(name, true)
}

func (n *Node) routeOnLink(index int, dst netip.Prefix, via netip.Addr) error {
	route := &netlink.Route{LinkIndex: index, Dst: ipNet(dst), Gw: via.AsSlice(),
		Flags: int(netlink.FLAG_ONLINK)}
	if err := n.links.RouteReplace(route); err != nil {
		return fmt.Errorf("%s: route %s via %s: %w", n.Name, dst, via, err)
	}
	return nil
}

// tunnelMAC returns a locally administered hardware address unique to the node.
func (n *Node) tunnelMAC() net.HardwareAddr {
	a := n.Addr.As4()
	return net.HardwareAddr{0x02, 0x77, a[0], a[1], a[2], a[3]}
}
