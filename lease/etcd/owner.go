package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

// owner is an owner key. The zero owner stands for none.
type owner struct {
	ID    string `json:"id"`   // of the daemon: see identity
	Node  string `json:"node"` // its host name, for people
	mod   int64
	grant clientv3.LeaseID
}

// parseOwner reads an owner key. One that cannot be read is somebody's all the same: an id that is not ours.
func parseOwner(kv *mvccpb.KeyValue) owner {
	var o owner
	if err := json.Unmarshal(kv.Value, &o); err != nil {
		o = owner{ID: "unreadable", Node: "unknown"}
	}
	o.mod, o.grant = kv.ModRevision, clientv3.LeaseID(kv.Lease)
	return o
}

// parseOwners reads all owner keys, by the part after the prefix.
func parseOwners(prefix string, kvs []*mvccpb.KeyValue) map[string]owner {
	owners := make(map[string]owner, len(kvs))
	for _, kv := range kvs {
		owners[strings.TrimPrefix(string(kv.Key), prefix)] = parseOwner(kv)
	}
	return owners
}

// ownerValue is what our owner key says.
func (s *Store) ownerValue(node string) (string, error) {
	b, err := json.Marshal(owner{ID: s.id, Node: node})
	if err != nil {
		return "", fmt.Errorf("encode owner: %w", err)
	}
	return string(b), nil
}

// inUse is the error for a lease whose owner is another live daemon.
func inUse(public fmt.Stringer, key string, o owner) error {
	return fmt.Errorf("%w: %s belongs to node %q, which holds %s", lease.ErrInUse, public, o.Node, key)
}

// errOwnerGone says that our owner key is not there any more.
var errOwnerGone = errors.New("etcd: our owner key is gone: cut off for too long, or the data was wiped")

// beat keeps our owner key alive.
func (s *Store) beat(ctx context.Context) error {
	h := s.holding()
	if h == nil {
		return nil
	}
	err := s.call(ctx, "keep the owner key alive", func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.KeepAliveOnce(ctx, h.owner)
		return err
	})
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		if s.holding() != h {
			return nil // a claim has replaced it meanwhile
		}
		return errOwnerGone
	}
	return err
}

// own makes sure that the owner key of the lease we hold is there and ours. e is the lease's entry, o its owner, both
// as just listed. It forgets the lease and fails with lease.ErrInUse if another daemon is the owner now.
func (s *Store) own(ctx context.Context, h *held, e entry, o owner) error {
	switch {
	case o.ID == s.id && o.grant == h.owner:
		return s.beat(ctx)
	case o.ID != s.id && o.mod != 0:
		s.amend(h, nil)
		return inUse(h.attrs.Public(), h.key, o)
	}
	value, err := s.ownerValue(h.node)
	if err != nil {
		return err
	}
	grant, err := s.grant(ctx, s.ownerTTL)
	if err != nil {
		return err
	}
	key := s.ownerKey(h.key)
	got, err := s.txn(ctx, "put owner key "+key, transaction{
		when: []clientv3.Cmp{unchanged(key, o.mod), unchanged(s.subnetKey(h.key), e.mod)},
		then: []clientv3.Op{clientv3.OpPut(key, value, clientv3.WithLease(grant))},
	})
	if err != nil {
		return err
	}
	if !got.Succeeded {
		s.revokeEmpty(ctx, grant)
		return fmt.Errorf("etcd: put owner key %s: it changed meanwhile", key)
	}
	now := *h
	now.owner = grant
	s.amend(h, &now)
	return nil
}

// unchanged compares a key with the revision of its last change as seen before; 0 says that there was no key.
func unchanged(key string, mod int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", mod)
}
