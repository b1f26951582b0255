package agent

import (
	"iter"
	"maps"
	"net/netip"

	"weft/cmd/control"
	"weft/ctrl"
	"weft/dataplane/fib"
	"weft/lease"
	"weft/lease/ordered"
)

// peerView is the agent's view of the other nodes under one plan. It is never modified, so that the
// HTTP server and the conflict checker may read it at any time; the next one is made from the
// difference of two plans.
type peerView struct {
	self   lease.Lease
	leases lease.Set // all, including this node's
	plan   ctrl.Plan
	port   uint16 // of the packet engine
	// The reasons why subnets are unreachable: the plan does not reach them, the host's routes cut
	// them off, or lead elsewhere. The engine has no nodes for the first two.
	unplanned, cut, diverted reasons
	unreachable              int // number of nodes with a reason
}

// reasons maps subnets to the reasons why they are unreachable.
type reasons map[netip.Prefix]string

// next returns the view of a later plan.
func (v *peerView) next(n peerView) *peerView {
	n.unplanned = v.unplanned.update(v.plan, n.plan)
	if len(n.unplanned)+len(n.cut)+len(n.diverted) > 0 {
		for l := range n.peers() {
			if n.reason(l) != "" {
				n.unreachable++
			}
		}
	}
	return &n
}

// update returns the reasons of a later plan. It modifies a copy, and only if some have changed.
func (r reasons) update(before, after ctrl.Plan) reasons {
	var gone, added []ctrl.Unreachable
	for b, a := range ordered.Diff(before.Parts, after.Parts) {
		if b != nil {
			gone = append(gone, b.Unreachable...)
		}
		if a != nil {
			added = append(added, a.Unreachable...)
		}
	}
	if len(gone)+len(added) == 0 {
		return r
	}
	now := maps.Clone(r)
	if now == nil {
		now = reasons{}
	}
	for _, u := range gone {
		delete(now, u.Subnet)
	}
	for _, u := range added {
		now[u.Subnet] = u.Reason
	}
	return now
}

// peers iterates over the leases of other nodes. A lease that overlaps this node's is left out,
// such as that of a node which claimed the subnet after this node's lease had expired: local pods
// come first.
func (v *peerView) peers() iter.Seq[*lease.Lease] {
	return func(yield func(*lease.Lease) bool) {
		for l := range v.leases.All() {
			if !l.Overlaps(v.self) && !yield(l) {
				return
			}
		}
	}
}

// subnetReason returns the reason why a subnet is unreachable; empty if it is reachable.
func (v *peerView) subnetReason(p netip.Prefix) string {
	for _, r := range []reasons{v.diverted, v.cut, v.unplanned} {
		if reason := r[p]; reason != "" {
			return reason
		}
	}
	return ""
}

// reason returns the reason why one of a node's subnets is unreachable; empty if all are reachable.
func (v *peerView) reason(l *lease.Lease) string {
	if reason := v.subnetReason(l.Subnet); reason != "" {
		return reason
	}
	return v.subnetReason(l.Subnet6)
}

// statuses returns the entries of the status.
func (v *peerView) statuses() []control.Node {
	nodes := []control.Node{}
	if v == nil {
		return nodes
	}
	for l := range v.peers() {
		nodes = append(nodes, control.Node{
			Name: l.Node, Host: l.Host, Subnet: l.Subnet, Subnet6: l.Subnet6, Public: l.Public(),
			Unreachable: v.reason(l),
		})
		if n := &nodes[len(nodes)-1]; l.PublicIPv6 != n.Public {
			n.Public6 = l.PublicIPv6
		}
	}
	return nodes
}

// engineNode converts a lease to a node of the engine, without subnets that it cannot reach. Leases
// have no port: all nodes of a udp network use the same one.
func (v *peerView) engineNode(l *lease.Lease) fib.Node {
	n := fib.Node{Name: l.Node, Endpoint: netip.AddrPortFrom(l.Public(), v.port),
		Fast: l.FastPath}
	for _, p := range []netip.Prefix{l.Subnet, l.Subnet6} {
		if p.IsValid() && v.unplanned[p] == "" && v.cut[p] == "" {
			n.Prefixes = append(n.Prefixes, p)
		}
	}
	return n
}

// engineNodes returns all nodes for the engine.
func (v *peerView) engineNodes() []fib.Node {
	var nodes []fib.Node
	for l := range v.peers() {
		if n := v.engineNode(l); len(n.Prefixes) > 0 {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// engineChange returns the engine's nodes to remove and to add since an earlier view. ok is false
// if all must be set again.
func (v *peerView) engineChange(before *peerView) (remove, add []fib.Node, ok bool) {
	if !before.self.Equal(v.self) || before.port != v.port || !maps.Equal(before.cut, v.cut) {
		return nil, nil, false
	}
	for b, a := range ordered.Diff(before.plan.Parts, v.plan.Parts) {
		remove = before.appendNode(remove, b)
		add = v.appendNode(add, a)
	}
	return remove, add, true
}

// appendNode appends the engine's node of a part, which may be nil.
func (v *peerView) appendNode(nodes []fib.Node, p *ctrl.Part) []fib.Node {
	if p == nil {
		return nodes
	}
	l, ok := v.leases.Get(&lease.Lease{Subnet: p.Subnet, Subnet6: p.Subnet6, Node: p.Node})
	if !ok {
		return nodes
	}
	if n := v.engineNode(l); len(n.Prefixes) > 0 {
		nodes = append(nodes, n)
	}
	return nodes
}

// setEngine passes the nodes to the engine.
func (a *agent) setEngine(before *peerView) {
	if a.engine == nil {
		return
	}
	if before != nil {
		if remove, add, ok := a.view.engineChange(before); ok {
			if len(remove)+len(add) > 0 {
				a.engine.ChangeNodes(remove, add)
			}
			return
		}
	}
	self := (&peerView{port: a.view.port}).engineNode(&a.self)
	a.engine.SetNodes(self, a.view.engineNodes())
}
