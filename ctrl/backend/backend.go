// Package backend turns leases into wanted kernel state, with one file per backend of the network
// config.
//
// A [Backend] is a pure value made by [New] from the network config and a [LocalNode], which holds
// the underlay interface and everything else that the backend needs to know of this node.
// [PrepareNode] fills the LocalNode: it is the only function of the package with side effects.
//
// A new backend is one file, one row in the table of backends and, if its device is of a new type,
// one link kind in package ctrl.
package backend

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weft/ctrl"
	"weft/ctrl/backend/cloud"
	"weft/lease"
)

// Backend turns leases into wanted kernel state. It is a pure value: no kernel, no clock, safe for
// concurrent use.
type Backend interface {
	// Plan returns the state that carries traffic from self to all. all may contain self, which is
	// skipped.
	Plan(self lease.Lease, all []lease.Lease) ctrl.State
	// Advertisement returns the lease attributes and settings of this backend for the daemon.
	Advertisement() Advertisement
}

// Advertisement is the part of a backend that the daemon publishes or acts on.
type Advertisement struct {
	Type string // as in the network config, lower case
	// Attrs are the attributes of this node's lease. A family that the backend cannot serve has no
	// public address.
	Attrs     lease.Attrs
	MTU       int            // bytes, for subnet.env and pods
	Userspace bool           // the packet engine has to run
	Listen    netip.AddrPort // UDP address of the packet engine; zero unless Userspace
	Devices   []string       // overlay devices of this node, in the order of their families
	// Cloud is the cloud whose route tables lead to the pods of this node; zero for other backends.
	Cloud cloud.Config
	// IPv6Off is the reason why a dual-stack network is carried without IPv6; empty if it is not.
	IPv6Off string
}

// driver describes one backend of the network config.
type driver struct {
	keys []string // of the Backend object, besides Type
	// newBackend makes the backend. It must not touch the kernel.
	newBackend func(n lease.Network, l LocalNode) (Backend, error)
	// prepare fills in the parts of l that only this backend uses; nil if there are none.
	prepare func(k kernel, n lease.Network, l *LocalNode, o LocalOptions) error
	// restore takes over the parts of l that peers already know from previous; nil if there are
	// none.
	restore func(l *LocalNode, previous lease.Attrs)
}

// backends maps the names of the network config to the backends.
func backends() map[string]driver {
	return map[string]driver{
		cloud.Alibaba: {keys: keysOf(keyPairConfig{}), newBackend: newCloudRoutes},
		cloud.AWS:     {keys: keysOf(awsConfig{}), newBackend: newCloudRoutes},
		cloud.GCE:     {keys: keysOf(gceConfig{}), newBackend: newCloudRoutes},
		cloud.Tencent: {keys: keysOf(keyPairConfig{}), newBackend: newCloudRoutes},

		"alloc": {newBackend: newAlloc},
		"extension": {keys: keysOf(extensionConfig{}), newBackend: newExtension,
			prepare: prepareExtension},
		"host-gw": {newBackend: newHostGW},
		"ipsec":   {keys: keysOf(ipsecConfig{}), newBackend: newIPsec},
		"ipip":    {keys: keysOf(ipipConfig{}), newBackend: newIPIP},
		"udp":     {keys: keysOf(udpConfig{}), newBackend: newUDP, prepare: prepareUDP},
		"vxlan": {keys: keysOf(vxlanConfig{}), newBackend: newVXLAN, prepare: prepareVXLAN,
			restore: restoreVXLAN},
		"wireguard": {keys: keysOf(wireGuardConfig{}), newBackend: newWireGuard,
			prepare: prepareWireGuard},
	}
}

// New makes the backend that the network config names. The error names the key that is wrong and
// the allowed values. New touches nothing, so it may be called again whenever the interface or the
// packet engine's device changes.
func New(n lease.Network, l LocalNode) (Backend, error) {
	known := backends()
	typ := strings.ToLower(n.Backend.Type)
	d, ok := known[typ]
	if !ok {
		names := slices.Sorted(maps.Keys(known))
		return nil, fmt.Errorf("unknown backend type %q, want one of %s", n.Backend.Type,
			strings.Join(names, ", "))
	}
	b, err := d.newBackend(n, l)
	if small := (ipv6MTUError{}); errors.As(err, &small) && n.Network.IsValid() {
		b, err = newWithoutIPv6(d, n, l, small)
	}
	if err != nil {
		return nil, fmt.Errorf("%s backend: %w", typ, err)
	}
	if l.Blackhole {
		b = withBlackhole{Backend: b, network: n}
	}
	return b, nil
}

// withBlackhole adds the route of --ip-blackhole-route to a backend's plan.
type withBlackhole struct {
	Backend
	network lease.Network
}

// blackholeMetric makes the route lose against the pod bridge's own route of the same subnet. With
// equal metrics, as in flannel, the first route added wins, and a blackhole that is first cuts off
// the node's own pods.
const blackholeMetric = 1 << 20

// Plan returns the backend's plan with a blackhole route for this node's subnet.
func (b withBlackhole) Plan(self lease.Lease, all []lease.Lease) ctrl.State {
	s := b.Backend.Plan(self, all)
	s.Networks = networks(b.network)
	for _, f := range families(b.network, self) {
		s.Routes = append(s.Routes, ctrl.Route{
			Dst: f.subnet.Masked(), Kind: ctrl.Blackhole, Metric: blackholeMetric,
			Protocol: ctrl.RouteProtocol,
		})
	}
	return s
}
