package etcd

import (
	"context"
	"errors"
	"path"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

// weftKeys builds the parts of a request that concern the keys that only Weft has. A nil *weftKeys
// builds none: the etcd role may be one for flannel.
type weftKeys struct {
	owners, nodes string // prefixes, with a final slash
}

func newWeftKeys(prefix string) *weftKeys {
	return &weftKeys{
		owners: path.Join(prefix, "weft/owners") + "/",
		nodes:  path.Join(prefix, "weft/nodes") + "/",
	}
}

// end returns the end of the range of keys that begins with the leases: with the node records,
// which follow them in etcd's order, so that one request or stream has both.
func (k *weftKeys) end(subnets string) string {
	if k == nil {
		return clientv3.GetPrefixRangeEnd(subnets)
	}
	return clientv3.GetPrefixRangeEnd(k.nodes)
}

// nodesPrefix returns the prefix of the node records; empty if there are none.
func (k *weftKeys) nodesPrefix() string {
	if k == nil {
		return ""
	}
	return k.nodes
}

// ownerName returns the name of the lease of an owner key, and whether key is one.
func (k *weftKeys) ownerName(key string) (string, bool) {
	if k == nil {
		return "", false
	}
	return strings.CutPrefix(key, k.owners)
}

func (k *weftKeys) getOwners(names ...string) []clientv3.Op {
	if k == nil {
		return nil
	}
	var ops []clientv3.Op
	for _, name := range names {
		ops = append(ops, clientv3.OpGet(k.owners+name))
	}
	return ops
}

// getNode reads the node record of a lease.
func (k *weftKeys) getNode(name string) []clientv3.Op {
	if k == nil {
		return nil
	}
	return []clientv3.Op{clientv3.OpGet(k.nodes + name)}
}

// getPair reads the owner key and the node record of a lease.
func (k *weftKeys) getPair(name string) []clientv3.Op {
	if k == nil {
		return nil
	}
	return append(k.getOwners(name), k.getNode(name)...)
}

// parsePair parses the responses to getPair.
func (k *weftKeys) parsePair(responses []*etcdserverpb.ResponseOp) (o owner, r record) {
	if k == nil {
		return owner{}, record{}
	}
	if kvs := responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		o = parseOwner(kvs[0])
	}
	if kvs := responses[1].GetResponseRange().Kvs; len(kvs) > 0 {
		r = parseRecord(kvs[0])
	}
	return o, r
}

// parseOwners parses the responses to getOwners. The result has keys without the prefix.
func (k *weftKeys) parseOwners(responses []*etcdserverpb.ResponseOp) map[string]owner {
	owners := make(map[string]owner)
	for _, r := range responses {
		for _, kv := range r.GetResponseRange().Kvs {
			owners[strings.TrimPrefix(string(kv.Key), k.owners)] = parseOwner(kv)
		}
	}
	return owners
}

// ownerUnchanged returns a comparison that holds if an owner key's last change is still at revision
// mod.
func (k *weftKeys) ownerUnchanged(name string, mod int64) []clientv3.Cmp {
	if k == nil {
		return nil
	}
	return []clientv3.Cmp{unchanged(k.owners+name, mod)}
}

func (k *weftKeys) putOwner(name, value string, id clientv3.LeaseID) []clientv3.Op {
	if k == nil {
		return nil
	}
	return []clientv3.Op{clientv3.OpPut(k.owners+name, value, clientv3.WithLease(id))}
}

func (k *weftKeys) putNode(name, value string, id clientv3.LeaseID) []clientv3.Op {
	if k == nil {
		return nil
	}
	return []clientv3.Op{clientv3.OpPut(k.nodes+name, value, clientv3.WithLease(id))}
}

// delete deletes both keys of a lease.
func (k *weftKeys) delete(name string) []clientv3.Op {
	if k == nil {
		return nil
	}
	return []clientv3.Op{clientv3.OpDelete(k.owners + name), clientv3.OpDelete(k.nodes + name)}
}

// probe returns a transaction that needs the permissions for all keys but changes nothing: etcd
// checks the permissions of both branches, and no key was created before revision 0.
func (k *weftKeys) probe(subnets string) transaction {
	owner, node := k.owners+"probe", k.nodes+"probe"
	return transaction{
		when: []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(owner), "<", 0)},
		then: []clientv3.Op{
			clientv3.OpPut(owner, ""), clientv3.OpPut(node, ""),
			clientv3.OpGet(subnets, clientv3.WithRange(k.end(subnets)), clientv3.WithCountOnly()),
		},
	}
}

// published returns the attributes that other nodes will read.
func (k *weftKeys) published(a lease.Attrs) lease.Attrs {
	a.FastPath = a.FastPath && k != nil
	return a
}

// withWeftKeys calls work with Weft's own keys, and again without them if etcd does not permit
// them.
func withWeftKeys[T any](
	ctx context.Context, s *Store, work func(*weftKeys) (T, error),
) (T, error) {
	k := s.weftKeys()
	got, err := work(k)
	if k == nil || !errors.Is(err, rpctypes.ErrPermissionDenied) {
		return got, err
	}
	_, probeErr := s.txn(ctx, "probe permissions", k.probe(s.subnets()))
	if !errors.Is(probeErr, rpctypes.ErrPermissionDenied) {
		return got, err // the config was denied, or the probe failed
	}
	got, err = work(nil)
	if !errors.Is(err, rpctypes.ErrPermissionDenied) {
		s.disableWeftKeys(k)
	}
	return got, err
}

// disableWeftKeys stops the use of Weft's own keys until the next start.
func (s *Store) disableWeftKeys(k *weftKeys) {
	s.mu.Lock()
	first := s.keys != nil
	s.keys = nil
	s.mu.Unlock()
	if first {
		s.config.Log.Warn("etcd role lacks READWRITE permission for all keys of the prefix: "+
			"a second node with the same public IP is not detected, "+
			"and the subnet is lost if the public IP changes while the daemon is down",
			"prefix", path.Join(s.config.Prefix)+"/")
	}
}

func (s *Store) weftKeys() *weftKeys {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys
}

// unchanged returns a comparison that holds if a key's last change is still at revision mod; 0
// means that the key does not exist.
func unchanged(key string, mod int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", mod)
}
