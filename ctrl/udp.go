package ctrl

import (
	"encoding/json"
	"fmt"

	"weft/lease"
)

// udpOverhead is what the tunnel adds to an inner packet: an IPv4 header (RFC 791) and a UDP header (RFC 768), bytes.
const udpOverhead = 20 + 8

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

type udp struct {
	network lease.Network
	self    Self
	port    int
}

// newUDP reads the Backend object's Port.
func newUDP(n lease.Network, s Self) (*udp, error) {
	c := struct{ Port int }{Port: defaultUDPPort}
	if len(n.Backend.Raw) > 0 {
		if err := json.Unmarshal(n.Backend.Raw, &c); err != nil {
			return nil, fmt.Errorf("error decoding UDP backend config: %w", err)
		}
	}
	if c.Port < 1 || c.Port > 65535 {
		return nil, fmt.Errorf("udp backend: Port %d is not in 1..65535", c.Port)
	}
	return &udp{network: n, self: s, port: c.Port}, nil
}

// Plan gives the packet engine's device its address, MTU, queue length and the route of the whole network. It does not
// depend on the peers: the engine's own table holds them.
func (u *udp) Plan(self lease.Lease, _ []lease.Lease) State {
	s := State{Networks: networks(u.network)}
	if u.self.Device == "" {
		return s
	}
	dev := u.self.Device
	s.Links = []Link{{Name: dev, Kind: KindTUN, MTU: u.self.Iface.MTU - udpOverhead, TxQueueLen: tunTxQueueLen, Up: true, Foreign: true}}
	for _, f := range families(u.network, self) {
		s.Addrs = append(s.Addrs, Addr{Dev: dev, Prefix: hostPrefix(f.subnet)})
		s.Routes = append(s.Routes, Route{Dst: f.network.Masked(), Dev: dev, Protocol: RouteProtocol})
	}
	return s
}

// Spec publishes no backend type, as flannel does.
func (u *udp) Spec() Spec {
	return Spec{Type: "udp", MTU: u.self.Iface.MTU - udpOverhead, Userspace: true, Port: u.port}
}
