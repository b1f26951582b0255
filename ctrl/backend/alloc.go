package backend

import (
	"weft/ctrl"
	"weft/lease"
)

// alloc takes a lease and forwards nothing.
type alloc struct {
	network lease.Network
	local   LocalNode
}

func newAlloc(n lease.Network, l LocalNode) (Backend, error) { return alloc{n, l}, nil }

// Plan wants no devices and routes, so those of an earlier backend are removed.
func (a alloc) Plan(lease.Lease, []lease.Lease) ctrl.State {
	return ctrl.State{Networks: networks(a.network)}
}

// Advertisement publishes no backend type, as flannel does.
func (a alloc) Advertisement() Advertisement {
	return Advertisement{Type: "alloc", Attrs: a.local.attrs(""), MTU: a.local.Iface.MTU}
}
