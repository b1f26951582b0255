package etcd

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"weft/lease"
	"weft/lease/etcd/testetcd"
)

// nodes are the managers of several daemons on one etcd.
type nodes struct {
	mu       sync.Mutex
	states   []lease.State
	reported chan struct{} // holds one entry after a report
	// lost is the first state after complete was set that lacked a lease or had another subnet.
	complete bool
	lost     *lease.State
}

func (n *nodes) report(i int, s lease.State) {
	n.mu.Lock()
	if n.complete && n.lost == nil && (s.All.Len() < len(n.states) || !s.Self.SameSubnets(n.states[i].Self)) {
		n.lost = &s
	}
	n.states[i] = s
	n.mu.Unlock()
	select {
	case n.reported <- struct{}{}:
	default:
	}
}

// waitConverged waits until all nodes hold their leases and see all others.
func (n *nodes) waitConverged(t *testing.T) {
	t.Helper()
	limit := time.After(30 * time.Second)
	done := func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, s := range n.states {
			if !s.Held || !s.Connected || s.Err != nil || s.All.Len() != len(n.states) {
				return false
			}
		}
		return true
	}
	for !done() {
		select {
		case <-n.reported:
		case <-limit:
			t.Fatalf("nodes not converged: %+v", n.states)
		}
	}
}

func startNodes(t *testing.T, server *testetcd.Server, network lease.Network, count int) *nodes {
	n := &nodes{states: make([]lease.State, count), reported: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for i := range count {
		s := open(t, testConfig(server, "/net", i))
		s.callTimeout = 500 * time.Millisecond // shorter than the outage
		m := lease.NewManager(s, request(network, i), lease.Options{Log: slog.New(slog.DiscardHandler)})
		running.Go(func() {
			if err := m.Run(ctx, func(s lease.State) { n.report(i, s) }); err != nil {
				t.Errorf("node %d: %v", i, err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	n.waitConverged(t)
	n.mu.Lock()
	n.complete = true
	n.mu.Unlock()
	return n
}

func TestClusterWipedData(t *testing.T) {
	server := serve(t)
	newOperator(t, server, "/net").put(t, "/config", onlyV4)
	const count = 5
	n := startNodes(t, server, parseNetwork(t, onlyV4), count)
	before := slices.Clone(n.states)

	server.Close()
	if err := server.Wipe(); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	op := newOperator(t, server, "/net")
	limit := time.Now().Add(30 * time.Second)
	for len(op.all(t, "/subnets/")) != count {
		if time.Now().After(limit) {
			t.Fatalf("not all leases claimed again: %v", op.all(t, "/subnets/"))
		}
	}
	n.waitConverged(t)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lost != nil {
		t.Errorf("a node's state lacked a lease: %+v", *n.lost)
	}
	for i, s := range n.states {
		if !s.Self.SameSubnets(before[i].Self) {
			t.Errorf("node %d had %s, has %s", i, before[i].Self.Subnet, s.Self.Subnet)
		}
	}
}

func TestClusterOutage(t *testing.T) {
	server := serve(t)
	newOperator(t, server, "/net").put(t, "/config", onlyV4)
	n := startNodes(t, server, parseNetwork(t, onlyV4), 5)
	server.Close()
	down := func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return !slices.ContainsFunc(n.states, func(s lease.State) bool { return s.Connected })
	}
	limit := time.After(30 * time.Second)
	for !down() {
		select {
		case <-n.reported:
		case <-limit:
			t.Fatalf("outage not noticed: %+v", n.states)
		}
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	n.waitConverged(t)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lost != nil {
		t.Errorf("a node's state lacked a lease: %+v", *n.lost)
	}
}
