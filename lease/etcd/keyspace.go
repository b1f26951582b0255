package etcd

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

// entry is one key below subnets/.
type entry struct {
	key   string // the part after subnets/
	value []byte
	lease lease.Lease // its Attrs are unset if the value cannot be read, its subnets as far as the key cannot
	err   error       // why the key or the value cannot be read
	mod   int64       // revision of the last change
	grant clientv3.LeaseID
}

// decode reads a key below subnets/ of which name is the last part.
func decode(name string, kv *mvccpb.KeyValue) entry {
	e := entry{key: name, value: kv.Value, mod: kv.ModRevision, grant: clientv3.LeaseID(kv.Lease)}
	if e.lease, e.err = parseKey(name); e.err != nil {
		if e.lease = parseLoosely(name); !e.lease.Subnet.IsValid() && !e.lease.Subnet6.IsValid() {
			return e // nobody's
		}
	}
	var err error
	if e.lease.Attrs, err = parseValue(kv.Value); err != nil {
		e.err = errors.Join(e.err, fmt.Errorf("value of subnet key %q: %w", name, err))
		return e
	}
	if public := e.lease.Public(); public.IsValid() {
		e.lease.Node = public.String()
	}
	return e
}

// view is the content of subnets/ at one revision.
type view struct {
	prefix   string // of the keys, with the slash at its end
	revision int64
	cluster  uint64 // the etcd cluster's id
	entries  map[string]entry
}

// newView makes a view of a whole list.
func newView(prefix string, cluster uint64, revision int64, kvs []*mvccpb.KeyValue) *view {
	v := &view{prefix: prefix, cluster: cluster, revision: revision, entries: make(map[string]entry, len(kvs))}
	for _, kv := range kvs {
		name := strings.TrimPrefix(string(kv.Key), prefix)
		v.entries[name] = decode(name, kv)
	}
	return v
}

// apply brings the view up to date with what a watch told, and reports whether a lease came, went or changed.
// A renewal writes the same bytes again, which is no change.
func (v *view) apply(r clientv3.WatchResponse) bool {
	changed := false
	if r.IsProgressNotify() {
		v.revision = max(v.revision, r.Header.GetRevision())
	}
	for _, ev := range r.Events {
		v.revision = max(v.revision, ev.Kv.ModRevision) // the header may be ahead of events that are still to come
		name := strings.TrimPrefix(string(ev.Kv.Key), v.prefix)
		old, had := v.entries[name]
		if ev.Type == mvccpb.DELETE {
			delete(v.entries, name)
			changed = changed || had && old.err == nil
			continue
		}
		now := decode(name, ev.Kv)
		v.entries[name] = now
		same := had && old.err == nil && now.err == nil && bytes.Equal(old.value, now.value)
		changed = changed || !same && (now.err == nil || had && old.err == nil)
	}
	return changed
}

// snapshot lists the leases that can be read, ordered by subnet.
func (v *view) snapshot() lease.Snapshot {
	s := lease.Snapshot{Revision: v.revision, Leases: make([]lease.Lease, 0, len(v.entries))}
	for _, e := range v.entries {
		if e.err == nil {
			s.Leases = append(s.Leases, e.lease)
		}
	}
	slices.SortFunc(s.Leases, lease.Compare)
	return s
}

// sorted lists all entries in the order of their keys.
func (v *view) sorted() []entry {
	return slices.SortedFunc(maps.Values(v.entries), func(a, b entry) int { return strings.Compare(a.key, b.key) })
}

// fingerprint is what one request without keys or values in its answer tells about subnets/.
type fingerprint struct {
	cluster  uint64
	revision int64 // of the whole etcd
	count    int64 // of keys
	newest   int64 // revision of the last change among the keys there are
}

// same reports whether the server is where the view is: in an etcd in which nothing was written since, nothing can have
// been missed. It does without newest, for which etcd has to read and sort all keys.
func (f fingerprint) same(server fingerprint) bool {
	return f.cluster == server.cluster && f.revision == server.revision && f.count == server.count
}

func (v *view) fingerprint() fingerprint {
	f := fingerprint{cluster: v.cluster, revision: v.revision, count: int64(len(v.entries))}
	for _, e := range v.entries {
		f.newest = max(f.newest, e.mod)
	}
	return f
}
