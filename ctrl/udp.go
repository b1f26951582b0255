package ctrl

import (
	"errors"
	"fmt"
	"strings"

	"weft/encap"
	"weft/lease"
)

// defaultUDPPort is flannel's port of the udp backend.
const defaultUDPPort = 8285

// tunTxQueueLen bounds the packets that wait in each TUN queue for the engine. A full queue drops in silence: no error
// reaches the sender. flannel leaves the kernel's 500. Measured with BenchmarkNetnsTxQueueLen on a two-core VM, Linux 6.18,
// two queues, 100-byte UDP packets; lost packets of a burst of 3,000 while the reader is away for 0, 5 and 20 ms:
//
//	queue     0 ms   5 ms  20 ms   burst of 10,000: 0 / 5 / 20 ms   99 % of an endless flood waited less than
//	  500      958   1560   2501             2286 / 4611 / 5782      3 ms (15 % lost)
//	 1000      749    890   1979             2067 / 3474 / 7513      5 ms (12 % lost)
//	 2000       91    635   1000              941 / 1032 / 5988     12 ms (5 % lost)
//	 5000        0      0      0                0 /  222 / 2647     12 ms (2 % lost)
//	10000        0      0      0                0 /    0 /    0      9 ms (nothing lost: never full)
//
// 5,000 is the smallest that takes the burst whole. The price is paid only while the queue is full: 5,000 packets at
// the 400,000 a second that a reader of single packets takes are 12 ms, twice that for 10,000.
const tunTxQueueLen = 5000

// kernelUDPDevice is the kernel's carrier of the udp backend; it has the name that flannel's first TUN gets.
const kernelUDPDevice = "flannel0"

// outerTTL is what the packet engine's sockets send with, and flannel's (net.ipv4.ip_default_ttl).
const outerTTL = 64

// udp is the wire of flannel's udp backend: the bare inner packet as UDP payload.
type udp struct {
	network lease.Network
	self    Self
	port    int
	kernel  bool // carried by the kernel (foo over UDP) instead of the packet engine
	mtu     int
}

// newUDP reads Port and Carrier.
func newUDP(n lease.Network, s Self) (Backend, error) {
	c := struct {
		Port    int
		Carrier string
	}{Port: defaultUDPPort, Carrier: "userspace"}
	if err := decode(n, &c); err != nil {
		return nil, err
	}
	if err := inRange("Port", c.Port, 1, 65535); err != nil {
		return nil, err
	}
	overhead := encap.OverheadUDP4
	if !s.Iface.Addr.IsValid() {
		overhead = encap.OverheadUDP6
	}
	mtu, err := deviceMTU(n, s, 0, overhead)
	if err != nil {
		return nil, err
	}
	u := &udp{network: n, self: s, port: c.Port, mtu: mtu}
	switch strings.ToLower(c.Carrier) {
	case "userspace":
	case "auto":
		// The kernel's carrier is IPv4 in IPv4 only.
		u.kernel = s.FOU && !n.IPv6Network.IsValid()
	case "kernel":
		if !s.FOU {
			return nil, fmt.Errorf("config key Carrier is kernel, but this kernel cannot: %s", s.NoFOU)
		}
		if n.IPv6Network.IsValid() {
			return nil, errors.New("config key Carrier is kernel, which carries IPv4 only, but IPv6Network is set")
		}
		u.kernel = true
	default:
		return nil, fmt.Errorf("config key Carrier is %q, allowed are userspace, kernel, auto", c.Carrier)
	}
	return u, nil
}

// Plan gives the packet engine's device its address, MTU, queue length and the route of the whole network; the engine's
// own table holds the peers. With the kernel as carrier each node has a route instead.
func (u *udp) Plan(self lease.Lease, all []lease.Lease) State {
	s, paths := newPlan(u.network, "", self, all)
	if u.kernel {
		u.planKernel(&s, self, paths)
		return s
	}
	s.NoFOU = []FOUPort{{u.port}}
	dev := u.self.Device
	if dev == "" {
		return s
	}
	s.Links = []Link{{Name: dev, Kind: KindTUN, MTU: u.mtu, TxQueueLen: tunTxQueueLen, Up: true, Foreign: true}}
	for _, f := range families(u.network, self) {
		s.Addrs = append(s.Addrs, Addr{Dev: dev, Prefix: hostPrefix(gatewayAddr(f.subnet))})
		s.Routes = append(s.Routes, Route{Dst: f.network.Masked(), Dev: dev, Protocol: RouteProtocol})
	}
	return s
}

// planKernel makes an IPIP device that wraps in UDP and takes each route's next hop as the tunnel's end, and a port
// that unwraps.
func (u *udp) planKernel(s *State, self lease.Lease, paths []path) {
	s.FOU = []FOUPort{{u.port}}
	s.Links = []Link{{
		Name: kernelUDPDevice, Kind: KindIPIP, MTU: u.mtu, Up: true, Software: loops(u.self.Iface.Kind),
		IPIP: IPIP{Local: u.self.Iface.Addr, FOUPort: u.port, TTL: outerTTL, PathMTU: true},
	}}
	for _, f := range families(u.network, self) {
		s.Addrs = append(s.Addrs, Addr{Dev: kernelUDPDevice, Prefix: hostPrefix(gatewayAddr(f.subnet))})
	}
	for _, p := range paths {
		s.Routes = append(s.Routes, Route{Dst: p.subnet.Masked(), Via: p.public, Dev: kernelUDPDevice, OnLink: true, Protocol: RouteProtocol})
	}
}

// loops says whether a kind of underlay device may hand frames to another namespace of the same kernel. Such a device
// says that it fills in the inner packet's checksum and cuts large ones, and does neither: the kernel at the other end
// knows what is missing. A packet engine there does not, and gets 64 KiB packets with wrong checksums.
func loops(k LinkKind) bool {
	switch k {
	case "veth", "bridge", "macvlan", "ipvlan":
		return true
	}
	return false
}

// Spec publishes no backend type, as flannel does.
func (u *udp) Spec() Spec {
	return Spec{Type: "udp", MTU: u.mtu, Userspace: !u.kernel, Port: u.port}
}
