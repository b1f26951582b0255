package backend

import (
	"errors"
	"net/netip"

	"weft/ctrl"
	"weft/lease"
)

// withoutIPv6 is the backend of a dual-stack network on an underlay whose MTU leaves no room for
// IPv6, such as Tailscale's 1280 bytes: IPv4 goes on.
type withoutIPv6 struct {
	Backend               // of the network without IPv6
	network lease.Network // with IPv6
	reason  error
}

func newWithoutIPv6(
	d driver, n lease.Network, l LocalNode, reason ipv6MTUError,
) (Backend, error) {
	only4 := n
	only4.EnableIPv6, only4.IPv6Network = false, netip.Prefix{}
	b, err := d.newBackend(only4, l)
	return withoutIPv6{b, n, reason}, err
}

// Plan returns the plan of IPv4. It includes the IPv6 network, so that state of a time with a
// larger MTU is removed.
func (b withoutIPv6) Plan(self lease.Lease, all []lease.Lease) ctrl.State {
	s := b.Backend.Plan(self, all)
	s.Networks = networks(b.network)
	for _, l := range all {
		if l.Overlaps(self) {
			continue
		}
		for _, f := range families(b.network, l) {
			if f.v6 {
				unreachable(&s, peerSubnet{f, l}, errors.New("IPv6 is off: "+b.reason.Error()))
			}
		}
	}
	return s
}

// Advertisement publishes no IPv6 address.
func (b withoutIPv6) Advertisement() Advertisement {
	a := b.Backend.Advertisement()
	a.Attrs.PublicIPv6 = netip.Addr{}
	a.IPv6Off = b.reason.Error()
	return a
}
