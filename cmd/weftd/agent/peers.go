package agent

import (
	"cmp"
	"net/netip"

	"weft/ctrl"
	"weft/dataplane/fib"
	"weft/lease"
)

// peerLeases returns the leases of other nodes. A lease that overlaps this node's is left out, such
// as that of a node which claimed the subnet after this node's lease had expired: local pods come
// first.
func (a *agent) peerLeases() []lease.Lease {
	var peers []lease.Lease
	for _, l := range a.state.All {
		if !l.Overlaps(a.self) {
			peers = append(peers, l)
		}
	}
	return peers
}

// engineNodes converts leases to nodes of the engine, without unreachable subnets. Leases have no
// port: all nodes of a udp network use the same one.
func engineNodes(leases []lease.Lease, unreachable map[netip.Prefix]string, port uint16) []fib.Node {
	var nodes []fib.Node
	for _, l := range leases {
		if n := engineNode(l, unreachable, port); len(n.Prefixes) > 0 {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

func engineNode(l lease.Lease, unreachable map[netip.Prefix]string, port uint16) fib.Node {
	n := fib.Node{Name: l.Node, Endpoint: netip.AddrPortFrom(l.Public(), port)}
	for _, p := range []netip.Prefix{l.Subnet, l.Subnet6} {
		if p.IsValid() && unreachable[p] == "" {
			n.Prefixes = append(n.Prefixes, p)
		}
	}
	return n
}

// nodeStatuses converts leases to entries of the status. unreachable maps subnets to reasons.
func nodeStatuses(leases []lease.Lease, unreachable map[netip.Prefix]string) []nodeStatus {
	var nodes []nodeStatus
	for _, l := range leases {
		nodes = append(nodes, nodeStatus{
			Name: l.Node, Subnet: l.Subnet, Subnet6: l.Subnet6, Public: l.Public(),
			Unreachable: cmp.Or(unreachable[l.Subnet], unreachable[l.Subnet6]),
		})
	}
	return nodes
}

// leaseAttrs returns the attributes of this node's lease.
func leaseAttrs(i ctrl.Iface, spec ctrl.Spec) lease.Attrs {
	return lease.Attrs{
		PublicIP: i.Public, PublicIPv6: i.Public6,
		BackendType: spec.LeaseType, BackendData: spec.Data, BackendV6Data: spec.DataV6,
	}
}

// bindAddress returns the local address of the engine's sockets: the interface's own address, which
// behind NAT is not the public one.
func bindAddress(i ctrl.Iface, spec ctrl.Spec) netip.AddrPort {
	addr := i.Addr
	if !addr.IsValid() {
		addr = i.Addr6
	}
	return netip.AddrPortFrom(addr, uint16(spec.Port))
}

// listenAddrs returns the local UDP addresses to which other nodes send encapsulated packets.
func listenAddrs(i ctrl.Iface, spec ctrl.Spec, plan ctrl.State) []netip.AddrPort {
	var addrs []netip.AddrPort
	if spec.Userspace {
		addrs = append(addrs, bindAddress(i, spec))
	}
	for _, p := range plan.FOU {
		addrs = append(addrs, netip.AddrPortFrom(i.Addr, uint16(p.Port)))
	}
	for _, l := range plan.Links {
		if l.Kind == ctrl.KindVXLAN {
			addrs = append(addrs, netip.AddrPortFrom(l.VXLAN.Local, uint16(l.VXLAN.Port)))
		}
	}
	return addrs
}
