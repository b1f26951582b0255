package ctrl

import (
	"errors"

	"weft/encap"
	"weft/lease"
)

const ipipDevice = "flannel.ipip"

// ipip carries IPv4 in IPv4; one device whose far end is the next hop of each route.
type ipip struct {
	network       lease.Network
	self          Self
	directRouting bool
	mtu           int
}

// newIPIP reads DirectRouting.
func newIPIP(n lease.Network, s Self) (Backend, error) {
	c := struct{ DirectRouting bool }{}
	if err := decode(n, &c); err != nil {
		return nil, err
	}
	mtu, err := deviceMTU(n, s, 0, encap.OverheadIPIP)
	if err != nil {
		return nil, err
	}
	return &ipip{n, s, c.DirectRouting, mtu}, nil
}

// Plan makes the device and a route per node; nodes on our link go without the tunnel if DirectRouting says so.
func (t *ipip) Plan(self lease.Lease, all []lease.Lease) State {
	s, paths := newPlan(t.network, "ipip", self, all)
	s.Links = []Link{{Name: ipipDevice, Kind: KindIPIP, MTU: t.mtu, Up: true, IPIP: IPIP{Local: t.self.Iface.Addr}}}
	for _, f := range families(t.network, self) {
		if !f.v6 {
			s.Addrs = append(s.Addrs, Addr{Dev: ipipDevice, Prefix: hostPrefix(gatewayAddr(f.subnet))})
		}
	}
	for _, p := range paths {
		r := Route{Dst: p.subnet.Masked(), Via: p.public, Dev: ipipDevice, OnLink: true, Protocol: RouteProtocol}
		switch {
		case p.v6:
			s.unreachable(p, errors.New("ipip carries IPv4 only"))
			continue
		case t.directRouting && t.self.Iface.OnLink.Contains(p.public):
			r.Dev = t.self.Iface.Name
		}
		s.Routes = append(s.Routes, r)
	}
	return s
}

// Spec publishes the type alone.
func (t *ipip) Spec() Spec { return Spec{Type: "ipip", LeaseType: "ipip", MTU: t.mtu} }
