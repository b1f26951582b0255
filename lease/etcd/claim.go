package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

// claimTries bounds how many lost races one Claim takes. Each lost one is a subnet that another node won.
const claimTries = 50

// Claim takes a lease; see the package documentation for how.
func (s *Store) Claim(ctx context.Context, r lease.Request) (lease.Lease, error) {
	if !r.Attrs.Public().IsValid() {
		return lease.Lease{}, errors.New("etcd: claim a subnet: this node has no public IP to be known by")
	}
	return asAllowed(ctx, s, func(k *ownerKeys) (lease.Lease, error) { return s.claim(ctx, k, r) })
}

func (s *Store) claim(ctx context.Context, k *ownerKeys, r lease.Request) (lease.Lease, error) {
	got, err := s.txn(ctx, s.listing(), transaction{then: s.listOps(k)})
	if err != nil {
		return lease.Lease{}, err
	}
	c := &claim{request: r, id: s.id, keys: k}
	for range claimTries {
		v, owners := s.listed(k, got)
		s.complain(v)
		if err := c.decide(v, owners, s.random); err != nil {
			return lease.Lease{}, err
		}
		if got, err = s.try(ctx, c); err != nil {
			return lease.Lease{}, err
		}
		if !got.Succeeded {
			continue
		}
		v, _ = s.listed(k, got)
		if rival := c.overlapped(v); rival == "" {
			return s.claimed(ctx, c, got.Header.Revision), nil
		}
		if err := s.takeBack(ctx, c, got.Header.Revision); err != nil {
			return lease.Lease{}, err
		}
		if got, err = s.txn(ctx, s.listing(), transaction{then: s.listOps(k)}); err != nil {
			return lease.Lease{}, err
		}
	}
	s.revokeEmpty(ctx, c.grant)
	s.revokeEmpty(ctx, c.owner)
	return lease.Lease{}, fmt.Errorf("etcd: claim a subnet: lost %d races in a row", claimTries)
}

// claim is one Claim on its way.
type claim struct {
	request lease.Request
	id      string // of this daemon
	keys    *ownerKeys

	// What decide wants:
	lease    lease.Lease
	key      string
	entry    entry   // the key as listed; the zero entry if it is to be created
	was      owner   // its owner as listed
	reserved bool    // the key has no etcd lease and gets none
	drop     []entry // keys of ours that the new one replaces

	// Etcd leases, kept from one try to the next.
	grant, owner clientv3.LeaseID
	until        time.Time // when grant expires
}

// decide chooses the subnet and what the transaction is to compare and to replace. It asks nobody.
func (c *claim) decide(v *view, owners map[string]owner, random func(int) int) error {
	entries, existing := c.existing(v, owners)
	choice, err := lease.Choose(c.request, existing, random)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	for _, i := range choice.Own {
		if o := owners[entries[i].key]; o.mod != 0 && o.ID != c.id {
			return inUse(c.request.Attrs.Public(), entries[i].key, o)
		}
	}
	c.lease = lease.Lease{
		Node: c.request.Attrs.Public().String(), Subnet: choice.Subnet, Subnet6: choice.Subnet6, Attrs: c.request.Attrs,
	}
	c.key = formatKey(c.lease)
	c.was, c.entry, c.reserved, c.drop = owners[c.key], entry{}, false, nil
	own := choice.Own
	if choice.Reuse && entries[own[0]].key == c.key { // else it is written in another way, and replaced
		c.entry = entries[own[0]]
		c.reserved = c.entry.grant == clientv3.NoLease
		own = own[1:]
	}
	for _, i := range own {
		e := entries[i]
		reserved := e.grant == clientv3.NoLease
		if reserved && !c.lease.Overlaps(e.lease) {
			continue // an operator's word that the network config does not allow: not ours to delete
		}
		c.reserved = c.reserved || reserved
		c.drop = append(c.drop, e)
	}
	return nil
}

// existing lists the leases that Choose has to respect. A lease whose owner key carries our id is ours whatever its
// address is: the address may have changed while we were down. The subnet of an owner that lost its lease stays its.
func (c *claim) existing(v *view, owners map[string]owner) ([]entry, []lease.Lease) {
	entries := v.sorted()
	existing := make([]lease.Lease, 0, len(entries))
	for _, e := range entries {
		l := e.lease
		if o := owners[e.key]; o.mod != 0 && o.ID == c.id {
			l.Attrs = c.request.Attrs
		}
		existing = append(existing, l)
	}
	for key, o := range owners {
		if _, listed := v.entries[key]; listed || o.ID == c.id {
			continue
		}
		if l, err := parseKey(key); err == nil {
			entries, existing = append(entries, entry{key: key}), append(existing, l)
		}
	}
	return entries, existing
}

// overlapped names a lease in v that shares addresses with the one just claimed and is not ours. Whatever v holds
// was there before our key. A lease that was ours already is not given up for it.
func (c *claim) overlapped(v *view) string {
	if c.entry.mod != 0 {
		return ""
	}
	for _, e := range v.sorted() {
		if e.key != c.key && e.lease.Overlaps(c.lease) {
			return e.key
		}
	}
	return ""
}

// try runs the transaction of the claim.
func (s *Store) try(ctx context.Context, c *claim) (*clientv3.TxnResponse, error) {
	if err := s.grants(ctx, c); err != nil {
		return nil, err
	}
	value, err := formatValue(c.lease.Attrs)
	if err != nil {
		return nil, err
	}
	ownerValue, err := s.ownerValue(c.request.Node)
	if err != nil {
		return nil, err
	}
	key := s.subnetKey(c.key)
	t := transaction{
		when:      append(c.keys.unchanged(c.key, c.was.mod), unchanged(key, c.entry.mod)),
		otherwise: s.listOps(c.keys),
	}
	for _, e := range c.drop {
		t.when = append(t.when, unchanged(s.subnetKey(e.key), e.mod))
		t.then = append(t.then, clientv3.OpDelete(s.subnetKey(e.key)))
		t.then = append(t.then, c.keys.delete(e.key)...)
	}
	t.then = append(t.then, c.put(key, string(value)))
	t.then = append(t.then, c.keys.put(c.key, ownerValue, c.owner)...)
	t.then = append(t.then, s.listOps(c.keys)...)
	// A failed request may have been carried out all the same, so its etcd leases are not revoked: the next Claim
	// finds the key by its owner.
	return s.txn(ctx, "claim "+key, t)
}

// put writes the lease's key, on an etcd lease unless it is a reservation.
func (c *claim) put(key, value string) clientv3.Op {
	if c.reserved {
		return clientv3.OpPut(key, value)
	}
	return clientv3.OpPut(key, value, clientv3.WithLease(c.grant))
}

// grants makes the etcd leases that the claim lacks yet.
func (s *Store) grants(ctx context.Context, c *claim) error {
	var err error
	if c.grant == clientv3.NoLease && !c.reserved {
		c.until = time.Now().Add(leaseTTL)
		if c.grant, err = s.grant(ctx, leaseTTL); err != nil {
			return err
		}
		s.granting(c.grant)
	}
	if c.owner == clientv3.NoLease && c.keys != nil {
		c.owner, err = s.grant(ctx, s.ownerTTL)
	}
	return err
}

// takeBack deletes the keys that were put at the given revision, unless somebody has changed one since. The family
// that nobody disputes is asked for again.
func (s *Store) takeBack(ctx context.Context, c *claim, revision int64) error {
	key := s.subnetKey(c.key)
	c.request.Previous, c.request.Previous6 = c.lease.Subnet, c.lease.Subnet6
	_, err := s.txn(ctx, "take back "+key, transaction{
		when: append(c.keys.unchanged(c.key, revision), unchanged(key, revision)),
		then: append(c.keys.delete(c.key), clientv3.OpDelete(key)),
	})
	return err
}

// claimed remembers the lease, which was written at the given revision, and cleans up behind it.
func (s *Store) claimed(ctx context.Context, c *claim, revision int64) lease.Lease {
	h := held{key: c.key, attrs: c.lease.Attrs, node: c.request.Node, owner: c.owner, mod: revision}
	if !c.reserved {
		h.grant, c.lease.Expires = c.grant, c.until
	}
	s.hold(&h)
	if c.reserved {
		s.revokeEmpty(ctx, c.grant)
	}
	for _, e := range append(slices.Clone(c.drop), c.entry) {
		s.revokeEmpty(ctx, e.grant)
	}
	return c.lease
}

// listing names the request of listOps in errors.
func (s *Store) listing() string { return "list leases below " + s.subnets() }

// listOps reads all leases and all owners at one revision.
func (s *Store) listOps(k *ownerKeys) []clientv3.Op {
	return append([]clientv3.Op{clientv3.OpGet(s.subnets(), clientv3.WithPrefix())}, k.list()...)
}

// listed reads the answers to listOps, which are the last ones of got.
func (s *Store) listed(k *ownerKeys, got *clientv3.TxnResponse) (*view, map[string]owner) {
	r := got.Responses[len(got.Responses)-1-len(k.list()):]
	v := newView(s.subnets(), got.Header.ClusterId, got.Header.Revision, r[0].GetResponseRange().Kvs)
	return v, k.parse(r[1:])
}
