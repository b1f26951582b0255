package lease

import "time"

// leaseStatus is the status of this node's lease in a list.
type leaseStatus int

const (
	leaseMissing leaseStatus = iota
	leaseOwn
	leaseTaken // by another node
)

// statusIn returns the status of self in list. It accepts both the attributes of self and
// published, which may have been written already. For leaseTaken it also returns the other node's
// lease.
func statusIn(list Set, self Lease, published Attrs) (leaseStatus, Lease) {
	for l := range list.From(&Lease{Subnet: self.Subnet, Subnet6: self.Subnet6}) {
		switch {
		case !l.SameSubnets(self):
			return leaseMissing, Lease{}
		case l.SameNode(self.Attrs) || l.SameNode(published):
			return leaseOwn, *l
		default:
			return leaseTaken, *l
		}
	}
	return leaseMissing, Lease{}
}

// storeLostData reports whether a list does not continue the previous ones: the revision decreased,
// or this node's lease is missing long before its expiry. The second test is needed because a wiped
// store may have caught up with the revision; an operator who deletes all leases looks the same.
func storeLostData(before State, revision int64, own leaseStatus, now time.Time) bool {
	unexpired := before.Self.Expires.IsZero() || now.Before(before.Self.Expires)
	return revision < before.Revision || before.Held && own == leaseMissing && unexpired
}
