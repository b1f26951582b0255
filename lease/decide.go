package lease

import (
	"cmp"
	"math/rand/v2"
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
// than the margin. Zero if l never expires.
func renewAt(l Lease, now time.Time, margin time.Duration) time.Time {
	if l.Expires.IsZero() {
		return time.Time{}
	}
	if at := l.Expires.Add(-margin); at.After(now) {
		return at
	}
	return now.Add(l.Expires.Sub(now) / 2)
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

// roster keeps leases for a while that vanished when the store lost data: their nodes are alive and will claim again.
type roster struct {
	grace time.Duration
	kept  []Lease
	until time.Time // zero: none is kept
}

// keep makes all leases stay for the grace, whatever the next lists say.
func (r *roster) keep(all []Lease, now time.Time) {
	if r.grace > 0 {
		r.kept, r.until = all, now.Add(r.grace)
	}
}

// merge returns the list together with what is kept. A lease is let go as soon as its node is back or its subnet is
// another's. It changes no list that it was given or has returned.
func (r *roster) merge(list []Lease) []Lease {
	replaced := func(k Lease) bool {
		return slices.ContainsFunc(list, func(l Lease) bool { return l.Overlaps(k) || l.SameNode(k.Attrs) })
	}
	r.kept = slices.DeleteFunc(slices.Clone(r.kept), replaced)
	if len(r.kept) == 0 {
		r.until = time.Time{}
		return list
	}
	all := append(slices.Clone(list), r.kept...)
	slices.SortFunc(all, Compare)
	return all
}

// expire lets all kept peers go when their time is over, and reports whether it did.
func (r *roster) expire(now time.Time) bool {
	if r.until.IsZero() || now.Before(r.until) {
		return false
	}
	r.kept, r.until = nil, time.Time{}
	return true
}

// Compare orders leases by subnet, the order of a Snapshot.
func Compare(a, b Lease) int {
	return cmp.Or(a.Subnet.Compare(b.Subnet), a.Subnet6.Compare(b.Subnet6))
}
