package lease

import "time"

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
