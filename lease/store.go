package lease

import (
	"context"
	"net/netip"
)

// Snapshot holds all leases of the store at one moment, including this node's. It is not modified
// after delivery.
type Snapshot struct {
	// Revision grows with every change of the store. A smaller revision than before means that the
	// store's data was wiped or restored.
	Revision int64
	Leases   Set
	// RenewNow reports that another client rewrote this node's lease, so that its expiry is no
	// longer the one that Claim or Renew returned. The lease must be renewed at once.
	RenewNow bool
}

// Request describes the lease that a node wants.
type Request struct {
	Network Network
	Attrs   Attrs
	Node    string // host name
	// Previous and Previous6 are the node's previous subnets (from subnet.env); zero if none.
	Previous, Previous6 netip.Prefix
	// Candidates is the number of free subnets that Choose draws from. The default is Candidates.
	Candidates int
}

// Store keeps the leases of all nodes. The etcd, file and kube stores implement it and pass
// storetest.Run.
//
// One goroutine calls Claim and Renew; another calls Watch concurrently. Every call returns soon
// after its context ends, and each call has its own timeout for an unresponsive store.
type Store interface {
	// Network reads the network config. It has passed Check, or CheckRanges if the cluster
	// allocates the subnets (kube).
	Network(ctx context.Context) (Network, error)
	// Claim obtains a lease: the node's existing one, else the previous subnet, else a free subnet.
	// It fails with ErrNoSubnet, ErrInUse or an error of the store.
	Claim(ctx context.Context, r Request) (Lease, error)
	// Renew writes l.Attrs and extends the lease. It fails with ErrLost if the lease no longer
	// exists or belongs to another node.
	Renew(ctx context.Context, l Lease) (Lease, error)
	// Watch delivers the complete list at once and again after each change, one call at a time. If
	// the list may be stale (connection lost, history compacted, data wiped), it returns an error
	// and the caller calls it again. It returns nil only after ctx has ended.
	Watch(ctx context.Context, deliver func(Snapshot)) error
}
