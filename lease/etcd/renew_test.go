package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

// TestRenewUnchanged extends the etcd lease of a key that needs no write.
func TestRenewUnchanged(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	l := mustClaim(t, s, request(c.network, 0))
	id := c.leaseIDOf(t, "/subnets/"+formatKey(l))
	left := func() int64 {
		got, err := c.TimeToLive(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return got.TTL
	}
	const granted = 86400
	await(t, "time to pass", func() error {
		if got := left(); got > granted-3 {
			return fmt.Errorf("%d s left", got)
		}
		return nil
	})
	before := c.all(t, "")
	again, err := s.Renew(t.Context(), l)
	if err != nil || again.Expires.Before(l.Expires.Add(time.Second)) {
		t.Errorf("renewed from %s until %s, %v", l.Expires, again.Expires, err)
	}
	if got := left(); got < granted-2 {
		t.Errorf("%d s left", got)
	}
	if got, err := c.Get(t.Context(), c.prefix+"/subnets/"+formatKey(l)); err != nil || got.Header.Revision !=
		got.Kvs[0].ModRevision || !maps.Equal(c.all(t, ""), before) {
		t.Errorf("renewal wrote: %v, %v", got, err)
	}
	// A lost record is written again, and so is a key whose etcd lease is gone.
	c.delete(t, "/weft/nodes/"+formatKey(l))
	if _, err := s.Renew(t.Context(), l); err != nil || !maps.Equal(c.all(t, ""), before) {
		t.Errorf("after the loss of the record: %v, %v", c.all(t, ""), err)
	}
}

func TestRenewNewEtcdLease(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	l := mustClaim(t, s, request(c.network, 0))
	old := c.leaseIDOf(t, "/subnets/"+formatKey(l))
	l.BackendType = "host-gw"
	if _, err := s.Renew(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if now := c.leaseIDOf(t, "/subnets/"+formatKey(l)); now == old {
		t.Error("key still has the old etcd lease")
	}
	if ttl, err := c.TimeToLive(t.Context(), old); err != nil || ttl.TTL > 0 {
		t.Errorf("old etcd lease not revoked: %+v, %v", ttl, err)
	}
}

func TestRenewForeignKey(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	l := mustClaim(t, s, request(c.network, 0))
	key := "/subnets/" + formatKey(l)
	mine := fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null}`, l.PublicIP)
	tests := []struct {
		name, value, owner string
		lost               bool
	}{
		{"same node, written by flannel", mine, "", false},
		{"another address", `{"PublicIP":"192.0.2.200","PublicIPv6":null}`, "", true},
		{"not JSON", `x`, "", true},
		{"another owner", mine, `{"id":"other","node":"bob"}`, true},
	}
	for _, test := range tests {
		if test.owner != "" {
			c.put(t, "/weft/owners/"+formatKey(l), test.owner)
		}
		c.put(t, key, test.value)
		_, err := s.Renew(t.Context(), l)
		if got := c.all(t, "/subnets/")[formatKey(l)]; errors.Is(err, lease.ErrLost) != test.lost || got != test.value {
			t.Errorf("%s: got %v, key is %s", test.name, err, got)
		}
	}
	c.delete(t, key)
	if _, err := s.Renew(t.Context(), l); !errors.Is(err, lease.ErrLost) {
		t.Errorf("without a key: %v", err)
	}
	if got := c.all(t, "/subnets/"); len(got) != 0 {
		t.Errorf("renewal created keys: %v", got)
	}
}

func TestRenewConcurrentChange(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	l := mustClaim(t, s, request(c.network, 0))
	ks, err := s.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key := formatKey(l)
	c.putLease(t, lease.Lease{Subnet: l.Subnet, Attrs: request(c.network, 9).Attrs})
	if _, done, err := s.write(t.Context(), s.weftKeys(), l, renewal{entry: ks.entries[key], value: "overwritten"}); done || err != nil {
		t.Errorf("overwrote a concurrent change: %v, %v", done, err)
	}
	if got := c.all(t, "/subnets/")[key]; !strings.Contains(got, "192.0.2.10") {
		t.Errorf("key is %s", got)
	}
}

func TestRenewMovedKey(t *testing.T) {
	for _, test := range []struct {
		name     string
		reserved bool // by the operator, before the claim
	}{{"a lease", false}, {"a reservation", true}} {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t, onlyV4)
			value := `{"PublicIP":"192.0.2.1","PublicIPv6":null}`
			if test.reserved {
				c.put(t, "/subnets/10.5.7.0-24", value)
			}
			s := open(t, c.config(0))
			key := "/subnets/" + formatKey(runManager(t, s, request(c.network, 0)))
			changes := c.Watch(t.Context(), c.prefix+key)
			short, err := c.Grant(t.Context(), 600)
			if err != nil {
				t.Fatal(err)
			}
			c.put(t, key, value, clientv3.WithLease(short.ID))
			limit := time.After(20 * time.Second)
			for grant := short.ID; grant == short.ID; {
				select {
				case r := <-changes:
					for _, e := range r.Events {
						grant = clientv3.LeaseID(e.Kv.Lease)
					}
				case <-limit:
					t.Fatal("key still has the operator's etcd lease")
				}
			}
			ttl, err := c.TimeToLive(t.Context(), c.leaseIDOf(t, key))
			if err != nil || ttl.GrantedTTL != 86400 {
				t.Errorf("etcd lease of %d s, %v", ttl.GrantedTTL, err)
			}
		})
	}
}

// runManager runs a Manager until the test ends and returns its lease.
func runManager(t *testing.T, s *Store, r lease.Request) lease.Lease {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	states := make(chan lease.State, 1000)
	var running sync.WaitGroup
	running.Go(func() {
		m := lease.NewManager(s, r, lease.Options{Log: slog.New(slog.DiscardHandler)})
		if err := m.Run(ctx, func(s lease.State) { states <- s }); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	limit := time.After(20 * time.Second)
	for {
		select {
		case s := <-states:
			if s.Held {
				return s.Self
			}
		case <-limit:
			t.Fatal("no lease")
		}
	}
}
