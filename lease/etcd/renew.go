package etcd

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

// renewTries bounds how often Renew reads again because somebody wrote between its read and its write.
const renewTries = 5

// Renew writes the attributes on a new etcd lease of 24 h, after a look at whose the key is. A reservation stays one.
func (s *Store) Renew(ctx context.Context, l lease.Lease) (lease.Lease, error) {
	return asAllowed(ctx, s, func(k *ownerKeys) (lease.Lease, error) { return s.renew(ctx, k, l) })
}

func (s *Store) renew(ctx context.Context, k *ownerKeys, l lease.Lease) (lease.Lease, error) {
	name := formatKey(l)
	key := s.subnetKey(name)
	value, err := formatValue(l.Attrs)
	if err != nil {
		return lease.Lease{}, err
	}
	for range renewTries {
		got, err := s.txn(ctx, "read "+key, transaction{then: append([]clientv3.Op{clientv3.OpGet(key)}, k.get(name)...)})
		if err != nil {
			return lease.Lease{}, err
		}
		v, owners := s.listed(k, got)
		e, o := v.entries[name], owners[name]
		if err := s.stillOurs(l, e, o); err != nil {
			return lease.Lease{}, err
		}
		renewed, done, err := s.write(ctx, l, e, k.unchanged(name, o.mod), string(value))
		if err != nil || done {
			return renewed, err
		}
	}
	return lease.Lease{}, fmt.Errorf("etcd: renew %s: it changed %d times in a row", key, renewTries)
}

// stillOurs says whether the key is ours to write: there, with a value of this node (as it is to be, or as we wrote it
// last), and not owned by another live daemon.
func (s *Store) stillOurs(l lease.Lease, e entry, o owner) error {
	key := s.subnetKey(formatKey(l))
	if e.mod == 0 {
		return fmt.Errorf("%w: %s is gone", lease.ErrLost, key)
	}
	if o.mod != 0 && o.ID != s.id {
		return fmt.Errorf("%w: %s is held by node %q now", lease.ErrLost, key, o.Node)
	}
	if e.lease.SameNode(l.Attrs) {
		return nil
	}
	if h := s.holding(); h != nil && h.key == e.key && e.lease.SameNode(h.attrs) {
		return nil
	}
	if e.err != nil {
		return fmt.Errorf("%w: %w", lease.ErrLost, e.err)
	}
	return fmt.Errorf("%w: %s belongs to %s now", lease.ErrLost, key, e.lease.Public())
}

// write puts the value if the key has not changed since e was read and its owner is the same, and reports whether it did.
func (s *Store) write(ctx context.Context, l lease.Lease, e entry, sameOwner []clientv3.Cmp, value string) (lease.Lease, bool, error) {
	key := s.subnetKey(e.key)
	l.Node, l.Expires = l.Public().String(), time.Time{}
	put, grant := clientv3.OpPut(key, value), clientv3.LeaseID(clientv3.NoLease)
	if e.grant != clientv3.NoLease { // else it is a reservation
		l.Expires = time.Now().Add(leaseTTL)
		var err error
		if grant, err = s.grant(ctx, leaseTTL); err != nil {
			return lease.Lease{}, false, err
		}
		s.granting(grant)
		put = clientv3.OpPut(key, value, clientv3.WithLease(grant))
	}
	got, err := s.txn(ctx, "renew "+key, transaction{
		when: append(sameOwner, unchanged(key, e.mod)),
		then: []clientv3.Op{put},
	})
	if err != nil {
		return lease.Lease{}, false, err
	}
	if !got.Succeeded {
		s.revokeEmpty(ctx, grant)
		return lease.Lease{}, false, nil
	}
	if h := s.holding(); h != nil && h.key == e.key {
		now := *h
		now.attrs, now.grant, now.mod = l.Attrs, grant, got.Header.Revision
		s.amend(h, &now)
	}
	s.revokeEmpty(ctx, e.grant)
	return l, true, nil
}
