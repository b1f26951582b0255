package backend

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"weft/ctrl"
	"weft/encap"
	"weft/lease"
)

// defaultUDPPort is flannel's port of the udp backend.
const defaultUDPPort = 8285

// tunTxQueueLen bounds the packets that wait in each TUN queue for the engine. A full queue drops
// silently: no error reaches the sender. flannel keeps the kernel's 500. Measured with
// BenchmarkNetnsTxQueueLen on a two-core VM, Linux 6.18, two queues, 100-byte UDP packets; lost
// packets of a burst of 3,000 if the reader is away for 0, 5 and 20 ms:
//
//	queue     0 ms   5 ms  20 ms   burst of 10,000: 0 / 5 / 20 ms   p99 wait of an endless flood below
//	  500      958   1560   2501             2286 / 4611 / 5782      3 ms (15 % lost)
//	 1000      749    890   1979             2067 / 3474 / 7513      5 ms (12 % lost)
//	 2000       91    635   1000              941 / 1032 / 5988     12 ms (5 % lost)
//	 5000        0      0      0                0 /  222 / 2647     12 ms (2 % lost)
//	10000        0      0      0                0 /    0 /    0      9 ms (nothing lost: never full)
//
// 5,000 is the smallest length that holds the whole burst. It costs latency only while the queue is
// full: at the 400,000 packets per second of a reader that takes them one by one, 5,000 packets are
// 12 ms, 10,000 twice that.
const tunTxQueueLen = 5000

// kernelUDPDevice is the device of the udp backend carried by the kernel. It has the name of
// flannel's first TUN.
const kernelUDPDevice = "flannel0"

// outerTTL is the TTL of the packet engine's sockets, and of flannel's (net.ipv4.ip_default_ttl).
const outerTTL = 64

// udp is flannel's udp backend: the inner packet alone is the UDP payload.
type udp struct {
	network lease.Network
	local   LocalNode
	port    int
	kernel  bool // carried by the kernel (foo over UDP) instead of the packet engine
	mtu     int
}

// udpConfig holds the backend's keys.
type udpConfig struct {
	Port    int
	Carrier string // userspace, kernel or auto
}

func readUDPConfig(n lease.Network) (udpConfig, error) {
	c := udpConfig{Port: defaultUDPPort, Carrier: "userspace"}
	err := decode(n, &c)
	c.Carrier = strings.ToLower(c.Carrier)
	return c, err
}

// newUDP reads Port and Carrier.
func newUDP(n lease.Network, l LocalNode) (Backend, error) {
	c, err := readUDPConfig(n)
	if err != nil {
		return nil, err
	}
	if err := inRange("Port", c.Port, 1, 65535); err != nil {
		return nil, err
	}
	overhead := encap.OverheadUDP4
	if !l.Iface.Addr.IsValid() {
		overhead = encap.OverheadUDP6
	}
	mtu, err := deviceMTU(n, l, 0, overhead)
	if errors.As(err, new(ipv6MTUError)) {
		// The engine sends IPv6 packets up to this size in outer fragments and reports the smaller
		// MTU of the path to IPv4 senders.
		mtu, err = encap.MinMTU6, nil
	}
	if err != nil {
		return nil, err
	}
	u := &udp{network: n, local: l, port: c.Port, mtu: mtu}
	switch c.Carrier {
	case "userspace":
	case "auto":
		// The kernel carries IPv4 in IPv4 only.
		u.kernel = l.FOU && !n.IPv6Network.IsValid()
	case "kernel":
		if !l.FOU {
			return nil, fmt.Errorf("config key Carrier is kernel, "+
				"but the kernel cannot carry the udp backend: %s", l.FOUUnavailable)
		}
		if n.IPv6Network.IsValid() {
			return nil, errors.New("config key Carrier is kernel, which carries IPv4 only, " +
				"but IPv6Network is set")
		}
		u.kernel = true
	default:
		return nil, fmt.Errorf("config key Carrier is %q, want userspace, kernel or auto",
			c.Carrier)
	}
	return u, nil
}

// prepareUDP asks the kernel whether it can carry the backend, if Carrier allows that.
func prepareUDP(k kernel, n lease.Network, l *LocalNode, _ LocalOptions) error {
	c, err := readUDPConfig(n)
	if err != nil {
		return err
	}
	if c.Carrier == "userspace" || c.Carrier == "" {
		l.FOUUnavailable = "not requested"
		return nil
	}
	l.FOUUnavailable, err = k.ProbeFOU(ctrl.IPIP{FOUPort: defaultUDPPort, PathMTU: true,
		TTL: outerTTL})
	l.FOU = err == nil && l.FOUUnavailable == ""
	return err
}

// Plan sets the address, MTU and queue length of the packet engine's device and routes the whole
// network to it; the peers are in the engine's own table. With the kernel as carrier, each node has
// a route instead.
func (u *udp) Plan(self lease.Lease, all []lease.Lease) ctrl.State {
	s, peers := startPlan(u.network, "", self, all)
	if u.kernel {
		u.planKernel(&s, self, peers)
		return s
	}
	s.FreePorts = []ctrl.FOUPort{{Port: u.port}}
	s.NoTrack = []netip.AddrPort{u.listen()}
	dev := u.local.Device
	if dev == "" {
		return s
	}
	s.Links = []ctrl.Link{{
		Name: dev, Kind: ctrl.KindTUN, MTU: u.mtu, TxQueueLen: tunTxQueueLen, Up: true,
		External: true,
	}}
	for _, f := range families(u.network, self) {
		s.Addrs = append(s.Addrs, gatewayOn(dev, f.subnet))
		s.Routes = append(s.Routes, f.networkRoute(dev)...)
	}
	return s
}

// planKernel adds an IPIP device that encapsulates in UDP, with each route's next hop as the tunnel
// destination, and a port that decapsulates.
func (u *udp) planKernel(s *ctrl.State, self lease.Lease, peers []peerSubnet) {
	s.FOU = []ctrl.FOUPort{{Port: u.port}}
	s.NoTrack = []netip.AddrPort{netip.AddrPortFrom(u.local.Iface.Addr, uint16(u.port))}
	s.Links = []ctrl.Link{{
		Name: kernelUDPDevice, Kind: ctrl.KindIPIP, MTU: u.mtu, Up: true,
		NoTxOffload: sameKernelPeer(u.local.Iface.Kind),
		IPIP: ctrl.IPIP{
			Local: u.local.Iface.Addr, FOUPort: u.port, TTL: outerTTL, PathMTU: true,
		},
	}}
	for _, f := range families(u.network, self) {
		s.Addrs = append(s.Addrs, gatewayOn(kernelUDPDevice, f.subnet))
	}
	for _, p := range peers {
		s.Routes = append(s.Routes, ctrl.Route{
			Dst: p.subnet.Masked(), Via: p.public, Dev: kernelUDPDevice, OnLink: true,
			Protocol: ctrl.RouteProtocol,
		})
	}
}

// sameKernelPeer reports whether an underlay device of this kind may pass frames to another
// namespace of the same kernel. Such a device claims to compute the inner checksum and to segment
// large packets, but does neither: it leaves both to the receiving kernel. A packet engine in that
// namespace receives 64 KiB packets with wrong checksums.
func sameKernelPeer(k ctrl.LinkKind) bool {
	switch k {
	case "veth", "bridge", "macvlan", "ipvlan":
		return true
	}
	return false
}

// listen returns the UDP address of the packet engine: the interface's own address, which differs
// from the public one behind NAT.
func (u *udp) listen() netip.AddrPort {
	a := u.local.Iface.Addr
	if !a.IsValid() {
		a = u.local.Iface.Addr6
	}
	return netip.AddrPortFrom(a, uint16(u.port))
}

// Advertisement publishes no backend type, as flannel does.
func (u *udp) Advertisement() Advertisement {
	a := Advertisement{Type: "udp", Attrs: u.local.attrs(""), MTU: u.mtu, Userspace: !u.kernel}
	switch {
	case u.kernel:
		a.Devices = []string{kernelUDPDevice}
	case u.local.Device != "":
		a.Devices = []string{u.local.Device}
	}
	if a.Userspace {
		a.Listen = u.listen()
		a.Attrs.FastPath = u.local.FastPath
	}
	return a
}
