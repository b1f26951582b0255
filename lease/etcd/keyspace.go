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

// isReadable reports whether the entry exists and can be decoded. The zero entry does not exist.
func (e entry) isReadable() bool { return e.mod != 0 && e.err == nil }

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

// keyspace is the content of <prefix>/subnets/ and the node records at one revision.
type keyspace struct {
	subnets, nodes string // prefixes of keys; nodes is empty without node records
	end            string // of the range of keys
	revision       int64
	cluster        uint64 // cluster ID of etcd
	entries        map[string]entry
	records        map[string]record
	readable       lease.Set // the readable leases of entries
	// unreadable holds the errors of the other entries by key.
	unreadable map[string]error
}

// load decodes a complete list.
func (ks *keyspace) load(kvs []*mvccpb.KeyValue) {
	ks.entries, ks.records = make(map[string]entry, len(kvs)), make(map[string]record)
	ks.unreadable = make(map[string]error)
	for _, kv := range kvs {
		ks.put(kv)
	}
	leases := make([]lease.Lease, 0, len(ks.entries))
	for name, e := range ks.entries {
		ks.describe(name)
		if e.isReadable() {
			leases = append(leases, ks.entries[name].lease)
		} else {
			ks.unreadable[name] = e.err
		}
	}
	ks.readable = lease.NewSet(leases...)
}

// name returns the name of the lease that a key concerns, and whether it is a node record. It is
// empty for other keys.
func (ks *keyspace) name(key []byte) (name string, isRecord bool) {
	if name, ok := strings.CutPrefix(string(key), ks.subnets); ok {
		return name, false
	}
	if name, ok := strings.CutPrefix(string(key), ks.nodes); ok && ks.nodes != "" {
		return name, true
	}
	return "", false
}

// put adds a key.
func (ks *keyspace) put(kv *mvccpb.KeyValue) {
	switch name, isRecord := ks.name(kv.Key); {
	case name == "":
	case isRecord:
		ks.records[name] = parseRecord(kv)
	default:
		ks.entries[name] = decodeEntry(name, kv)
	}
}

// remove removes a key.
func (ks *keyspace) remove(key []byte) {
	if name, isRecord := ks.name(key); isRecord {
		delete(ks.records, name)
	} else {
		delete(ks.entries, name)
	}
}

// record returns the node record of a lease.
func (ks *keyspace) record(e entry) record {
	if r := ks.records[e.key]; r.describes(e) {
		return r
	}
	return record{}
}

// describe adds the content of the node record to the lease.
func (ks *keyspace) describe(name string) {
	if e, ok := ks.entries[name]; ok {
		r := ks.record(e)
		e.lease.Host, e.lease.FastPath = r.Node, r.FastPath
		ks.entries[name] = e
	}
}

// apply updates the keyspace with a watch response and reports whether a lease was added, removed
// or changed. A renewal that writes the same bytes again is not a change.
func (ks *keyspace) apply(r clientv3.WatchResponse) bool {
	if r.IsProgressNotify() {
		ks.revision = max(ks.revision, r.Header.GetRevision())
	}
	before := make(map[string]entry, len(r.Events)) // of the keys that the response concerns
	for _, ev := range r.Events {
		// The revision in the header may be ahead of events that are still to come.
		ks.revision = max(ks.revision, ev.Kv.ModRevision)
		name, _ := ks.name(ev.Kv.Key)
		if _, known := before[name]; !known {
			before[name] = ks.entries[name]
		}
		if ev.Type == mvccpb.DELETE {
			ks.remove(ev.Kv.Key)
		} else {
			ks.put(ev.Kv)
		}
	}
	for name := range before {
		ks.describe(name)
	}
	return ks.updateReadable(before)
}

// amend records keys that are known to be written or missing, although ks has not yet seen the
// changes up to them: its revision remains, and the stream brings them again.
func (ks *keyspace) amend(put []*mvccpb.KeyValue, missing []string) {
	before := make(map[string]entry)
	for _, kv := range put {
		name, _ := ks.name(kv.Key)
		before[name] = ks.entries[name]
	}
	for _, key := range missing {
		name, _ := ks.name([]byte(key))
		before[name] = ks.entries[name]
	}
	for _, kv := range put {
		ks.put(kv)
	}
	for _, key := range missing {
		ks.remove([]byte(key))
	}
	for name := range before {
		ks.describe(name)
	}
	ks.updateReadable(before)
}

// updateReadable updates the set of readable leases from the entries that may have changed, given
// as they were before. It reports whether a lease has changed.
func (ks *keyspace) updateReadable(before map[string]entry) bool {
	var remove, put []*lease.Lease
	for name, old := range before {
		now := ks.entries[name]
		delete(ks.unreadable, name)
		if now.err != nil {
			ks.unreadable[name] = now.err
		}
		if old.isReadable() && now.isReadable() && bytes.Equal(old.value, now.value) &&
			old.lease.Host == now.lease.Host && old.lease.FastPath == now.lease.FastPath {
			continue
		}
		if old.isReadable() {
			remove = append(remove, &old.lease)
		}
		if now.isReadable() {
			l := now.lease // without the rest of the entry
			put = append(put, &l)
		}
	}
	ks.readable = ks.readable.With(remove, put)
	return len(remove)+len(put) > 0
}

// snapshot returns the readable leases.
func (ks *keyspace) snapshot() lease.Snapshot {
	return lease.Snapshot{Revision: ks.revision, Leases: ks.readable}
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

// fingerprint returns the fingerprint without newest.
func (ks *keyspace) fingerprint() fingerprint {
	return fingerprint{cluster: ks.cluster, revision: ks.revision, count: int64(len(ks.entries))}
}

// completeFingerprint returns the fingerprint with newest, for which it looks at all entries.
func (ks *keyspace) completeFingerprint() fingerprint {
	f := ks.fingerprint()
	for _, e := range ks.entries {
		f.newest = max(f.newest, e.mod)
	}
	return f
}
