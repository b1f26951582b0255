package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

// owner is the content of an owner key. The zero owner means that the key does not exist.
type owner struct {
	ID      string `json:"id"`   // of the daemon: see identity
	Node    string `json:"node"` // its host name
	mod     int64  // revision of the last change
	leaseID clientv3.LeaseID
}

// isOther reports whether a running daemon other than id holds the lease.
func (o owner) isOther(id string) bool { return o.mod != 0 && o.ID != id }

// parseOwner parses an owner key. An unreadable key counts as owned by another daemon.
func parseOwner(kv *mvccpb.KeyValue) owner {
	var o owner
	if err := json.Unmarshal(kv.Value, &o); err != nil {
		o = owner{ID: "unreadable", Node: "unknown"}
	}
	o.mod, o.leaseID = kv.ModRevision, clientv3.LeaseID(kv.Lease)
	return o
}

// ownerValue returns the value of this daemon's owner key.
func (s *Store) ownerValue(node string) (string, error) {
	b, err := json.Marshal(owner{ID: s.id, Node: node})
	if err != nil {
		return "", fmt.Errorf("encode owner: %w", err)
	}
	return string(b), nil
}

// inUse returns the error for a lease owned by another live daemon.
func inUse(public fmt.Stringer, key string, o owner) error {
	return fmt.Errorf("%w: %s belongs to node %q, which holds %s",
		lease.ErrInUse, public, o.Node, key)
}

// errOwnerGone means that this daemon's owner key no longer exists.
var errOwnerGone = errors.New("etcd: owner key expired: disconnected for too long, or data wiped")

// hasOwnerKey reports whether this daemon has an owner key to keep alive.
func (s *Store) hasOwnerKey() bool {
	own := s.getOwn()
	return own != nil && own.ownerLeaseID != clientv3.NoLease
}

// keepAlive extends the etcd lease of the owner key.
func (s *Store) keepAlive(ctx context.Context) error {
	own := s.getOwn()
	if own == nil || own.ownerLeaseID == clientv3.NoLease {
		return nil
	}
	err := s.call(ctx, "keep owner key alive", func(ctx context.Context, c *clientv3.Client) error {
		_, err := s.keepAlives.send(ctx, c, own.ownerLeaseID)
		return err
	})
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		if s.getOwn() != own {
			return nil // replaced by a concurrent claim
		}
		return errOwnerGone
	}
	return err
}

// ensureOwnerKey ensures that the owner key of the own lease exists and belongs to this daemon. e
// is the lease's entry, o its owner, both as just listed. If another daemon owns the lease now, it
// clears the own lease and fails with lease.ErrInUse.
func (s *Store) ensureOwnerKey(
	ctx context.Context, k *weftKeys, own *ownLease, e entry, o owner,
) error {
	switch {
	case k == nil:
		return nil
	case o.ID == s.id && o.leaseID == own.ownerLeaseID:
		return s.keepAlive(ctx)
	case o.isOther(s.id):
		s.replaceOwn(own, nil)
		return inUse(own.attrs.Public(), own.key, o)
	}
	id, err := s.grant(ctx, s.ownerTTL)
	if err != nil {
		return err
	}
	now := *own
	now.ownerLeaseID, now.leaseID = id, e.leaseID
	puts, err := s.putOwner(k, now)
	if err != nil {
		return err
	}
	if now.leaseID == clientv3.NoLease { // the record of a reservation expires with the owner key
		record, err := s.putRecord(k, now)
		if err != nil {
			return err
		}
		puts = append(puts, record...)
	}
	got, err := s.txn(ctx, "put owner key of "+own.key, transaction{
		when: append(k.ownerUnchanged(own.key, o.mod), unchanged(s.subnetKey(own.key), e.mod)),
		then: puts,
	})
	if err != nil {
		return err
	}
	if !got.Succeeded {
		s.revokeEmpty(ctx, id)
		return fmt.Errorf("etcd: put owner key of %s: key changed concurrently", own.key)
	}
	s.replaceOwn(own, &now)
	return nil
}

// putOwner returns the write of the owner key of a lease.
func (s *Store) putOwner(k *weftKeys, own ownLease) ([]clientv3.Op, error) {
	value, err := s.ownerValue(own.node)
	if err != nil {
		return nil, err
	}
	return k.putOwner(own.key, value, own.ownerLeaseID), nil
}

// putRecord returns the write of the node record of a lease. It lasts as long as the lease; that of
// a reservation, which never expires, as long as the owner key.
func (s *Store) putRecord(k *weftKeys, own ownLease) ([]clientv3.Op, error) {
	value, err := s.recordOf(own).format()
	if err != nil {
		return nil, err
	}
	id := own.leaseID
	if id == clientv3.NoLease {
		id = own.ownerLeaseID
	}
	return k.putNode(own.key, value, id), nil
}
