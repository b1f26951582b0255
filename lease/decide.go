package lease

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// fate is what a list says about a lease.
type fate int

const (
	missing fate = iota
	ours
	taken // by another node
)

// fateOf looks for self in a list. want is what is to be published, which may have arrived there already. For taken
// it returns the lease as the list has it.
func fateOf(self Lease, want Attrs, list []Lease) (fate, Lease) {
	for _, l := range list {
		switch {
		case !l.SameSubnets(self):
		case l.SameNode(self.Attrs) || l.SameNode(want):
			return ours, l
		default:
			return taken, l
		}
	}
	return missing, Lease{}
}

// wiped reports whether a list does not continue the ones before it: the revision went back, or our own lease is
// missing long before its expiry (a wiped store may have caught up with the revision, and an operator who deletes all
// leases is no better).
func wiped(before State, revision int64, own fate, now time.Time) bool {
	unexpired := before.Self.Expires.IsZero() || now.Before(before.Self.Expires)
	return revision < before.Revision || before.Held && own == missing && unexpired
}

// renewAt is when to renew l: a margin before its expiry, or after half of the time that is left if that is no longer
// than the margin. Zero if l never expires. It is a time by both clocks if now is.
func renewAt(l Lease, now time.Time, margin time.Duration) time.Time {
	if l.Expires.IsZero() {
		return time.Time{}
	}
	left := l.Expires.Sub(now)
	if left > margin {
		return now.Add(left - margin)
	}
	return now.Add(left / 2)
}

// passed reports whether t has come by either of the two clocks that t and now carry: the wall clock may be set back,
// and the monotonic one stands still while the machine sleeps. Too early costs a request, too late the lease.
func passed(t, now time.Time) bool {
	return !now.Before(t) || !now.Round(0).Before(t.Round(0))
}

// Bounds of the pauses between tries: flannel's.
const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 5 * time.Second
)

// backoff doubles its pauses from backoffMin to backoffMax. The zero backoff begins.
type backoff struct{ last time.Duration }

// next is the next pause, with up to half of it left out by chance, so that nodes do not come back in step.
func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, backoffMin), backoffMax)
	return b.last - rand.N(b.last/2)
}

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

// Compare orders leases by subnet, the order of a Snapshot.
func Compare(a, b Lease) int {
	return cmp.Or(a.Subnet.Compare(b.Subnet), a.Subnet6.Compare(b.Subnet6))
}
