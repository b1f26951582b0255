package lease

import (
	"net/netip"
	"slices"
	"time"
)

// gracePeers retains leases that vanished when the store lost data. Their nodes are alive and will
// claim again, but flannel does so only when it renews, up to a day later.
type gracePeers struct {
	grace time.Duration
	kept  []gracePeer // ordered by until
}

type gracePeer struct {
	*Lease
	until time.Time
}

// keep retains all leases for the grace period, even if later lists lack them. It does not extend
// the time of leases that are retained already.
func (g *gracePeers) keep(all Set, now time.Time) {
	if g.grace < 0 {
		return
	}
	known := make(map[[2]netip.Prefix]bool, len(g.kept))
	for _, k := range g.kept {
		known[[2]netip.Prefix{k.Subnet, k.Subnet6}] = true
	}
	for l := range all.All() {
		if !known[[2]netip.Prefix{l.Subnet, l.Subnet6}] {
			g.kept = append(g.kept, gracePeer{l, now.Add(g.grace)})
		}
	}
}

// merge returns list plus the retained leases. It drops a retained lease if its node is listed
// again or if a listed lease overlaps it; the latter are returned as displaced.
func (g *gracePeers) merge(list Set) (all Set, displaced []Lease) {
	if len(g.kept) == 0 {
		return list, nil
	}
	present := newLeaseIndex(list)
	g.kept = slices.DeleteFunc(slices.Clone(g.kept), func(k gracePeer) bool {
		back, covered := present.hasNode(k.Attrs), present.overlaps(*k.Lease)
		if covered && !back {
			displaced = append(displaced, *k.Lease)
		}
		return back || covered
	})
	kept := make([]*Lease, 0, len(g.kept))
	for _, k := range g.kept {
		kept = append(kept, k.Lease)
	}
	return list.With(nil, kept), displaced
}

// leases returns the retained leases.
func (g *gracePeers) leases() []Lease {
	leases := make([]Lease, 0, len(g.kept))
	for _, k := range g.kept {
		leases = append(leases, *k.Lease)
	}
	return leases
}

// remove drops the retained lease with the subnets of l.
func (g *gracePeers) remove(l Lease) {
	g.kept = slices.DeleteFunc(g.kept, func(k gracePeer) bool { return k.SameSubnets(l) })
}

// expire drops and returns the leases whose grace period has ended.
func (g *gracePeers) expire(now time.Time) []Lease {
	expired := gracePeers{kept: g.kept[:g.countExpired(now)]}
	g.kept = g.kept[len(expired.kept):]
	return expired.leases()
}

// countExpired counts the leases whose grace period has ended.
func (g *gracePeers) countExpired(now time.Time) int {
	n := slices.IndexFunc(g.kept, func(k gracePeer) bool { return now.Before(k.until) })
	if n < 0 {
		return len(g.kept)
	}
	return n
}

// nextExpiry returns the time at which the next grace period ends; zero if no lease is retained.
func (g *gracePeers) nextExpiry() time.Time {
	if len(g.kept) == 0 {
		return time.Time{}
	}
	return g.kept[0].until
}
