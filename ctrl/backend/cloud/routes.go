package cloud

import (
	"net/netip"
	"slices"
)

// route is an entry of a cloud's route table.
type route struct {
	dst    netip.Prefix
	id     string // of the provider; may be empty
	target string // next hop, for messages
	local  bool   // the next hop is this node
	usable bool   // false for a black hole
}

// change makes dst point to this node in place of old, or removes old if dst is invalid.
type change struct {
	dst netip.Prefix
	old *route // nil if there is none
}

// adds reports whether the change is for a subnet of the node.
func (c change) adds() bool { return c.dst.IsValid() }

// changes returns the changes that make a route table have one route per subnet of the node, which
// points to it. Routes to this node for other subnets in the networks are of former leases and are
// removed; all others stay.
func changes(have []route, n Node) []change {
	var list []change
	for _, subnet := range n.Subnets {
		list = append(list, changesOf(have, subnet.Masked())...)
	}
	for i, r := range have {
		if r.local && !slices.Contains(n.Subnets, r.dst) && contains(n.Networks, r.dst) {
			list = append(list, change{old: &have[i]})
		}
	}
	return list
}

// changesOf returns the changes for one subnet.
func changesOf(have []route, subnet netip.Prefix) []change {
	var list []change
	there := slices.ContainsFunc(have, func(r route) bool {
		return r.dst == subnet && r.local && r.usable
	})
	put := !there
	for i, r := range have {
		switch {
		case r.dst != subnet || r.local && r.usable:
		case put:
			list = append(list, change{subnet, &have[i]})
			put = false
		default:
			list = append(list, change{old: &have[i]})
		}
	}
	if put {
		list = append(list, change{dst: subnet})
	}
	return list
}

// contains reports whether a prefix is inside one of the networks.
func contains(networks []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool {
		return n.Bits() <= p.Bits() && n.Contains(p.Addr())
	})
}
