package etcd

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/lease"
)

func TestOwnerKeyRestored(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	s.ownerTTL = time.Second
	l := mustClaim(t, s, request(c.network, 0))
	grant := c.leaseIDOf(t, "/weft/owners/"+formatKey(l))
	w := startWatch(t, s)
	w.next(t)
	if _, err := c.Revoke(t.Context(), grant); err != nil {
		t.Fatal(err)
	}
	if err := w.end(t); !errors.Is(err, errOwnerGone) {
		t.Errorf("got %v", err)
	}
	startWatch(t, s).next(t)
	if got := c.all(t, "/weft/owners/"); got[formatKey(l)] == "" {
		t.Errorf("owner keys: %v", got)
	}
	if err := s.keepAlive(t.Context()); err != nil {
		t.Errorf("keep-alive of the new owner key: %v", err)
	}
	// But not if another daemon owns it now.
	s = open(t, c.config(1))
	l = mustClaim(t, s, request(c.network, 1))
	c.put(t, "/weft/owners/"+formatKey(l), `{"id":"other","node":"bob"}`)
	if err := startWatch(t, s).end(t); !errors.Is(err, lease.ErrInUse) || !strings.Contains(err.Error(), `"bob"`) {
		t.Errorf("got %v", err)
	}
	startWatch(t, s).next(t) // the error is returned once, then the list is delivered
}

func TestOwnerKeyConcurrentChange(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	l := mustClaim(t, s, request(c.network, 0))
	key := formatKey(l)
	c.delete(t, "/weft/owners/"+key)
	ks, err := s.list(t.Context()) // restores it
	if err != nil {
		t.Fatal(err)
	}
	const hers = `{"id":"hers","node":"alice"}`
	c.put(t, "/weft/owners/"+key, hers)
	if err := s.ensureOwnerKey(t.Context(), s.weftKeys(), s.getOwn(), ks.entries[key], owner{}); err == nil ||
		c.all(t, "/weft/owners/")[key] != hers {
		t.Errorf("overwrote the owner: %v", err)
	}
	c.delete(t, "/weft/owners/"+key)
	c.putLease(t, lease.Lease{Subnet: l.Subnet, Attrs: request(c.network, 5).Attrs})
	if err := s.ensureOwnerKey(t.Context(), s.weftKeys(), s.getOwn(), ks.entries[key], owner{}); err == nil ||
		len(c.all(t, "/weft/owners/")) != 0 {
		t.Errorf("owner key put for another node's lease: %v", err)
	}
}

func TestDuplicatePublicIP(t *testing.T) {
	c := newCluster(t, onlyV4)
	alice := open(t, c.config(0))
	alice.ownerTTL = time.Second
	r := request(c.network, 0)
	r.Node = "alice"
	held := mustClaim(t, alice, r)
	discardWatch(t, alice) // keeps the owner key alive
	r.Node = "bob"
	bob := open(t, c.config(1))
	refused := func() {
		t.Helper()
		_, err := bob.Claim(t.Context(), r)
		if !errors.Is(err, lease.ErrInUse) || !strings.Contains(err.Error(), `"alice"`) ||
			!strings.Contains(err.Error(), "192.0.2.1") {
			t.Fatalf("bob got %v", err)
		}
	}
	// Longer than the owner key lasts without a keep-alive.
	for end := time.Now().Add(5 * alice.ownerTTL / 2); time.Now().Before(end); {
		refused()
	}
	if got := c.all(t, "/subnets/"); len(got) != 1 {
		t.Errorf("keys: %v", got)
	}
	if err := alice.Close(); err != nil {
		t.Fatal(err)
	}
	if l := mustClaim(t, bob, r); !l.SameSubnets(held) {
		t.Errorf("after alice's revoke bob got %s, want %s", l.Subnet, held.Subnet)
	}
}

func TestClaimOwnerReturns(t *testing.T) {
	c := newCluster(t, onlyV4)
	l := lease.Lease{Subnet: prefix("10.5.3.0/24"), Attrs: request(c.network, 0).Attrs}
	c.putLease(t, l) // alice's lease; her owner key has expired
	bob := open(t, c.config(1))
	ks, err := bob.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	try := &claim{request: request(c.network, 0), id: bob.id, keys: bob.weftKeys(), ks: ks}
	if err := try.decide(bob.random); err != nil {
		t.Fatal(err)
	}
	c.put(t, "/weft/owners/10.5.3.0-24", `{"id":"hers","node":"alice"}`)
	if got, err := bob.commit(t.Context(), try); err != nil || got.Succeeded {
		t.Errorf("claimed the lease of a live node: %v", err)
	}
	if _, err := bob.Claim(t.Context(), request(c.network, 0)); !errors.Is(err, lease.ErrInUse) {
		t.Errorf("got %v", err)
	}
}

// discardWatch runs a watch until the test ends and discards its snapshots.
func discardWatch(t *testing.T, s *Store) {
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.Watch(t.Context(), func(lease.Snapshot) {}); err != nil {
			t.Logf("watch ended: %v", err)
		}
	})
	t.Cleanup(done.Wait)
}

func TestLiveOwnerSubnetReserved(t *testing.T) {
	c := newCluster(t, `{"Network":"10.5.0.0/20","SubnetMin":"10.5.3.0","SubnetMax":"10.5.4.0"}`)
	first := mustClaim(t, open(t, c.config(0)), request(c.network, 0))
	c.delete(t, "/subnets/"+formatKey(first))
	for n := 1; n <= 2; n++ {
		l, err := open(t, c.config(n)).Claim(t.Context(), request(c.network, n))
		if n == 1 && (err != nil || l.SameSubnets(first)) || n == 2 && !errors.Is(err, lease.ErrNoSubnet) {
			t.Errorf("node %d got %s, %v", n, l.Subnet, err)
		}
	}
}
