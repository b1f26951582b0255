package etcd

import (
	"bytes"
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

// renewTries bounds the attempts of Renew, which fail if the key changes between read and write.
const renewTries = 5

// Renew checks the owner of the key. If the attributes are stored already, it extends the etcd
// lease, which writes nothing; else it writes them with a new etcd lease of 24 h. A reservation
// remains one.
func (s *Store) Renew(ctx context.Context, l lease.Lease) (lease.Lease, error) {
	return withWeftKeys(ctx, s, func(k *weftKeys) (lease.Lease, error) {
		return s.renew(ctx, k, l)
	})
}

func (s *Store) renew(ctx context.Context, k *weftKeys, l lease.Lease) (lease.Lease, error) {
	name := formatKey(l)
	key := s.subnetKey(name)
	l.Attrs = k.published(l.Attrs)
	value, err := formatValue(l.Attrs)
	if err != nil {
		return lease.Lease{}, err
	}
	for range renewTries {
		ops := append([]clientv3.Op{clientv3.OpGet(key)}, k.getPair(name)...)
		got, err := s.txn(ctx, "read "+key, transaction{then: ops})
		if err != nil {
			return lease.Lease{}, err
		}
		e := entry{}
		o, r := k.parsePair(got.Responses[1:])
		if kvs := got.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
			e = decodeEntry(name, kvs[0])
		}
		if err := s.checkOwner(l, e, o); err != nil {
			return lease.Lease{}, err
		}
		described := k == nil || r.leaseID == e.leaseID && r.FastPath == l.FastPath
		if described && s.isStored(e, value) {
			expires := time.Now().Add(leaseTTL)
			if ok, err := s.extend(ctx, e.leaseID); ok || err != nil {
				l.Node, l.Expires = l.Public().String(), expires
				return l, err
			}
		}
		renewed, done, err := s.write(ctx, k, l, renewal{e, o, string(value)})
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

// isStored reports whether this daemon wrote the key with this value and an etcd lease of its own.
func (s *Store) isStored(e entry, value []byte) bool {
	own := s.getOwn()
	return own != nil && own.key == e.key && own.leaseID == e.leaseID &&
		e.leaseID != clientv3.NoLease && bytes.Equal(e.value, value)
}

// renewal is a key as it was read, and its new value.
type renewal struct {
	entry entry
	owner owner
	value string
}

// write puts the value if neither the key nor its owner has changed since they were read, and
// reports whether it did.
func (s *Store) write(
	ctx context.Context, k *weftKeys, l lease.Lease, r renewal,
) (lease.Lease, bool, error) {
	key := s.subnetKey(r.entry.key)
	l.Node, l.Expires = l.Public().String(), time.Time{}
	put, id := clientv3.OpPut(key, r.value), clientv3.LeaseID(clientv3.NoLease)
	if r.entry.leaseID != clientv3.NoLease { // else it is a reservation
		l.Expires = time.Now().Add(leaseTTL)
		var err error
		if id, err = s.grant(ctx, leaseTTL); err != nil {
			return lease.Lease{}, false, err
		}
		s.setPendingLease(id)
		put = clientv3.OpPut(key, r.value, clientv3.WithLease(id))
	}
	t := transaction{
		when: append(k.ownerUnchanged(r.entry.key, r.owner.mod), unchanged(key, r.entry.mod)),
		then: []clientv3.Op{put},
	}
	own := s.getOwn()
	isOwn := own != nil && own.key == r.entry.key
	var now ownLease
	if isOwn {
		now = *own
		now.attrs, now.leaseID = l.Attrs, id
		record, err := s.putRecord(k, now)
		if err != nil {
			return lease.Lease{}, false, err
		}
		t.then = append(t.then, record...)
	}
	got, err := s.txn(ctx, "renew "+key, t)
	if err != nil {
		return lease.Lease{}, false, err
	}
	if !got.Succeeded {
		s.revokeEmpty(ctx, id)
		return lease.Lease{}, false, nil
	}
	if isOwn {
		now.mod = got.Header.Revision
		s.replaceOwn(own, &now)
	}
	s.revokeEmpty(ctx, r.entry.leaseID)
	return l, true, nil
}
