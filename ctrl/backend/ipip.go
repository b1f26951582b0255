package backend

import (
	"errors"

	"weft/ctrl"
	"weft/encap"
	"weft/lease"
)

const ipipDevice = "flannel.ipip"

// ipip carries IPv4 in IPv4. One device serves all peers: the next hop of each route is the tunnel
// destination.
type ipip struct {
	network       lease.Network
	local         LocalNode
	directRouting bool
	mtu           int
}

// ipipConfig holds the backend's keys.
type ipipConfig struct{ DirectRouting bool }

// newIPIP reads DirectRouting.
func newIPIP(n lease.Network, l LocalNode) (Backend, error) {
	var c ipipConfig
	if err := decode(n, &c); err != nil {
		return nil, err
	}
	mtu, err := deviceMTU(n, l, 0, encap.OverheadIPIP)
	if err != nil {
		return nil, err
	}
	return &ipip{n, l, c.DirectRouting, mtu}, nil
}

// Plan returns the device and a route per node. With DirectRouting, nodes on the same link are
// reached without the tunnel.
func (t *ipip) Plan(self lease.Lease, all []lease.Lease) ctrl.State {
	s, peers := startPlan(t.network, "ipip", self, all)
	s.Links = []ctrl.Link{{
		Name: ipipDevice, Kind: ctrl.KindIPIP, MTU: t.mtu, Up: true,
		IPIP: ctrl.IPIP{Local: t.local.Iface.Addr},
	}}
	for _, f := range families(t.network, self) {
		if !f.v6 {
			s.Addrs = append(s.Addrs, gatewayOn(ipipDevice, f.subnet))
		}
	}
	for _, p := range peers {
		if p.v6 {
			unreachable(&s, p, errors.New("ipip carries IPv4 only"))
			continue
		}
		dev := ipipDevice
		if t.directRouting && t.local.Iface.OnLink.Contains(p.public) {
			dev = t.local.Iface.Name
		}
		s.Routes = append(s.Routes, ctrl.Route{
			Dst: p.subnet.Masked(), Via: p.public, Dev: dev, OnLink: true,
			Scope: p.routeScope(), Protocol: ctrl.RouteProtocol,
		})
	}
	return s
}

// Advertisement publishes the type only.
func (t *ipip) Advertisement() Advertisement {
	return Advertisement{Type: "ipip", Attrs: t.local.attrs("ipip"), MTU: t.mtu,
		Devices: []string{ipipDevice}}
}
