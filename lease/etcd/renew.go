package etcd

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

// renewTries bounds the attempts of Renew, which fail if the key changes between read and write.
const renewTries = 5

// Renew checks the owner of the key and writes the attributes with a new etcd lease of 24 h. A
// reservation remains one.
func (s *Store) Renew(ctx context.Context, l lease.Lease) (lease.Lease, error) {
	return withOwnerKeys(ctx, s, func(k *ownerKeys) (lease.Lease,
		error) {
		return s.renew(ctx, k, l)
	})
}

func (s *Store) renew(ctx context.Context, k *ownerKeys, l lease.Lease) (lease.Lease, error) {
	name := formatKey(l)
	key := s.subnetKey(name)
	l.Attrs = k.published(l.Attrs)
	value, err := formatValue(l.Attrs)
	if err != nil {
		return lease.Lease{}, err
	}
	for range renewTries {
		ops := append([]clientv3.Op{clientv3.OpGet(key)}, k.get(name)...)
		got, err := s.txn(ctx, "read "+key, transaction{then: ops})
		if err != nil {
			return lease.Lease{}, err
		}
		ks, owners := s.parseList(k, got)
		e, o := ks.entries[name], owners[name]
		if err := s.checkOwner(l, e, o); err != nil {
			return lease.Lease{}, err
		}
		with, err := s.announce(k, name, o, l.Attrs)
		if err != nil {
			return lease.Lease{}, err
		}
		renewed, done, err := s.write(ctx, l, e, with, string(value))
		if err != nil || done {
			return renewed, err
		}
	}
	return lease.Lease{}, fmt.Errorf("etcd: renew %s: key changed %d times in a row",
		key, renewTries)
}

// checkOwner returns an error unless this daemon may write the key: it must exist, have the new or
// the last written attributes of this node, and not be owned by another live daemon.
func (s *Store) checkOwner(l lease.Lease, e entry, o owner) error {
	key := s.subnetKey(formatKey(l))
	if e.mod == 0 {
		return fmt.Errorf("%w: %s no longer exists", lease.ErrLost, key)
	}
	if o.isOther(s.id) {
		return fmt.Errorf("%w: %s is now held by node %q", lease.ErrLost, key, o.Node)
	}
	if e.lease.SameNode(l.Attrs) {
		return nil
	}
	if own := s.getOwn(); own != nil && own.key == e.key && e.lease.SameNode(own.attrs) {
		return nil
	}
	if e.err != nil {
		return fmt.Errorf("%w: %w", lease.ErrLost, e.err)
	}
	return fmt.Errorf("%w: %s now belongs to %s", lease.ErrLost, key, e.lease.Public())
}

// announce returns the part of a renewal that concerns the owner key: it must not have changed, and
// is written if it announces other attributes. A missing one is left to ensureOwnerKey.
func (s *Store) announce(
	k *ownerKeys, name string, o owner, a lease.Attrs,
) (transaction, error) {
	t := transaction{when: k.unchanged(name, o.mod)}
	if o.ID != s.id || o.FastPath == a.FastPath {
		return t, nil
	}
	o.FastPath = a.FastPath
	value, err := o.format()
	t.then = k.put(name, value, o.leaseID)
	return t, err
}

// write puts the value if neither the key nor its owner has changed since e was read, and reports
// whether it did. with is the part of the transaction that concerns the owner.
func (s *Store) write(
	ctx context.Context, l lease.Lease, e entry, with transaction, value string,
) (lease.Lease, bool, error) {
	key := s.subnetKey(e.key)
	l.Node, l.Expires = l.Public().String(), time.Time{}
	put, id := clientv3.OpPut(key, value), clientv3.LeaseID(clientv3.NoLease)
	if e.leaseID != clientv3.NoLease { // else it is a reservation
		l.Expires = time.Now().Add(leaseTTL)
		var err error
		if id, err = s.grant(ctx, leaseTTL); err != nil {
			return lease.Lease{}, false, err
		}
		s.setPendingLease(id)
		put = clientv3.OpPut(key, value, clientv3.WithLease(id))
	}
	got, err := s.txn(ctx, "renew "+key, transaction{
		when: append(with.when, unchanged(key, e.mod)),
		then: append(with.then, put),
	})
	if err != nil {
		return lease.Lease{}, false, err
	}
	if !got.Succeeded {
		s.revokeEmpty(ctx, id)
		return lease.Lease{}, false, nil
	}
	if own := s.getOwn(); own != nil && own.key == e.key {
		now := *own
		now.attrs, now.leaseID, now.mod = l.Attrs, id, got.Header.Revision
		s.replaceOwn(own, &now)
	}
	s.revokeEmpty(ctx, e.leaseID)
	return l, true, nil
}
