package backend

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"weft/ctrl"
	"weft/encap"
	"weft/lease"
)

// family is one address family of a network and a lease.
type family struct {
	v6      bool
	network netip.Prefix    // the whole overlay
	subnet  netip.Prefix    // of one node
	public  netip.Addr      // that node's address for peers
	data    json.RawMessage // that node's backend data
}

// families returns the enabled families in which the lease has a subnet.
func families(n lease.Network, l lease.Lease) []family {
	var out []family
	for _, f := range []family{
		{false, n.Network, l.Subnet, l.PublicIP, l.BackendData},
		{true, n.IPv6Network, l.Subnet6, l.PublicIPv6, l.BackendV6Data},
	} {
		if f.network.IsValid() && f.subnet.IsValid() {
			out = append(out, f)
		}
	}
	return out
}

// networks lists the valid networks of both families.
func networks(n lease.Network) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range []netip.Prefix{n.Network, n.IPv6Network} {
		if p.IsValid() {
			out = append(out, p.Masked())
		}
	}
	return out
}

// gatewayAddr returns the network address of a subnet, which its node's overlay device has:
// 10.5.77.0/24 gives 10.5.77.0.
func gatewayAddr(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr() }

// gatewayOn puts the gateway address of a subnet on a device.
func gatewayOn(dev string, subnet netip.Prefix) ctrl.Addr {
	return ctrl.Addr{Dev: dev, Prefix: ctrl.HostPrefix(gatewayAddr(subnet))}
}

// networkRoute routes the whole network to a device. There is no such route if the node's own
// subnet is the whole network, as in a cluster of one node: it would hide the pods behind their
// bridge.
func (f family) networkRoute(dev string) []ctrl.Route {
	if f.subnet.Masked() == f.network.Masked() {
		return nil
	}
	return []ctrl.Route{{Dst: f.network.Masked(), Dev: dev, Protocol: ctrl.RouteProtocol}}
}

const (
	// subnetsPerScope is the number of consecutive subnets whose routes have one scope. A network
	// of no more subnets, as flannel's usual one, has global routes only, like flannel's.
	subnetsPerScope = 256
	// routeScopes is the number of scopes, from ScopeGlobal on. All are below 200, which has a name
	// ("site") in iproute2.
	routeScopes = 128
)

// routeScope returns the scope of the route by a gateway to the subnet. The scopes of a large
// network's routes differ because the kernel searches, for each new route, all existing ones with
// the same scope and device for one with the same gateway (fib_find_info in
// net/ipv4/fib_semantics.c): 10,000 routes of one scope take 2.2 s of CPU time, and 0.4 s with
// these scopes. Packets take the same way with any of them.
func (f family) routeScope() uint8 {
	network, subnet := f.network.Masked().Addr(), f.subnet.Masked().Addr()
	if f.v6 || !subnet.Is4() || !network.Is4() {
		return ctrl.ScopeGlobal
	}
	first, this := network.As4(), subnet.As4()
	distance := binary.BigEndian.Uint32(this[:]) - binary.BigEndian.Uint32(first[:])
	number := uint64(distance) >> (32 - f.subnet.Bits())
	return ctrl.ScopeGlobal + uint8(number/subnetsPerScope%routeScopes)
}

// peerSubnet is a peer's subnet in one family.
type peerSubnet struct {
	family
	lease lease.Lease
}

// startPlan starts a wanted state. It returns the subnets of the other nodes with this backend
// type, in the families that self has. Nodes with another type are recorded as unreachable.
func startPlan(n lease.Network, leaseType string, self lease.Lease, all []lease.Lease) (ctrl.State,
	[]peerSubnet) {
	s := ctrl.State{Networks: networks(n)}
	own := map[bool]netip.Addr{} // this node's public addresses, by family
	for _, f := range families(n, self) {
		own[f.v6] = f.public
	}
	var peers []peerSubnet
	for _, l := range all {
		if l.Overlaps(self) {
			continue
		}
		for _, f := range families(n, l) {
			p := peerSubnet{f, l}
			if f.public.IsValid() {
				s.FlannelRoutes = append(s.FlannelRoutes,
					ctrl.FlannelRoute{Dst: f.subnet.Masked(), Via: f.public})
			}
			public, enabled := own[f.v6]
			if !enabled {
				continue
			}
			if err := checkPeer(s.Networks, leaseType, public, p); err != nil {
				unreachable(&s, p, err)
				continue
			}
			peers = append(peers, p)
		}
	}
	return s, peers
}

// checkPeer returns the reason why no backend can reach a peer. own is this node's public address.
func checkPeer(networks []netip.Prefix, leaseType string, own netip.Addr, p peerSubnet) error {
	switch {
	case !ctrl.Contains(networks, p.subnet):
		// A lease of an earlier config or of a misbehaving node. Only state inside the networks is
		// owned.
		return fmt.Errorf("%v is not inside network %v", p.subnet, p.network)
	case typeName(p.lease.BackendType) != typeName(leaseType):
		return fmt.Errorf("backend is %s, this node's is %s", typeName(p.lease.BackendType),
			typeName(leaseType))
	case !p.public.IsValid():
		return errors.New("lease has no public address in this family")
	case p.public == own && leaseType != "wireguard" && leaseType != "extension":
		// WireGuard peers behind one NAT differ by port.
		return fmt.Errorf("has this node's own public address %v: set --iface or --public-ip", own)
	}
	return nil
}

// typeName returns a lease's backend type for messages; the empty type means udp.
func typeName(leaseType string) string {
	if leaseType == "" {
		return "udp"
	}
	return leaseType
}

// unreachable records that a peer cannot be reached.
func unreachable(s *ctrl.State, p peerSubnet, reason error) {
	node := p.lease.Node
	if node == "" {
		node = p.lease.Public().String()
	}
	s.Unreachable = append(s.Unreachable, ctrl.Unreachable{Node: node, Subnet: p.subnet,
		Reason: reason.Error()})
}

// inRange checks a number of the config.
func inRange(key string, v, low, high int) error {
	if v < low || v > high {
		return fmt.Errorf("config key %s is %d, want %d to %d", key, v, low, high)
	}
	return nil
}

// deviceMTU returns the MTU of an overlay device: the underlay's without the overhead. The config
// may set an MTU below the interface's, for a path that carries less; a larger one could not leave
// the interface. The kernel assigns no IPv6 address to a device with an MTU below the IPv6 minimum.
func deviceMTU(n lease.Network, l LocalNode, configured, overhead int) (int, error) {
	mtu, source := l.Iface.MTU, "of interface "+l.Iface.Name
	if configured != 0 && configured < mtu {
		mtu, source = configured, "of the config"
	}
	switch rest := mtu - overhead; {
	case n.IPv6Network.IsValid() && rest < encap.MinMTU6:
		return 0, ipv6MTUError{mtu, source, overhead}
	case rest < encap.MinMTU4:
		return 0, fmt.Errorf("MTU %d %s leaves less than the %d bytes that IPv4 needs, "+
			"after %d of overhead", mtu, source, encap.MinMTU4, overhead)
	default:
		return rest, nil
	}
}

// ipv6MTUError is the error of deviceMTU if there is no room for IPv6.
type ipv6MTUError struct {
	mtu      int
	source   string
	overhead int
}

// Error names the MTU and its source.
func (e ipv6MTUError) Error() string {
	return fmt.Sprintf("MTU %d %s leaves less than the %d bytes that IPv6 needs, "+
		"after %d of overhead", e.mtu, e.source, encap.MinMTU6, e.overhead)
}
