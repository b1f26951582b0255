package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

// claimTries bounds the races that one Claim may lose. Each lost race is a subnet won by another
// node.
const claimTries = 50

// Claim takes a lease; see the package documentation for how.
func (s *Store) Claim(ctx context.Context, r lease.Request) (lease.Lease, error) {
	if !r.Attrs.Public().IsValid() {
		return lease.Lease{}, errors.New("etcd: claim subnet: node has no public IP")
	}
	return withOwnerKeys(ctx, s, func(k *ownerKeys) (lease.Lease,
		error) {
		return s.claim(ctx, k, r)
	})
}

func (s *Store) claim(ctx context.Context, k *ownerKeys, r lease.Request) (lease.Lease, error) {
	got, err := s.txn(ctx, s.listName(), transaction{then: s.listOps(k)})
	if err != nil {
		return lease.Lease{}, err
	}
	c := &claim{request: r, id: s.id, keys: k}
	for range claimTries {
		ks, owners := s.parseList(k, got)
		s.logUnreadable(ks)
		c.listed = ks.revision
		if err := c.decide(ks, owners, s.random); err != nil {
			return lease.Lease{}, err
		}
		if got, err = s.commit(ctx, c); err != nil {
			return lease.Lease{}, err
		}
		if !got.Succeeded {
			continue
		}
		if !s.overlaps(c, got) {
			return s.finish(ctx, c, got.Header.Revision), nil
		}
		if err := s.undo(ctx, c, got.Header.Revision); err != nil {
			return lease.Lease{}, err
		}
		if got, err = s.txn(ctx, s.listName(), transaction{then: s.listOps(k)}); err != nil {
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
	keys    *ownerKeys
	listed  int64 // revision of the list that decide chooses from

	// Set by decide:
	lease       lease.Lease
	key         string
	entry       entry   // the key as listed; the zero entry if it must be created
	listedOwner owner   // its owner as listed
	reserved    bool    // the key is a reservation: it has no etcd lease and gets none
	replaced    []entry // this node's other keys, which the new one replaces

	// Etcd leases, reused by the next attempt.
	leaseID, ownerLeaseID clientv3.LeaseID
	expires               time.Time // of leaseID
}

// decide chooses the subnet, and the keys that the transaction compares and replaces. It sends no
// requests.
func (c *claim) decide(ks *keyspace, owners map[string]owner, random func(int) int) error {
	entries, existing := c.existing(ks, owners)
	choice, err := lease.Choose(c.request, existing, random)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	for _, i := range choice.Own {
		if o := owners[entries[i].key]; o.isOther(c.id) {
			return inUse(c.request.Attrs.Public(), entries[i].key, o)
		}
	}
	c.lease = lease.Lease{
		Node:   c.request.Attrs.Public().String(),
		Subnet: choice.Subnet, Subnet6: choice.Subnet6, Attrs: c.keys.published(c.request.Attrs),
	}
	c.key = formatKey(c.lease)
	c.listedOwner, c.entry, c.reserved, c.replaced = owners[c.key], entry{}, false, nil
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

// existing returns the leases that Choose must respect. A lease whose owner key names this
// daemon belongs to this node even if its public IP differs: it may have changed while the daemon
// was down. An owner whose lease expired keeps its subnet.
func (c *claim) existing(ks *keyspace, owners map[string]owner) ([]entry, []lease.Lease) {
	entries := ks.sorted()
	existing := make([]lease.Lease, 0, len(entries))
	for _, e := range entries {
		l := e.lease
		if owners[e.key].isNode(e, c.id, c.request.Node) {
			l.Attrs = c.request.Attrs
		}
		existing = append(existing, l)
	}
	for key, o := range owners {
		if _, listed := ks.entries[key]; listed || o.ID == c.id || o.Released {
			continue
		}
		if l, err := parseKey(key); err == nil {
			entries, existing = append(entries, entry{key: key}), append(existing, l)
		}
	}
	return entries, existing
}

// overlaps reports whether an older lease of another node overlaps the one just claimed. Such a key
// was written since the list that decide chose from, so the response has no others. A lease that
// this node already had is kept in spite of an overlap.
func (s *Store) overlaps(c *claim, got *clientv3.TxnResponse) bool {
	if c.entry.mod != 0 {
		return false
	}
	written := got.Responses[len(got.Responses)-1].GetResponseRange().Kvs
	return slices.ContainsFunc(written, func(kv *mvccpb.KeyValue) bool {
		e := decodeEntry(strings.TrimPrefix(string(kv.Key), s.subnets()), kv)
		return e.key != c.key && e.lease.Overlaps(c.lease)
	})
}

// commit runs the transaction of the claim.
func (s *Store) commit(ctx context.Context, c *claim) (*clientv3.TxnResponse, error) {
	if err := s.grantLeases(ctx, c); err != nil {
		return nil, err
	}
	value, err := formatValue(c.lease.Attrs)
	if err != nil {
		return nil, err
	}
	o := owner{ID: s.id, Node: c.request.Node, FastPath: c.request.Attrs.FastPath}
	ownerValue, err := o.format()
	if err != nil {
		return nil, err
	}
	key := s.subnetKey(c.key)
	t := transaction{
		when:      append(c.keys.unchanged(c.key, c.listedOwner.mod), unchanged(key, c.entry.mod)),
		otherwise: s.listOps(c.keys),
	}
	for _, e := range c.replaced {
		t.when = append(t.when, unchanged(s.subnetKey(e.key), e.mod))
		t.then = append(t.then, clientv3.OpDelete(s.subnetKey(e.key)))
		t.then = append(t.then, c.keys.delete(e.key)...)
	}
	t.then = append(t.then, c.put(key, string(value)))
	t.then = append(t.then, c.keys.put(c.key, ownerValue, c.ownerLeaseID)...)
	t.then = append(t.then,
		clientv3.OpGet(s.subnets(), clientv3.WithPrefix(), clientv3.WithMinModRev(c.listed+1)))
	// A failed request may have been executed, so its etcd leases are not revoked: the next Claim
	// finds the key by its owner.
	return s.txn(ctx, "claim "+key, t)
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
	if c.leaseID == clientv3.NoLease && !c.reserved {
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
	_, err := s.txn(ctx, "undo claim of "+key, transaction{
		when: append(c.keys.unchanged(c.key, revision), unchanged(key, revision)),
		then: append(c.keys.delete(c.key), clientv3.OpDelete(key)),
	})
	return err
}

// finish records the lease written at the given revision and revokes the etcd leases it no longer
// needs.
func (s *Store) finish(ctx context.Context, c *claim, revision int64) lease.Lease {
	own := ownLease{
		key: c.key, attrs: c.lease.Attrs, node: c.request.Node,
		ownerLeaseID: c.ownerLeaseID, mod: revision,
	}
	if !c.reserved {
		own.leaseID, c.lease.Expires = c.leaseID, c.expires
	}
	s.setOwn(&own)
	if c.reserved {
		s.revokeEmpty(ctx, c.leaseID)
	}
	for _, e := range append(slices.Clone(c.replaced), c.entry) {
		s.revokeEmpty(ctx, e.leaseID)
	}
	return c.lease
}

// listName names the request of listOps in errors.
func (s *Store) listName() string { return "list leases in " + s.subnets() }

// listOps returns the reads of all leases and owners at one revision.
func (s *Store) listOps(k *ownerKeys) []clientv3.Op {
	return append([]clientv3.Op{clientv3.OpGet(s.subnets(), clientv3.WithPrefix())}, k.list()...)
}

// parseList parses the responses to listOps, which are the last ones of got.
func (s *Store) parseList(k *ownerKeys, got *clientv3.TxnResponse) (*keyspace, map[string]owner) {
	r := got.Responses[len(got.Responses)-1-len(k.list()):]
	kvs := r[0].GetResponseRange().Kvs
	owners := k.parse(r[1:])
	return newKeyspace(s.subnets(), got.Header.ClusterId, got.Header.Revision, kvs, owners), owners
}
