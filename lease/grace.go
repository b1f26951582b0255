package lease

import (
	"net/netip"
	"slices"
	"time"
)

// roster keeps leases that vanished when the store lost data. Their nodes are alive and will claim again, but a flannel
// only when it renews, up to a day later.
type roster struct {
	grace time.Duration
	kept  []keptLease // ordered by until
}

type keptLease struct {
	Lease
	until time.Time
}

// keep makes all leases stay for the grace, whatever the next lists say. One that is kept already gains no time.
func (r *roster) keep(all []Lease, now time.Time) {
	if r.grace < 0 {
		return
	}
	known := make(map[[2]netip.Prefix]bool, len(r.kept))
	for _, k := range r.kept {
		known[[2]netip.Prefix{k.Subnet, k.Subnet6}] = true
	}
	for _, l := range all {
		if !known[[2]netip.Prefix{l.Subnet, l.Subnet6}] {
			r.kept = append(r.kept, keptLease{l, now.Add(r.grace)})
		}
	}
}

// merge returns the list together with what is kept. A lease is let go as soon as its node is back or its subnet is
// another's: displaced are the latter. It changes no list that it was given or has returned.
func (r *roster) merge(list []Lease) (all, displaced []Lease) {
	if len(r.kept) == 0 {
		return list, nil
	}
	present := newCensus(list)
	r.kept = slices.DeleteFunc(slices.Clone(r.kept), func(k keptLease) bool {
		back, covered := present.has(k.Attrs), present.overlaps(k.Lease)
		if covered && !back {
			displaced = append(displaced, k.Lease)
		}
		return back || covered
	})
	all = append(slices.Clone(list), r.leases()...)
	slices.SortFunc(all, Compare)
	return all, displaced
}

// leases lists what is kept.
func (r *roster) leases() []Lease {
	leases := make([]Lease, 0, len(r.kept))
	for _, k := range r.kept {
		leases = append(leases, k.Lease)
	}
	return leases
}

// forget lets one lease go.
func (r *roster) forget(l Lease) {
	r.kept = slices.DeleteFunc(r.kept, func(k keptLease) bool { return k.SameSubnets(l) })
}

// expire lets the leases go whose time is over, and returns them.
func (r *roster) expire(now time.Time) []Lease {
	over := roster{kept: r.kept[:r.expired(now)]}
	r.kept = r.kept[len(over.kept):]
	return over.leases()
}

// expired counts the leases whose time is over.
func (r *roster) expired(now time.Time) int {
	n := slices.IndexFunc(r.kept, func(k keptLease) bool { return now.Before(k.until) })
	if n < 0 {
		return len(r.kept)
	}
	return n
}

// until is when the next lease expires, zero if none is kept.
func (r *roster) until() time.Time {
	if len(r.kept) == 0 {
		return time.Time{}
	}
	return r.kept[0].until
}
