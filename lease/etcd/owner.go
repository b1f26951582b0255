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

// ownerKeys makes what is in a request for the sake of owner keys. A nil one makes nothing: the role that etcd gives us
// may be one for flannel, which has no such keys.
type ownerKeys struct {
	prefix string // with the slash at its end
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

// parse reads the answers to list or get, by the part of the key after the prefix.
func (k *ownerKeys) parse(answers []*etcdserverpb.ResponseOp) map[string]owner {
	owners := make(map[string]owner)
	for _, a := range answers {
		for _, kv := range a.GetResponseRange().Kvs {
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

func (k *ownerKeys) put(name, value string, grant clientv3.LeaseID) []clientv3.Op {
	if k == nil {
		return nil
	}
	return []clientv3.Op{clientv3.OpPut(k.prefix+name, value, clientv3.WithLease(grant))}
}

func (k *ownerKeys) delete(name string) []clientv3.Op {
	if k == nil {
		return nil
	}
	return []clientv3.Op{clientv3.OpDelete(k.prefix + name)}
}

// probe asks whether we may read and write owner keys, and changes none: etcd looks at the rights for all that a
// transaction could do, and no key was made before revision 0.
func (k *ownerKeys) probe() transaction {
	key := k.prefix + "probe"
	return transaction{
		when: []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "<", 0)},
		then: []clientv3.Op{clientv3.OpPut(key, "")},
	}
}

// asAllowed runs what works on leases and their owners, and again without owner keys if etcd does not let us have them.
func asAllowed[T any](ctx context.Context, s *Store, work func(*ownerKeys) (T, error)) (T, error) {
	k := s.ownerKeys()
	got, err := work(k)
	if k == nil || !errors.Is(err, rpctypes.ErrPermissionDenied) {
		return got, err
	}
	if _, denied := s.txn(ctx, "ask for owner keys", k.probe()); !errors.Is(denied, rpctypes.ErrPermissionDenied) {
		return got, err // it was about other keys, or cannot be told
	}
	s.renounce(k)
	return work(nil)
}

// renounce gives owner keys up until the next start.
func (s *Store) renounce(k *ownerKeys) {
	s.mu.Lock()
	first := s.owners != nil
	s.owners = nil
	s.mu.Unlock()
	if first {
		s.config.Log.Warn("the etcd role has no READWRITE permission for our owner keys, going on without them: "+
			"a second node with our public IP is not refused, and our subnet is not known again if our address changes while we are down",
			"prefix", k.prefix)
	}
}

func (s *Store) ownerKeys() *ownerKeys {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owners
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
	if h == nil || h.owner == clientv3.NoLease {
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
func (s *Store) own(ctx context.Context, k *ownerKeys, h *held, e entry, o owner) error {
	switch {
	case k == nil:
		return nil
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
	got, err := s.txn(ctx, "put the owner key of "+h.key, transaction{
		when: append(k.unchanged(h.key, o.mod), unchanged(s.subnetKey(h.key), e.mod)),
		then: k.put(h.key, value, grant),
	})
	if err != nil {
		return err
	}
	if !got.Succeeded {
		s.revokeEmpty(ctx, grant)
		return fmt.Errorf("etcd: put the owner key of %s: it changed meanwhile", h.key)
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
