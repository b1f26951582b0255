package agent

import (
	"cmp"
	"net/netip"

	"weft/cmd/control"
	"weft/ctrl/backend"
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
func engineNodes(
	leases []lease.Lease, unreachable map[netip.Prefix]string, port uint16,
) []fib.Node {
	var nodes []fib.Node
	for _, l := range leases {
		if n := engineNode(l, unreachable, port); len(n.Prefixes) > 0 {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

func engineNode(l lease.Lease, unreachable map[netip.Prefix]string, port uint16) fib.Node {
	n := fib.Node{Name: l.Node, Endpoint: netip.AddrPortFrom(l.Public(), port),
		Fast: backend.TakesFastPath(l.Attrs)}
	for _, p := range []netip.Prefix{l.Subnet, l.Subnet6} {
		if p.IsValid() && unreachable[p] == "" {
			n.Prefixes = append(n.Prefixes, p)
		}
	}
	return n
}

// nodeStatuses converts leases to entries of the status. unreachable maps subnets to reasons.
func nodeStatuses(leases []lease.Lease, unreachable map[netip.Prefix]string) []control.Node {
	var nodes []control.Node
	for _, l := range leases {
		nodes = append(nodes, control.Node{
			Name: l.Node, Subnet: l.Subnet, Subnet6: l.Subnet6, Public: l.Public(),
			Unreachable: cmp.Or(unreachable[l.Subnet], unreachable[l.Subnet6]),
		})
	}
	return nodes
}
