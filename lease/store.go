package lease

import (
	"context"
	"net/netip"
)

// Snapshot is every lease of the store at one moment, our own included. It is never changed after it was delivered.
type Snapshot struct {
	// Revision grows with every change of the store. A smaller one than before says that the store's data was
	// wiped or restored.
	Revision int64
	Leases   []Lease // ordered by subnet
	// RenewNow says that our own lease no longer ends when we said it would, since somebody else has written it: it has
	// to be renewed at once.
	RenewNow bool
}

// Request is what a node asks a store for.
type Request struct {
	Network Network
	Attrs   Attrs
	Node    string // host name
	// Previous and Previous6 are the subnets the node had before (from subnet.env); zero if there were none.
	Previous, Previous6 netip.Prefix
}

// Store keeps the leases of all nodes. The etcd, file and kube stores implement it and pass storetest.Run.
//
// Claim and Renew are called by one goroutine, Watch by another at the same time. Every call returns soon after
// its context ends, and each has limits of its own for a store that does not answer.
type Store interface {
	// Network reads the network config. It has passed Check, or CheckRanges where the cluster cuts the subnets (kube).
	Network(ctx context.Context) (Network, error)
	// Claim takes a lease: the one this node had, else the previous subnet, else a free one. It fails with
	// ErrNoSubnet or ErrInUse, or with the store's own error.
	Claim(ctx context.Context, r Request) (Lease, error)
	// Renew writes l.Attrs and extends the lease. It fails with ErrLost if the lease is gone or another's.
	Renew(ctx context.Context, l Lease) (Lease, error)
	// Watch delivers the whole list at once and again after each change, one call at a time, and returns on any
	// doubt about the list (connection lost, history compacted, data wiped): the caller then calls it again.
	// It returns nil only when ctx has ended.
	Watch(ctx context.Context, deliver func(Snapshot)) error
}
