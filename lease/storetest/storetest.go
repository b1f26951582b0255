// Package storetest provides the test suite that every lease.Store must pass. A store's test
// supplies a Harness, whose functions also make the changes that other programs would make to the
// store's data.
package storetest

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/lease"
)

// Harness provides an empty store. Every test of the suite gets its own.
type Harness struct {
	// Nodes is the number of nodes that the store has subnets for, at least 3 (20 make a race
	// likely). Nodes are numbered from 0; node number Nodes finds the pool full.
	Nodes int
	// Request returns the lease request of node n.
	Request func(n int) lease.Request
	// Open opens the store for node n. A second call for n simulates a restart, whether or not the
	// first store was closed. The harness closes all stores in t.Cleanup.
	Open func(t *testing.T, n int) lease.Store
	// Add adds a lease of a foreign node; the suite calls it while fewer than Nodes leases are
	// held. Change changes the public IP of a lease and returns the new lease. Remove deletes a
	// lease.
	Add    func(t *testing.T) lease.Lease
	Change func(t *testing.T, l lease.Lease) lease.Lease
	Remove func(t *testing.T, l lease.Lease)
	// Compact discards the store's history; nil if it has none.
	Compact func(t *testing.T)
	// Static reports that nodes cannot publish attributes: the store's data defines them.
	Static bool
}

// waitTimeout bounds every wait of the suite. It is long because the machine may be busy.
const waitTimeout = 20 * time.Second

// Run runs the suite. fresh returns a Harness with a new, empty store.
func Run(t *testing.T, fresh func(t *testing.T) Harness) {
	tests := []struct {
		name string
		run  func(t *testing.T, h Harness)
	}{
		{"Network", testNetwork},
		{"Claim", testClaim},
		{"ClaimAgain", testClaimAgain},
		{"ClaimRace", testRace},
		{"Renew", testRenew},
		{"FastPath", testFastPath},
		{"RenewLost", testLost},
		{"Watch", testWatch},
		{"WatchCompaction", testCompaction},
		{"Cancel", testCancel},
		{"Manager", testManager},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, fresh(t)) })
	}
}

func testNetwork(t *testing.T, h Harness) {
	n, err := h.Open(t, 0).Network(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Check(); err != nil {
		t.Errorf("network config not valid: %v", err)
	}
	if want := h.Request(0).Network; n.Network != want.Network || n.SubnetLen != want.SubnetLen ||
		n.Backend.Type != want.Backend.Type {
		t.Errorf("got %+v, want %+v", n, want)
	}
}

func testClaim(t *testing.T, h Harness) {
	r := h.Request(0)
	l := claim(t, h.Open(t, 0), r)
	if !l.SameNode(r.Attrs) {
		t.Errorf("lease of %s, want %s", l.Public(), r.Attrs.Public())
	}
	if l.Node == "" {
		t.Error("lease without node name")
	}
	if r.Network.EnableIPv4 != within(r.Network.Network, l.Subnet) ||
		r.Network.EnableIPv6 != within(r.Network.IPv6Network, l.Subnet6) {
		t.Errorf("subnets %s and %s do not fit network %+v", l.Subnet, l.Subnet6, r.Network)
	}
	if !l.Expires.IsZero() && l.Expires.Before(time.Now()) {
		t.Errorf("lease already expired: %s", l.Expires)
	}
}

// within reports whether p is a proper subnet of network.
func within(network, p netip.Prefix) bool {
	return p.IsValid() && p == p.Masked() && network.IsValid() && p.Bits() > network.Bits() &&
		network.Contains(p.Addr())
}

func testClaimAgain(t *testing.T, h Harness) {
	other := claim(t, h.Open(t, 1), h.Request(1))
	store := h.Open(t, 0)
	first := claim(t, store, h.Request(0))
	if again := claim(t, store, h.Request(0)); !again.SameSubnets(first) {
		t.Errorf("same store: got %s, then %s", first.Subnet, again.Subnet)
	}
	if again := claim(t, h.Open(t, 0), h.Request(0)); !again.SameSubnets(first) {
		t.Errorf("restarted without Close: got %s, then %s", first.Subnet, again.Subnet)
	}
	if other.Overlaps(first) {
		t.Errorf("two nodes got overlapping %s and %s", other.Subnet, first.Subnet)
	}
}

func testRace(t *testing.T, h Harness) {
	stores := make([]lease.Store, h.Nodes)
	for n := range stores {
		stores[n] = h.Open(t, n)
	}
	leases, errs := make([]lease.Lease, h.Nodes), make([]error, h.Nodes)
	var start, end sync.WaitGroup
	start.Add(1)
	for n, store := range stores {
		end.Go(func() {
			start.Wait()
			leases[n], errs[n] = store.Claim(t.Context(), h.Request(n))
		})
	}
	start.Done()
	end.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i, l := range leases {
		if j := slices.IndexFunc(leases[:i], l.Overlaps); j >= 0 {
			t.Errorf("nodes %d and %d got %s and %s", i, j, l.Subnet, leases[j].Subnet)
		}
	}
	if l, err := h.Open(t, h.Nodes).Claim(t.Context(), h.Request(h.Nodes)); !errors.Is(err,
		lease.ErrNoSubnet) {
		t.Errorf("full pool: got %s, error %v, want ErrNoSubnet", l.Subnet, err)
	}
	// A node with a lease keeps it in a full pool.
	if again := claim(t, h.Open(t, 0), h.Request(0)); !again.SameSubnets(leases[0]) {
		t.Errorf("full pool: node 0 got %s, then %s", leases[0].Subnet, again.Subnet)
	}
}

func testRenew(t *testing.T, h Harness) {
	store := h.Open(t, 0)
	l := claim(t, store, h.Request(0))
	renewed, err := store.Renew(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if !renewed.SameSubnets(l) || renewed.Expires.Before(l.Expires) ||
		renewed.Expires.IsZero() != l.Expires.IsZero() {
		t.Errorf("renewed %+v to %+v", l, renewed)
	}
	if h.Static {
		return
	}
	// The address may change repeatedly and revert.
	lists := watch(t, h.Open(t, 1))
	first := l.PublicIP
	for _, public := range []netip.Addr{netip.MustParseAddr("198.51.100.77"),
		netip.MustParseAddr("198.51.100.78"), first} {
		l.Attrs.PublicIP = public
		if renewed, err = store.Renew(t.Context(), l); err != nil {
			t.Fatalf("publish %s: %v", public, err)
		}
		if !renewed.Attrs.Equal(l.Attrs) {
			t.Errorf("published %+v, lease has %+v", l.Attrs, renewed.Attrs)
		}
		await(t, lists, "the new address", func(s lease.Snapshot) bool { return holds(s, l) })
	}
}

// testFastPath announces a fast path and withdraws it.
func testFastPath(t *testing.T, h Harness) {
	if h.Static {
		t.Skip("nodes announce nothing")
	}
	store := h.Open(t, 0)
	r := h.Request(0)
	r.Attrs.FastPath = true
	l := claim(t, store, r)
	lists := watch(t, h.Open(t, 1))
	announces := func(want bool) func(lease.Snapshot) bool {
		return func(s lease.Snapshot) bool {
			return holds(s, l) && slices.ContainsFunc(lease.List(s.Leases),
				func(o lease.Lease) bool { return o.SameSubnets(l) && o.FastPath == want })
		}
	}
	await(t, lists, "the announcement of the claim", announces(true))
	for _, want := range []bool{false, true} {
		l.FastPath = want
		renewed, err := store.Renew(t.Context(), l)
		if err != nil || renewed.FastPath != want {
			t.Fatalf("renewed %+v, %v", renewed, err)
		}
		await(t, lists, "a changed announcement", announces(want))
	}
	if again := claim(t, h.Open(t, 0), h.Request(0)); again.FastPath {
		t.Error("claimed again without a fast path, but it is announced")
	}
	await(t, lists, "the claim without it", announces(false))
}

func testLost(t *testing.T, h Harness) {
	store := h.Open(t, 0)
	l := claim(t, store, h.Request(0))
	lists := watch(t, store)
	await(t, lists, "the own lease", func(s lease.Snapshot) bool { return holds(s, l) })
	h.Remove(t, l)
	await(t, lists, "the loss", func(s lease.Snapshot) bool { return !holds(s, l) })
	if _, err := store.Renew(t.Context(), l); !errors.Is(err, lease.ErrLost) {
		t.Errorf("Renew returned %v, want ErrLost", err)
	}
}

func testWatch(t *testing.T, h Harness) {
	store := h.Open(t, 0)
	own := claim(t, store, h.Request(0))
	lists := watch(t, store)
	first := await(t, lists, "the own lease", func(s lease.Snapshot) bool { return holds(s, own) })
	before := lease.List(first.Leases)
	added := h.Add(t)
	s := await(t, lists, "the added lease", func(s lease.Snapshot) bool { return holds(s, added) })
	changed := h.Change(t, added)
	s = await(t, lists, "the changed lease",
		func(s lease.Snapshot) bool { return holds(s, changed) && !holds(s, added) })
	if !slices.IsSortedFunc(lease.List(s.Leases), lease.Compare) {
		t.Errorf("leases not ordered: %v", lease.List(s.Leases))
	}
	h.Remove(t, changed)
	s = await(t, lists, "the removal", func(s lease.Snapshot) bool { return !holds(s, changed) })
	if !holds(s, own) {
		t.Error("own lease removed")
	}
	if !slices.EqualFunc(lease.List(first.Leases), before, lease.Lease.Equal) {
		t.Error("delivered list modified later")
	}
}

func testCompaction(t *testing.T, h Harness) {
	if h.Compact == nil {
		t.Skip("store has no history")
	}
	store := h.Open(t, 0)
	lists := watch(t, store)
	gone := h.Add(t)
	await(t, lists, "the first lease", func(s lease.Snapshot) bool { return holds(s, gone) })
	h.Remove(t, gone)
	stays := h.Add(t)
	h.Compact(t)
	after := func(s lease.Snapshot) bool { return holds(s, stays) && !holds(s, gone) }
	await(t, lists, "the changes before the compaction", after)
	await(t, watch(t, h.Open(t, 1)), "the changes in a new watch", after)
	late := h.Add(t)
	await(t, lists, "the change after the compaction",
		func(s lease.Snapshot) bool { return holds(s, late) })
}

func testCancel(t *testing.T, h Harness) {
	leaks := goleak.IgnoreCurrent()
	t.Run("watch", func(t *testing.T) {
		store := h.Open(t, 0)
		claim(t, store, h.Request(0))
		ctx, cancel := context.WithCancel(t.Context())
		first, ended := make(chan struct{}, 100), make(chan error, 1)
		go func() { ended <- store.Watch(ctx, func(lease.Snapshot) { first <- struct{}{} }) }()
		<-first
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("cancelled Watch returned %v", err)
			}
		case <-time.After(2 * time.Second):
			t.Error("cancelled Watch did not return")
		}
		if err := store.Watch(ctx, func(lease.Snapshot) {}); err != nil {
			t.Errorf("Watch with a cancelled context returned %v", err)
		}
	})
	goleak.VerifyNone(t, leaks)
}

func testManager(t *testing.T, h Harness) {
	m := lease.NewManager(h.Open(t, 0), h.Request(0),
		lease.Options{Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	states, ended := make(chan lease.State, 1000), make(chan error, 1)
	go func() { ended <- m.Run(ctx, func(s lease.State) { states <- s }) }()
	var s lease.State
	until := func(event string, done func() bool) {
		t.Helper()
		limit := time.After(waitTimeout)
		for !done() {
			select {
			case s = <-states:
			case <-limit:
				t.Fatalf("timeout waiting for %s, state %+v", event, s)
			}
		}
	}
	until("the lease", func() bool { return s.Held && s.Connected })
	own := s.Self
	added := h.Add(t)
	until("a peer", func() bool { return holds(lease.Snapshot{Leases: s.All}, added) })
	if !h.Static {
		lists := watch(t, h.Open(t, 1))
		await(t, lists, "the own lease", func(s lease.Snapshot) bool { return holds(s, own) })
		h.Remove(t, own)
		await(t, lists, "the loss", func(s lease.Snapshot) bool { return !holds(s, own) })
		await(t, lists, "the lease again", func(s lease.Snapshot) bool { return holds(s, own) })
		until("the lease again", func() bool { return s.Held })
		if !s.Self.SameSubnets(own) {
			t.Errorf("had %s, claimed %s after the loss", own.Subnet, s.Self.Subnet)
		}
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("Run returned %v", err)
		}
	case <-time.After(2 * time.Second):
		t.Error("Run did not return after cancellation")
	}
}

// claim claims a lease and fails the test on an error.
func claim(t *testing.T, s lease.Store, r lease.Request) lease.Lease {
	t.Helper()
	l, err := s.Claim(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// watch calls Watch until the test ends, as the manager does, and checks that revisions never
// decrease.
func watch(t *testing.T, s lease.Store) <-chan lease.Snapshot {
	ctx, cancel := context.WithCancel(context.Background())
	lists := make(chan lease.Snapshot, 1000)
	var done sync.WaitGroup
	done.Go(func() {
		last := int64(-1)
		for ctx.Err() == nil {
			err := s.Watch(ctx, func(s lease.Snapshot) {
				if s.Revision < last {
					t.Errorf("revision %d after %d", s.Revision, last)
				}
				last = s.Revision
				lists <- s
			})
			if err != nil {
				t.Logf("watch ended: %v", err)
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	return lists
}

// await waits for a list that satisfies wanted and returns it.
func await(
	t *testing.T, lists <-chan lease.Snapshot, event string, wanted func(lease.Snapshot) bool,
) lease.Snapshot {
	t.Helper()
	limit := time.After(waitTimeout)
	var s lease.Snapshot
	for {
		select {
		case s = <-lists:
			if wanted(s) {
				return s
			}
		case <-limit:
			t.Fatalf("timeout waiting for %s, last list %+v", event, s)
		}
	}
}

// holds reports whether s contains a lease with the subnets and public IP of l.
func holds(s lease.Snapshot, l lease.Lease) bool {
	return slices.ContainsFunc(lease.List(s.Leases),
		func(o lease.Lease) bool { return o.SameSubnets(l) && o.SameNode(l.Attrs) })
}
