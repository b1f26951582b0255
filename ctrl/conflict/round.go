package conflict

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weft/ctrl"
)

// The numbers of the routing tables that every host has (RT_TABLE_... in linux/rtnetlink.h).
const (
	mainTable  = 254
	localTable = 255
)

// matcher asks the kernel for routes.
type matcher interface {
	Match([]ctrl.RouteQuery) []ctrl.RouteMatch
	RulesFor(a netip.Addr, table int) ([]int, error)
}

// round is one check of a query.
type round struct {
	Result
	q       Query
	match   matcher
	checked map[netip.Addr]bool // addresses outside the overlay
}

func newRound(q Query) *round {
	return &round{q: q, checked: map[netip.Addr]bool{}, Result: Result{
		Cut: map[netip.Prefix]string{}, Diverted: map[netip.Prefix]string{},
	}}
}

func (r *Result) equal(s *Result) bool {
	return slices.Equal(r.Taken, s.Taken) && maps.Equal(r.Cut, s.Cut) &&
		maps.Equal(r.Diverted, s.Diverted)
}

// source returns this node's address of a's family: on the overlay for packets of pods, else on the
// underlay.
func (r *round) source(a netip.Addr, overlay bool) netip.Addr {
	for _, s := range r.q.Sources {
		inside := slices.ContainsFunc(r.q.Subnets, func(p netip.Prefix) bool { return p.Contains(s) })
		if s.Is4() == a.Is4() && inside == overlay {
			return s
		}
	}
	return netip.Addr{}
}

// query returns the query for packets of this host, or of its pods, to an address.
func (r *round) query(a netip.Addr, overlay bool) ctrl.RouteQuery {
	return ctrl.RouteQuery{Dst: a, Src: r.source(a, overlay)}
}

func (r *round) targets() {
	for _, t := range r.q.Targets {
		r.target(t, r.matchOne(t.Addr))
	}
}

func (r *round) matchOne(a netip.Addr) ctrl.RouteMatch {
	return r.match.Match([]ctrl.RouteQuery{r.query(a, false)})[0]
}

// target checks an address outside the overlay with the route to it, and the gateway to it. An
// address without a route is not a conflict. It returns the reason if one of this node's routes
// takes the packets.
func (r *round) target(t Target, m ctrl.RouteMatch) (reason string) {
	if m.Err != nil || m.Local {
		return ""
	}
	switch {
	case m.Protocol == ctrl.RouteProtocol || slices.Contains(r.q.Devices, m.Dev):
		reason = fmt.Sprintf("packets to %s are taken by this daemon's own %s", t, routeText(m))
	case m.Dst.Bits() > 0 && ctrl.Contains(r.q.Subnets, m.Dst):
		reason = fmt.Sprintf("%s is in the subnet of this node's pods (%s)", t, routeText(m))
	}
	if r.checked[t.Addr] {
		return reason
	}
	r.checked[t.Addr] = true
	switch {
	case reason != "":
		r.Taken = append(r.Taken, reason)
	case m.Via.IsValid() && !r.checked[m.Via]:
		r.target(Target{"gateway to " + t.Name, m.Via}, r.matchOne(m.Via))
	}
	return reason
}

// peers checks other nodes and their pods.
func (r *round) peers(peers []Peer) {
	queries := make([]ctrl.RouteQuery, 0, 2*len(peers))
	for _, p := range peers {
		queries = append(queries, r.query(p.Public, false), r.query(podGateway(p), true))
	}
	matches := r.match.Match(queries)
	for i, p := range peers {
		if reason := r.target(Target{"node " + p.Name, p.Public}, matches[2*i]); reason != "" {
			r.Cut[p.Subnet] = reason
		} else if reason := r.diverted(p, matches[2*i+1]); reason != "" {
			r.Diverted[p.Subnet] = reason
		}
	}
}

// podGateway returns the gateway of a peer's pods.
func podGateway(p Peer) netip.Addr { return p.Subnet.Masked().Addr().Next() }

// diverted returns the reason why packets to a peer's pods, which take the route m, do not take the
// overlay's route; empty if they do.
func (r *round) diverted(p Peer, m ctrl.RouteMatch) string {
	pod := podGateway(p)
	switch {
	case m.Err != nil:
		return "no route to its pods: " + m.Err.Error()
	case m.Local:
		return fmt.Sprintf("%s on this node has its address %s: delete the address", m.Dev, pod)
	case IntoOverlay(m, p.Public, r.q.Devices):
		return ""
	}
	return fmt.Sprintf("packets to its pods leave by another program's %s%s", routeText(m),
		r.rulesText(pod, m.Table))
}

// IntoOverlay reports whether a route leads packets for a node's pods into the overlay: one of
// Weft's, one by an overlay device, or one via the node itself. public is invalid if the backend
// does not route that way.
func IntoOverlay(m ctrl.RouteMatch, public netip.Addr, devices []string) bool {
	ours := m.Protocol == ctrl.RouteProtocol && (m.Table == 0 || m.Table == mainTable)
	return ours || slices.Contains(devices, m.Dev) || m.Via.IsValid() && m.Via == public
}

// rulesText names the policy rules that select a table other than the main one.
func (r *round) rulesText(a netip.Addr, table int) string {
	if table == 0 || table == mainTable || table == localTable {
		return ""
	}
	priorities, err := r.match.RulesFor(a, table)
	if err != nil || len(priorities) == 0 {
		return ""
	}
	return fmt.Sprintf(" (ip rule %d)", priorities[0])
}

// routeText describes a route in the words of ip route.
func routeText(m ctrl.RouteMatch) string {
	s := "route " + m.Dst.String()
	if m.Via.IsValid() {
		s += " via " + m.Via.String()
	}
	s += " dev " + m.Dev
	if m.Table != 0 && m.Table != mainTable {
		s += fmt.Sprintf(" table %d", m.Table)
	}
	return s
}
