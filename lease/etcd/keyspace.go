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

// entry is one key in <prefix>/subnets/.
type entry struct {
	key   string // without <prefix>/subnets/
	value []byte
	// lease is the decoded lease. Its Attrs are unset if the value is unreadable; a subnet is unset
	// if that part of the key is.
	lease   lease.Lease
	err     error // why the key or the value is unreadable; nil if both are readable
	mod     int64 // revision of the last change
	leaseID clientv3.LeaseID
}

// decodeEntry decodes a key-value pair. name is the key without <prefix>/subnets/.
func decodeEntry(name string, kv *mvccpb.KeyValue) entry {
	e := entry{key: name, value: kv.Value, mod: kv.ModRevision, leaseID: clientv3.LeaseID(kv.Lease)}
	if e.lease, e.err = parseKey(name); e.err != nil {
		e.lease = parseLikeFlannel(name)
		if !e.lease.Subnet.IsValid() && !e.lease.Subnet6.IsValid() {
			return e
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

// keyspace is the content of <prefix>/subnets/ at one revision.
type keyspace struct {
	prefix   string // of the keys, with a final slash
	revision int64
	cluster  uint64 // cluster ID of etcd
	entries  map[string]entry
}

// newKeyspace decodes a complete list.
func newKeyspace(prefix string, cluster uint64, revision int64, kvs []*mvccpb.KeyValue) *keyspace {
	ks := &keyspace{
		prefix: prefix, cluster: cluster, revision: revision,
		entries: make(map[string]entry, len(kvs)),
	}
	for _, kv := range kvs {
		name := strings.TrimPrefix(string(kv.Key), prefix)
		ks.entries[name] = decodeEntry(name, kv)
	}
	return ks
}

// apply updates the keyspace with a watch response and reports whether a lease was added, removed
// or changed. A renewal that writes the same bytes again is not a change.
func (ks *keyspace) apply(r clientv3.WatchResponse) bool {
	changed := false
	if r.IsProgressNotify() {
		ks.revision = max(ks.revision, r.Header.GetRevision())
	}
	for _, ev := range r.Events {
		// The revision in the header may be ahead of events that are still to come.
		ks.revision = max(ks.revision, ev.Kv.ModRevision)
		name := strings.TrimPrefix(string(ev.Kv.Key), ks.prefix)
		old, had := ks.entries[name]
		if ev.Type == mvccpb.DELETE {
			delete(ks.entries, name)
			changed = changed || had && old.err == nil
			continue
		}
		now := decodeEntry(name, ev.Kv)
		ks.entries[name] = now
		same := had && old.err == nil && now.err == nil && bytes.Equal(old.value, now.value)
		changed = changed || !same && (now.err == nil || had && old.err == nil)
	}
	return changed
}

// snapshot returns the readable leases, ordered by subnet.
func (ks *keyspace) snapshot() lease.Snapshot {
	s := lease.Snapshot{Revision: ks.revision, Leases: make([]lease.Lease, 0, len(ks.entries))}
	for _, e := range ks.entries {
		if e.err == nil {
			s.Leases = append(s.Leases, e.lease)
		}
	}
	slices.SortFunc(s.Leases, lease.Compare)
	return s
}

// sorted returns all entries, ordered by key.
func (ks *keyspace) sorted() []entry {
	byKey := func(a, b entry) int { return strings.Compare(a.key, b.key) }
	return slices.SortedFunc(maps.Values(ks.entries), byKey)
}

// fingerprint summarises <prefix>/subnets/ with data that one request obtains without keys or
// values.
type fingerprint struct {
	cluster  uint64
	revision int64 // of the whole etcd
	count    int64 // of keys
	newest   int64 // highest revision of a key's last change
}

// unwritten reports whether nothing was written to etcd since f, so that no change can have been
// missed. It ignores newest, for which etcd has to read and sort all keys.
func (f fingerprint) unwritten(server fingerprint) bool {
	return f.cluster == server.cluster && f.revision == server.revision && f.count == server.count
}

func (ks *keyspace) fingerprint() fingerprint {
	f := fingerprint{cluster: ks.cluster, revision: ks.revision, count: int64(len(ks.entries))}
	for _, e := range ks.entries {
		f.newest = max(f.newest, e.mod)
	}
	return f
}
