package etcd

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

// record is the content of a node record: which node a lease belongs to, for as long as the lease
// lasts. The zero record means that the key does not exist.
type record struct {
	ID       string `json:"id"`                 // of the daemon: see identity
	Node     string `json:"node"`               // its host name
	FastPath bool   `json:"fastPath,omitempty"` // lease.Attrs.FastPath
	leaseID  clientv3.LeaseID
}

// parseRecord parses a node record. An unreadable one counts as missing.
func parseRecord(kv *mvccpb.KeyValue) record {
	var r record
	if err := json.Unmarshal(kv.Value, &r); err != nil {
		return record{}
	}
	r.leaseID = clientv3.LeaseID(kv.Lease)
	return r
}

// describes reports whether the record was written with the lease e. It was not if flannel wrote
// the lease since, as it does with the address of a former Weft node.
func (r record) describes(e entry) bool {
	return e.leaseID == clientv3.NoLease || e.leaseID == r.leaseID
}

// recordOf returns the node record of a lease of this daemon.
func (s *Store) recordOf(own ownLease) record {
	return record{ID: s.id, Node: own.node, FastPath: own.attrs.FastPath}
}

// format returns the value of a node record.
func (r record) format() (string, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("encode node record: %w", err)
	}
	return string(b), nil
}

// former finds the leases that this node had with another address, by its daemon's ID. If it has
// none with any address, it looks for its host name: the ID changes when the machine boots. Host
// names may be ambiguous: of several leases, only the previous one is taken, and none of a node
// whose daemon runs.
func (s *Store) former(
	ctx context.Context, k *weftKeys, ks *keyspace, r lease.Request,
) (map[string]bool, error) {
	former := make(map[string]bool)
	var sameName []entry
	known := false
	for name, e := range ks.entries {
		switch rec := ks.record(e); {
		case e.lease.SameNode(r.Attrs):
			known = true
		case rec.ID == s.id:
			former[name], known = true, true
		case rec.Node == r.Node && identifies(r.Node):
			sameName = append(sameName, e)
		}
	}
	if known || len(sameName) == 0 {
		return former, nil
	}
	e, ok := onlyOrPrevious(sameName, r)
	if !ok {
		return nil, nil
	}
	gone, err := s.isGone(ctx, k, e, r.Node)
	former[e.key] = gone
	return former, err
}

// identifies reports whether a host name was given to the host.
func identifies(node string) bool { return node != "" && !strings.HasPrefix(node, "localhost") }

// onlyOrPrevious returns the only entry, or that of the requesting node's previous subnets.
func onlyOrPrevious(entries []entry, r lease.Request) (entry, bool) {
	if len(entries) == 1 {
		return entries[0], true
	}
	for _, e := range entries {
		if e.lease.SameSubnets(lease.Lease{Subnet: r.Previous, Subnet6: r.Previous6}) {
			return e, true
		}
	}
	return entry{}, false
}

// ttlPrecision is how much later than before a TTL may seem to end without a keep-alive: etcd
// rounds it to seconds, and a response takes a while.
const ttlPrecision = 2 * time.Second

// isGone reports whether the daemon that has the lease e runs no more. Its owner key outlasts it by
// the key's TTL: until then, isGone fails, unless the key is kept alive.
func (s *Store) isGone(ctx context.Context, k *weftKeys, e entry, node string) (bool, error) {
	got, err := s.txn(ctx, "read owner key of "+e.key, transaction{then: k.getOwners(e.key)})
	if err != nil {
		return false, err
	}
	o := k.parseOwners(got.Responses)[e.key]
	if !o.isOther(s.id) {
		return true, nil
	}
	var left time.Duration
	err = s.call(ctx, "read TTL of owner key", func(ctx context.Context, c *clientv3.Client) error {
		got, err := c.TimeToLive(ctx, o.leaseID)
		if err == nil {
			left = time.Duration(max(got.TTL, 0)) * time.Second
		}
		return err
	})
	if err != nil {
		return false, err
	}
	expires := time.Now().Add(left)
	first, seen := s.ownersExpire[o.leaseID]
	if !seen {
		s.ownersExpire[o.leaseID] = expires
	} else if expires.Sub(first) > ttlPrecision {
		return false, nil // another node with this host name
	}
	return false, fmt.Errorf("etcd: lease %s of %s has the host name of this node, %q: "+
		"it is taken over unless its daemon shows before %s that it is alive",
		e.key, e.lease.Public(), node, s.ownersExpire[o.leaseID].Format(time.TimeOnly))
}
