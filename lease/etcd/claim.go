package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

const (
	// claimTries bounds the races that one Claim may lose. Each lost race is a subnet won by
	// another node.
	claimTries = 50
	// maxCandidates bounds the free subnets that a claim draws from after lost races.
	maxCandidates = 32 * lease.Candidates
)

// Claim takes a lease; see the package documentation for how.
func (s *Store) Claim(ctx context.Context, r lease.Request) (lease.Lease, error) {
	if !r.Attrs.Public().IsValid() {
		return lease.Lease{}, errors.New("etcd: claim subnet: node has no public IP")
	}
	return withWeftKeys(ctx, s, func(k *weftKeys) (lease.Lease, error) {
		return s.claim(ctx, k, r)
	})
}

func (s *Store) claim(ctx context.Context, k *weftKeys, r lease.Request) (lease.Lease, error) {
	got, err := s.txn(ctx, s.listName(), transaction{then: s.listOps(k)})
	if err != nil {
		return lease.Lease{}, err
	}
	c := &claim{
		request: r, id: s.id, keys: k, ks: s.parseList(k, got.Header, got.Responses[0]),
	}
	if c.former, err = s.former(ctx, k, c.ks, r); err != nil {
		return lease.Lease{}, err
	}
	if c.owners, err = s.ownersOfNode(ctx, c); err != nil {
		return lease.Lease{}, err
	}
	for range claimTries {
		if err := c.decide(s.random); err != nil {
			return lease.Lease{}, err
		}
		got, err := s.commit(ctx, c)
		if err != nil {
			return lease.Lease{}, err
		}
		if !got.Succeeded {
			c.refresh(got.Responses)
			continue
		}
		c.written(got)
		if !c.overlapped() {
			s.keep(c.ks)
			return s.finish(ctx, c, got.Header.Revision), nil
		}
		if err := s.undo(ctx, c, got.Header.Revision); err != nil {
			return lease.Lease{}, err
		}
	}
	s.revokeEmpty(ctx, c.leaseID)
	s.revokeEmpty(ctx, c.ownerLeaseID)
	return lease.Lease{}, fmt.Errorf("etcd: claim subnet: lost %d races in a row", claimTries)
}

// claim is the state of one Claim.
type claim struct {
	request lease.Request
	id      string // of this daemon
	keys    *weftKeys
	ks      *keyspace        // the leases as listed, and changes met since
	former  map[string]bool  // leases of this node with another address
	owners  map[string]owner // of the leases of this node, and of those met since

	// Set by decide:
	lease    lease.Lease
	key      string
	entry    entry   // the key as known; the zero entry if it must be created
	reserved bool    // the key is a reservation: it has no etcd lease and gets none
	replaced []entry // this node's other keys, which the new one replaces

	// Set by commit:
	compared []string // keys, in the order of the responses if the transaction fails
	current  bool     // the key and the node record need no write; their etcd lease is extended

	// Etcd leases, reused by the next attempt.
	leaseID, ownerLeaseID clientv3.LeaseID
	expires               time.Time // of leaseID
}

// ownersOfNode reads the owners of the leases of the requesting node.
func (s *Store) ownersOfNode(ctx context.Context, c *claim) (map[string]owner, error) {
	var names []string
	for name, e := range c.ks.entries {
		if c.former[name] || e.lease.SameNode(c.request.Attrs) {
			names = append(names, name)
		}
	}
	if len(names) == 0 || c.keys == nil {
		return make(map[string]owner), nil
	}
	got, err := s.txn(ctx, "read owner keys", transaction{then: c.keys.getOwners(names...)})
	if err != nil {
		return nil, err
	}
	return c.keys.parseOwners(got.Responses), nil
}

// decide chooses the subnet, and the keys that the transaction compares and replaces. It sends no
// requests.
func (c *claim) decide(random func(int) int) error {
	entries, existing := c.existing()
	choice, err := lease.Choose(c.request, existing, random)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	for _, i := range choice.Own {
		if o := c.owners[entries[i].key]; o.isOther(c.id) {
			return inUse(c.request.Attrs.Public(), entries[i].key, o)
		}
	}
	c.lease = lease.Lease{
		Node:   c.request.Attrs.Public().String(),
		Subnet: choice.Subnet, Subnet6: choice.Subnet6, Attrs: c.keys.published(c.request.Attrs),
	}
	c.key = formatKey(c.lease)
	c.entry, c.reserved, c.replaced = entry{}, false, nil
	own := choice.Own
	// A key in another spelling is replaced.
	if choice.Reuse && entries[own[0]].key == c.key {
		c.entry = entries[own[0]]
		c.reserved = c.entry.leaseID == clientv3.NoLease
		own = own[1:]
	}
	for _, i := range own {
		e := entries[i]
		reserved := e.leaseID == clientv3.NoLease
		if reserved && !c.lease.Overlaps(e.lease) {
			continue // a reservation outside the network config: leave it to the operator
		}
		c.reserved = c.reserved || reserved
		c.replaced = append(c.replaced, e)
	}
	return nil
}

// existing returns the leases that Choose must respect. The former leases of this node have its
// present attributes. A running daemon whose lease is missing keeps its subnet.
func (c *claim) existing() ([]entry, []lease.Lease) {
	entries := c.ks.sorted()
	existing := make([]lease.Lease, 0, len(entries))
	for _, e := range entries {
		l := e.lease
		if c.former[e.key] {
			l.Attrs = c.request.Attrs
		}
		existing = append(existing, l)
	}
	for key, o := range c.owners {
		if _, listed := c.ks.entries[key]; listed || !o.isOther(c.id) {
			continue
		}
		if l, err := parseKey(key); err == nil {
			entries, existing = append(entries, entry{key: key}), append(existing, l)
		}
	}
	return entries, existing
}

// refresh updates the state of the compared keys after a failed transaction, from its responses.
// The next attempt draws from more subnets, as other nodes choose, too.
func (c *claim) refresh(responses []*etcdserverpb.ResponseOp) {
	var put []*mvccpb.KeyValue
	var missing []string
	for i, key := range c.compared {
		kvs := responses[i].GetResponseRange().Kvs
		name, isOwner := c.keys.ownerName(key)
		switch {
		case isOwner && len(kvs) == 0:
			delete(c.owners, name)
		case isOwner:
			c.owners[name] = parseOwner(kvs[0])
		case len(kvs) == 0:
			missing = append(missing, key)
		default:
			put = append(put, kvs[0])
		}
	}
	c.ks.amend(put, missing)
	c.request.Candidates = min(max(2*c.request.Candidates, 2*lease.Candidates), maxCandidates)
}

// written updates the leases after a successful transaction.
func (c *claim) written(got *clientv3.TxnResponse) {
	var missing []string
	for _, e := range c.replaced {
		missing = append(missing, c.ks.subnets+e.key)
	}
	var put []*mvccpb.KeyValue
	for _, r := range got.Responses {
		put = append(put, r.GetResponseRange().GetKvs()...)
	}
	c.ks.amend(put, missing)
}

// overlapped reports whether an older lease of another node overlaps the one just claimed. A lease
// that this node already had is kept in spite of an overlap.
func (c *claim) overlapped() bool {
	if c.entry.mod != 0 {
		return false
	}
	for _, e := range c.ks.entries {
		if e.key != c.key && e.lease.Overlaps(c.lease) {
			return true
		}
	}
	return false
}

// overlapOps returns reads of all keys whose leases may overlap l and that were written since a
// revision. Names have the IPv4 subnet first, so IPv4 needs only some of them, while etcd reads all
// keys for an IPv6 subnet.
func overlapOps(subnets string, l lease.Lease, network netip.Prefix, since int64) []clientv3.Op {
	options := []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithMinModRev(since + 1)}
	if l.Subnet6.IsValid() {
		return []clientv3.Op{clientv3.OpGet(subnets, options...)}
	}
	var ops []clientv3.Op
	for bits := network.Bits(); bits < l.Subnet.Bits(); bits++ {
		wider := netip.PrefixFrom(l.Subnet.Addr(), bits).Masked()
		ops = append(ops, clientv3.OpGet(subnets+formatPart(wider), options...))
	}
	// The others begin with the octets that all addresses of the subnet share.
	octets := strings.SplitAfter(l.Subnet.Addr().String(), ".")
	begin := strings.Join(octets[:min(l.Subnet.Bits()/8, 3)], "")
	return append(ops, clientv3.OpGet(subnets+begin, options...))
}

// commit runs the transaction of the claim.
func (s *Store) commit(ctx context.Context, c *claim) (*clientv3.TxnResponse, error) {
	value, err := formatValue(c.lease.Attrs)
	if err != nil {
		return nil, err
	}
	if err := s.extendCurrent(ctx, c, value); err != nil {
		return nil, err
	}
	if err := s.grantLeases(ctx, c); err != nil {
		return nil, err
	}
	putOwner, err := s.putOwner(c.keys, c.own(0))
	if err != nil {
		return nil, err
	}
	putRecord, err := s.putRecord(c.keys, c.own(0))
	if err != nil {
		return nil, err
	}
	key := s.subnetKey(c.key)
	var t transaction
	t.when, c.compared = []clientv3.Cmp{unchanged(key, c.entry.mod)}, []string{key}
	if c.keys != nil {
		t.when = append(t.when, c.keys.ownerUnchanged(c.key, c.owners[c.key].mod)...)
		c.compared = append(c.compared, c.keys.owners+c.key)
	}
	for _, e := range c.replaced {
		t.when = append(t.when, unchanged(s.subnetKey(e.key), e.mod))
		c.compared = append(c.compared, s.subnetKey(e.key))
		t.then = append(t.then, clientv3.OpDelete(s.subnetKey(e.key)))
		t.then = append(t.then, c.keys.delete(e.key)...)
	}
	for _, key := range c.compared {
		t.otherwise = append(t.otherwise, clientv3.OpGet(key))
	}
	if !c.current {
		t.then = append(append(t.then, c.put(key, string(value))), putRecord...)
		t.then = append(t.then, overlapOps(s.subnets(), c.lease, c.request.Network.Network,
			c.ks.revision)...)
	}
	t.then = append(t.then, putOwner...)
	t.then = append(t.then, c.keys.getNode(c.key)...)
	// A failed request may have been executed, so its etcd leases are not revoked: the next Claim
	// finds the key by its node record.
	return s.txn(ctx, "claim "+key, t)
}

// own returns the lease that is claimed, as written at a revision.
func (c *claim) own(revision int64) ownLease {
	own := ownLease{
		key: c.key, attrs: c.lease.Attrs, node: c.request.Node,
		ownerLeaseID: c.ownerLeaseID, mod: revision,
	}
	switch {
	case c.current:
		own.leaseID, own.mod = c.entry.leaseID, c.entry.mod
	case !c.reserved:
		own.leaseID = c.leaseID
	}
	return own
}

// extendCurrent extends the etcd lease of the key if the key and the node record are as the claim
// would write them: then the start of a daemon changes nothing for other nodes.
func (s *Store) extendCurrent(ctx context.Context, c *claim, value []byte) (err error) {
	c.current = false
	e, want := c.entry, s.recordOf(c.own(0))
	want.leaseID = e.leaseID
	if c.reserved || len(c.replaced) > 0 || !bytes.Equal(e.value, value) ||
		c.keys != nil && c.ks.record(e) != want {
		return nil
	}
	expires := time.Now().Add(leaseTTL)
	if c.current, err = s.extend(ctx, e.leaseID); c.current {
		c.expires = expires
	}
	return err
}

// put returns the write of the lease's key, attached to an etcd lease unless it is a reservation.
func (c *claim) put(key, value string) clientv3.Op {
	if c.reserved {
		return clientv3.OpPut(key, value)
	}
	return clientv3.OpPut(key, value, clientv3.WithLease(c.leaseID))
}

// grantLeases creates the etcd leases that the claim still lacks.
func (s *Store) grantLeases(ctx context.Context, c *claim) error {
	var err error
	if c.leaseID == clientv3.NoLease && !c.reserved && !c.current {
		c.expires = time.Now().Add(leaseTTL)
		if c.leaseID, err = s.grant(ctx, leaseTTL); err != nil {
			return err
		}
		s.setPendingLease(c.leaseID)
	}
	if c.ownerLeaseID == clientv3.NoLease && c.keys != nil {
		c.ownerLeaseID, err = s.grant(ctx, s.ownerTTL)
	}
	return err
}

// undo deletes the keys written at the given revision, unless one has changed since. The next
// attempt prefers the same subnets, so that a family without a conflict keeps its subnet.
func (s *Store) undo(ctx context.Context, c *claim, revision int64) error {
	key := s.subnetKey(c.key)
	c.request.Previous, c.request.Previous6 = c.lease.Subnet, c.lease.Subnet6
	got, err := s.txn(ctx, "undo claim of "+key, transaction{
		when: append(c.keys.ownerUnchanged(c.key, revision), unchanged(key, revision)),
		then: append(c.keys.delete(c.key), clientv3.OpDelete(key)),
	})
	if err == nil && got.Succeeded {
		c.ks.amend(nil, []string{key})
		delete(c.owners, c.key)
	}
	return err
}

// finish records the lease written at the given revision and revokes the etcd leases it no longer
// needs.
func (s *Store) finish(ctx context.Context, c *claim, revision int64) lease.Lease {
	own := c.own(revision)
	s.setOwn(&own)
	if c.reserved {
		s.revokeEmpty(ctx, c.leaseID)
	} else {
		c.lease.Expires = c.expires
	}
	for _, e := range append(slices.Clone(c.replaced), c.entry) {
		if e.leaseID != own.leaseID {
			s.revokeEmpty(ctx, e.leaseID)
		}
	}
	return c.lease
}

// listName names the request of listOps in errors.
func (s *Store) listName() string { return "list leases in " + s.subnets() }

// listOps returns the read of all leases and node records at one revision.
func (s *Store) listOps(k *weftKeys) []clientv3.Op {
	return []clientv3.Op{clientv3.OpGet(s.subnets(), clientv3.WithRange(k.end(s.subnets())))}
}

// parseList parses the response to listOps.
func (s *Store) parseList(
	k *weftKeys, header *etcdserverpb.ResponseHeader, r *etcdserverpb.ResponseOp,
) *keyspace {
	ks := &keyspace{
		subnets: s.subnets(), nodes: k.nodesPrefix(), end: k.end(s.subnets()),
		cluster: header.ClusterId, revision: header.Revision,
	}
	ks.load(r.GetResponseRange().Kvs)
	s.logUnreadable(ks)
	return ks
}
