package ctrl

import (
	"fmt"

	"weft/lease"
)

// hostGW routes to nodes on our own link, without a tunnel.
type hostGW struct {
	network lease.Network
	self    Self
}

// newHostGW has no keys of its own. Behind NAT it cannot work: the others could not route to our public address.
func newHostGW(n lease.Network, s Self) (Backend, error) {
	i := s.Iface
	if i.Public != i.Addr || i.Public6 != i.Addr6 {
		return nil, fmt.Errorf("the public address %s is not the address %s of interface %s: "+
			"nodes behind NAT cannot route to each other, use vxlan or udp", addrList(i.Public, i.Public6), addrList(i.Addr, i.Addr6), i.Name)
	}
	return &hostGW{n, s}, nil
}

// Plan is a route per node and family.
func (h *hostGW) Plan(self lease.Lease, all []lease.Lease) State {
	s, paths := newPlan(h.network, "host-gw", self, all)
	i := h.self.Iface
	for _, p := range paths {
		if !i.OnLink.Contains(p.public) {
			s.unreachable(p, fmt.Errorf("%v is not on the link of %s (%s): use vxlan with DirectRouting", p.public, i.Name, i.OnLink))
			continue
		}
		s.Routes = append(s.Routes, Route{Dst: p.subnet.Masked(), Via: p.public, Dev: i.Name, Protocol: RouteProtocol})
	}
	return s
}

// Spec leaves the pods the whole MTU of the interface.
func (h *hostGW) Spec() Spec {
	return Spec{Type: "host-gw", LeaseType: "host-gw", MTU: h.self.Iface.MTU}
}
