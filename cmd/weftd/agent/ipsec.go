package agent

import (
	"cmp"
	"fmt"
	"net/netip"

	"weft/cmd/control"
	"weft/ctrl/ike"
)

// ipsecCondition is met while charon runs. Nodes without a security association are a note, as
// unreachable nodes are in nodesCondition, unless all of them refuse this node: the fault is then
// probably its own.
func (s *snapshot) ipsecCondition() control.Condition {
	status := s.ike.Status()
	c := control.Condition{Name: "ipsec", OK: status.Err == nil}
	if !c.OK {
		c.Reason = status.Err.Error()
		return c
	}
	missing, refused, reason := 0, 0, ""
	for _, p := range status.Peers {
		if !p.Established.IsZero() {
			continue
		}
		missing++
		reason = cmp.Or(reason, p.Err)
		if p.Refused {
			refused, reason = refused+1, p.Err
		}
	}
	if missing > 0 {
		c.Reason = fmt.Sprintf("%d of %d security associations missing", missing, len(status.Peers))
		if reason != "" {
			c.Reason += ": " + reason
		}
	}
	c.OK = refused == 0 || refused < len(status.Peers)
	return c
}

// addIPsec adds the state of the security associations to the status.
func (s *snapshot) addIPsec(status *control.Status) {
	if s.ike == nil {
		return
	}
	i := s.ike.Status()
	status.IPsec = &control.IPsec{Charon: i.Charon, Version: i.Version, PID: i.PID, Since: i.Since,
		Restarts: i.Restarts, Error: errText(i.Err)}
	peers := make(map[netip.Prefix]ike.Peer, len(i.Peers))
	for a, p := range i.Peers {
		peers[a.RemoteNet] = p
		if p.Established.IsZero() {
			status.IPsec.Missing++
		} else {
			status.IPsec.Established++
		}
	}
	for n := range status.Nodes {
		node := &status.Nodes[n]
		node.IPsec = newAssociation(node, peers, node.Subnet)
		node.IPsec6 = newAssociation(node, peers, node.Subnet6)
	}
}

// newAssociation returns the state of the association with a node's subnet, nil if none is wanted.
func newAssociation(
	node *control.Node, peers map[netip.Prefix]ike.Peer, subnet netip.Prefix,
) *control.Association {
	p, wanted := peers[subnet]
	if !wanted {
		return nil
	}
	if p.Established.IsZero() {
		node.Unreachable = cmp.Or(node.Unreachable,
			"no IPsec security association: "+cmp.Or(p.Err, "not negotiated yet"))
	}
	return &control.Association{Established: p.Established, UDP: p.Encap, Rekeys: p.Rekeys,
		Rekeyed: p.Rekeyed, Error: p.Err, ErrorAt: p.ErrAt}
}
