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

// tunTxQueueLen is the queue in front of each TUN queue, in packets.
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
