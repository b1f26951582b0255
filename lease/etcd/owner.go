package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

// owner is the content of an owner key. The zero owner means that the key does not exist.
type owner struct {
	ID   string `json:"id"`   // of the daemon: see identity
	Node string `json:"node"` // its host name
	// Released is set by a daemon that stops: it no longer runs, but the lease remains its node's.
	Released bool `json:"released,omitempty"`
	// FastPath is lease.Attrs.FastPath.
	FastPath bool  `json:"fastPath,omitempty"`
	mod      int64 // revision of the last change
	leaseID  clientv3.LeaseID
}

// isOther reports whether a running daemon other than id holds the lease.
func (o owner) isOther(id string) bool { return o.mod != 0 && o.ID != id && !o.Released }

// isNode reports whether lease e belongs to the daemon id on the named node, whatever its address
// is now. A released lease that was written since, as by flannel with the same address, does not.
func (o owner) isNode(e entry, id, node string) bool {
	if !o.Released {
		return o.mod != 0 && o.ID == id
	}
	sameName := o.Node == node && node != "" && !strings.HasPrefix(node, "localhost")
	return o.leaseID == e.leaseID && (o.ID == id || sameName)
}

// announces reports whether the node of lease e takes packets of the fast path. A released lease
// that was written since, as by flannel, has no such node any more.
func (o owner) announces(e entry) bool {
	return o.FastPath && (!o.Released || o.leaseID == e.leaseID)
}

// parseOwner parses an owner key. An unreadable key counts as owned by another daemon.
func parseOwner(kv *mvccpb.KeyValue) owner {
	var o owner
	if err := json.Unmarshal(kv.Value, &o); err != nil {
		o = owner{ID: "unreadable", Node: "unknown"}
	}
	o.mod, o.leaseID = kv.ModRevision, clientv3.LeaseID(kv.Lease)
	return o
}

// ownerKeys builds the parts of a request that concern owner keys. A nil *ownerKeys builds none:
// the etcd role may be one for flannel, which has no owner keys.
type ownerKeys struct {
	prefix string // with a final slash
}

func (k *ownerKeys) list() []clientv3.Op {
	if k == nil {
		return nil
	}
	return []clientv3.Op{clientv3.OpGet(k.prefix, clientv3.WithPrefix())}
}

func (k *ownerKeys) get(name string) []clientv3.Op {
	if k == nil {
		return nil
	}
	return []clientv3.Op{clientv3.OpGet(k.prefix + name)}
}

// parse parses the responses to list or get. The result has keys without the prefix.
func (k *ownerKeys) parse(responses []*etcdserverpb.ResponseOp) map[string]owner {
	owners := make(map[string]owner)
	for _, r := range responses {
		for _, kv := range r.GetResponseRange().Kvs {
			owners[strings.TrimPrefix(string(kv.Key), k.prefix)] = parseOwner(kv)
		}
	}
	return owners
}

func (k *ownerKeys) unchanged(name string, mod int64) []clientv3.Cmp {
	if k == nil {
		return nil
	}
	return []clientv3.Cmp{unchanged(k.prefix+name, mod)}
}

func (k *ownerKeys) put(name, value string, id clientv3.LeaseID) []clientv3.Op {
	if k == nil {
		return nil
	}
	return []clientv3.Op{clientv3.OpPut(k.prefix+name, value, clientv3.WithLease(id))}
}

func (k *ownerKeys) delete(name string) []clientv3.Op {
	if k == nil {
		return nil
	}
	return []clientv3.Op{clientv3.OpDelete(k.prefix + name)}
}

// published returns the attributes that other nodes will read.
func (k *ownerKeys) published(a lease.Attrs) lease.Attrs {
	a.FastPath = a.FastPath && k != nil
	return a
}

// apply updates the owners of the leases with a watch response of owner keys, and reports whether
// that changes a readable lease.
func (k *ownerKeys) apply(r clientv3.WatchResponse, ks *keyspace) bool {
	changed := false
	for _, ev := range r.Events {
		var o owner
		if ev.Type == mvccpb.PUT {
			o = parseOwner(ev.Kv)
		}
		if ks.setOwner(strings.TrimPrefix(string(ev.Kv.Key), k.prefix), o) {
			changed = true
		}
	}
	return changed
}

// probe returns a transaction that needs the permission to read and write owner keys but changes
// nothing: etcd checks the permissions of both branches, and no key was created before revision 0.
func (k *ownerKeys) probe() transaction {
	key := k.prefix + "probe"
	return transaction{
		when: []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "<", 0)},
		then: []clientv3.Op{clientv3.OpPut(key, "")},
	}
}

// withOwnerKeys calls work with owner keys, and again without them if etcd does not permit them.
func withOwnerKeys[T any](
	ctx context.Context, s *Store, work func(*ownerKeys) (T, error),
) (T, error) {
	k := s.ownerKeys()
	got, err := work(k)
	if k == nil || !errors.Is(err, rpctypes.ErrPermissionDenied) {
		return got, err
	}
	_, probeErr := s.txn(ctx, "probe owner key permission", k.probe())
	if !errors.Is(probeErr, rpctypes.ErrPermissionDenied) {
		return got, err // other keys were denied, or the probe failed
	}
	s.disableOwnerKeys(k)
	return work(nil)
}

// disableOwnerKeys stops the use of owner keys until the next start.
func (s *Store) disableOwnerKeys(k *ownerKeys) {
	s.mu.Lock()
	first := s.owners != nil
	s.owners = nil
	s.mu.Unlock()
	if first {
		s.config.Log.Warn("etcd role lacks READWRITE permission for owner keys: "+
			"a second node with the same public IP is not detected, "+
			"and the subnet is lost if the public IP changes while the daemon is down",
			"prefix", k.prefix)
	}
}

func (s *Store) ownerKeys() *ownerKeys {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owners
}

// format returns the value of an owner key.
func (o owner) format() (string, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return "", fmt.Errorf("encode owner: %w", err)
	}
	return string(b), nil
}

// ownerOf returns this daemon as the owner of a lease.
func (s *Store) ownerOf(own *ownLease) owner {
	return owner{ID: s.id, Node: own.node, FastPath: own.attrs.FastPath}
}

// release marks the owner key as released, so that it lasts as long as the lease: the node may come
// back with another address. Where it cannot, it deletes the owner key.
func (s *Store) release(ctx context.Context, own *ownLease) error {
	if k := s.ownerKeys(); k != nil && own.leaseID != clientv3.NoLease {
		o := s.ownerOf(own)
		o.Released = true
		value, err := o.format()
		if err != nil {
			return err
		}
		key := k.prefix + own.key
		_, err = s.client.Txn(ctx).
			If(clientv3.Compare(clientv3.LeaseValue(key), "=", own.ownerLeaseID)).
			Then(clientv3.OpPut(key, value, clientv3.WithLease(own.leaseID))).Commit()
		if err != nil {
			s.config.Log.Debug("owner key not released", "lease", own.key, "err", err)
		}
	}
	_, err := s.client.Revoke(ctx, own.ownerLeaseID)
	return err
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
		_, err := c.KeepAliveOnce(ctx, own.ownerLeaseID)
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
	ctx context.Context, k *ownerKeys, own *ownLease, e entry, o owner,
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
	value, err := s.ownerOf(own).format()
	if err != nil {
		return err
	}
	id, err := s.grant(ctx, s.ownerTTL)
	if err != nil {
		return err
	}
	got, err := s.txn(ctx, "put owner key of "+own.key, transaction{
		when: append(k.unchanged(own.key, o.mod), unchanged(s.subnetKey(own.key), e.mod)),
		then: k.put(own.key, value, id),
	})
	if err != nil {
		return err
	}
	if !got.Succeeded {
		s.revokeEmpty(ctx, id)
		return fmt.Errorf("etcd: put owner key of %s: key changed concurrently", own.key)
	}
	now := *own
	now.ownerLeaseID = id
	s.replaceOwn(own, &now)
	return nil
}

// unchanged returns a comparison that holds if a key's last change is still at revision mod; 0
// means that the key does not exist.
func unchanged(key string, mod int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", mod)
}
