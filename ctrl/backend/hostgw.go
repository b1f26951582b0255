package backend

import (
	"fmt"

	"weft/ctrl"
	"weft/lease"
)

// hostGW routes to nodes on the same link, without a tunnel.
type hostGW struct {
	network lease.Network
	local   LocalNode
}

// newHostGW has no keys of its own. It refuses to work behind NAT, where peers cannot route to the
// public address.
func newHostGW(n lease.Network, l LocalNode) (Backend, error) {
	i := l.Iface
	if i.Public != i.Addr || i.Public6 != i.Addr6 {
		return nil, fmt.Errorf("public address %s is not address %s of interface %s: "+
			"nodes behind NAT cannot route to each other, use vxlan or udp",
			ctrl.AddrList(i.Public, i.Public6), ctrl.AddrList(i.Addr, i.Addr6), i.Name)
	}
	return &hostGW{n, l}, nil
}

// Plan returns a route per node and family.
func (h *hostGW) Plan(self lease.Lease, all []lease.Lease) ctrl.State {
	s, peers := startPlan(h.network, "host-gw", self, all)
	i := h.local.Iface
	for _, p := range peers {
		if !i.OnLink.Contains(p.public) {
			unreachable(&s, p,
				fmt.Errorf("%v is not on the link of %s (%s): use vxlan with DirectRouting",
					p.public, i.Name, i.OnLink))
			continue
		}
		s.Routes = append(s.Routes, ctrl.Route{
			Dst: p.subnet.Masked(), Via: p.public, Dev: i.Name, Scope: p.routeScope(),
			Protocol: ctrl.RouteProtocol,
		})
	}
	return s
}

// Advertisement leaves the pods the whole MTU of the interface.
func (h *hostGW) Advertisement() Advertisement {
	return Advertisement{Type: "host-gw", Attrs: h.local.attrs("host-gw"), MTU: h.local.Iface.MTU}
}
