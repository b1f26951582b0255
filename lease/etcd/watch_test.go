package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	"weft/lease"
)

// watcher is a Watch that runs until the test ends.
type watcher struct {
	lists chan lease.Snapshot
	ended chan error
}

func startWatch(t *testing.T, s *Store) watcher {
	ctx, cancel := context.WithCancel(context.Background())
	w := watcher{make(chan lease.Snapshot, 1000), make(chan error, 1)}
	var done sync.WaitGroup
	done.Go(func() { w.ended <- s.Watch(ctx, func(s lease.Snapshot) { w.lists <- s }) })
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	return w
}

// next returns the next snapshot.
func (w watcher) next(t *testing.T) lease.Snapshot {
	t.Helper()
	select {
	case s := <-w.lists:
		return s
	case err := <-w.ended:
		t.Fatalf("watch ended: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("no list")
	}
	return lease.Snapshot{}
}

// end waits for the end of the watch and returns its error.
func (w watcher) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-w.ended:
		if err == nil {
			t.Fatal("watch ended without an error")
		}
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("watch did not end")
	}
	return nil
}

func TestWatchUnreadableKeys(t *testing.T) {
	c := newCluster(t, onlyV4)
	var log lockedBuffer
	config := c.config(0)
	config.Log = slog.New(slog.NewTextHandler(&log, nil))
	s := open(t, config)
	s.random = func(int) int { return 0 } // not a subnet used below
	own := mustClaim(t, s, request(c.network, 0))
	w := startWatch(t, s)
	if got := w.next(t); got.Leases.Len() != 1 {
		t.Fatalf("first list: %+v", got)
	}
	c.put(t, "/subnets/foo", "bar")
	c.put(t, "/subnets/foo", "baz")
	c.put(t, "/subnets/10.5.14.0-24", "no JSON")
	c.putLease(t, lease.Lease{Subnet: prefix("10.5.15.0/24"), Attrs: request(c.network, 1).Attrs})
	if got := w.next(t); got.Leases.Len() != 2 || !lease.List(got.Leases)[0].SameSubnets(own) {
		t.Errorf("list: %+v", got)
	}
	mustClaim(t, s, request(c.network, 0)) // lists the keys again
	for _, key := range []string{"/subnets/foo", "/subnets/10.5.14.0-24"} {
		if n := strings.Count(log.String(), "key="+c.prefix+key+" "); n != 1 {
			t.Errorf("%s logged %d times:\n%s", key, n, log.String())
		}
	}
	// A lease that becomes unreadable is dropped.
	c.put(t, "/subnets/10.5.15.0-24", "no JSON")
	if got := w.next(t); got.Leases.Len() != 1 {
		t.Errorf("list: %+v", got)
	}
}

// lockedBuffer is a bytes.Buffer that is safe for concurrent use.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestWatchUnchangedRenewal(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	l := mustClaim(t, s, request(c.network, 0))
	w := startWatch(t, s)
	first := w.next(t)
	if _, err := s.Renew(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	c.put(t, "/subnets-old/10.5.1.0-24", "not a lease: outside the prefix")
	l.BackendType = "host-gw"
	if _, err := s.Renew(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if got := w.next(t); got.Leases.Len() != 1 || lease.List(got.Leases)[0].BackendType != "host-gw" ||
		got.Revision <= first.Revision {
		t.Errorf("list: %+v", got)
	}
}

func TestWatchOwnRenewal(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	l := mustClaim(t, s, request(c.network, 0))
	w := startWatch(t, s)
	for i := range 20 {
		l.BackendType = fmt.Sprint("b", i) // so that each renewal is delivered
		if _, err := s.Renew(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	for last := ""; last != l.BackendType; {
		got := w.next(t)
		if got.RenewNow {
			t.Error("RenewNow set after an own renewal")
		}
		last = lease.List(got.Leases)[0].BackendType
	}
}

func TestWatchWipedData(t *testing.T) {
	server := serve(t)
	const prefix = "/net"
	newOperator(t, server, prefix).put(t, "/config", onlyV4)
	network := parseNetwork(t, onlyV4)
	restart := func(wipe bool) {
		t.Helper()
		server.Close()
		if wipe {
			if err := server.Wipe(); err != nil {
				t.Fatal(err)
			}
		}
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, testConfig(server, prefix, 0))
	l := mustClaim(t, s, request(network, 0))
	for i := range 5 { // so that the new data has a smaller revision
		l.BackendType = fmt.Sprint("b", i)
		if _, err := s.Renew(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	w := startWatch(t, s)
	before := w.next(t)

	restart(false)
	newOperator(t, server, prefix).putLease(t, lease.Lease{Subnet: l.Subnet, Attrs: l.Attrs})
	restart(true)
	t.Logf("wiped: %v", w.end(t))
	w = startWatch(t, s)
	if got := w.next(t); got.Revision >= before.Revision || got.Leases.Len() != 0 {
		t.Errorf("after the wipe: %+v, before %+v", got, before)
	}
	if _, err := s.Renew(t.Context(), l); !errors.Is(err, lease.ErrLost) {
		t.Errorf("renewal after the wipe: %v", err)
	}
	r := request(network, 0)
	r.Previous = l.Subnet
	if again := mustClaim(t, s, r); !again.SameSubnets(l) {
		t.Errorf("had %s, claimed %s", l.Subnet, again.Subnet)
	}
	if got := w.next(t); got.Leases.Len() != 1 {
		t.Errorf("after the claim: %+v", got)
	}
}

func TestWatchServerRestart(t *testing.T) {
	server := serve(t)
	op := newOperator(t, server, "/net")
	op.put(t, "/config", onlyV4)
	s := open(t, testConfig(server, "/net", 0))
	s.callTimeout = 200 * time.Millisecond
	w := startWatch(t, s)
	w.next(t)
	op.put(t, "/subnets/10.5.1.0-24", `{}`)
	w.next(t) // the stream is open
	server.Close()
	t.Logf("stopped: %v", w.end(t))
	if err := s.Watch(t.Context(), func(lease.Snapshot) {}); err == nil {
		t.Error("watch of a stopped server returned nil")
	}
	if _, _, err := s.openStream(t.Context(), &keyspace{subnets: s.subnets()}); err == nil {
		t.Error("stopped server accepted a watch")
	}
	if _, err := s.Claim(t.Context(), request(parseNetwork(t, onlyV4), 0)); err == nil {
		t.Error("claim from a stopped server succeeded")
	} else {
		t.Logf("claim: %v", err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	s.callTimeout = defaultCallTimeout
	l := mustClaim(t, s, request(parseNetwork(t, onlyV4), 0))
	w = startWatch(t, s)
	if got := w.next(t); got.Leases.Len() != 2 || !lease.List(got.Leases)[0].SameSubnets(l) && !lease.List(got.Leases)[1].SameSubnets(l) {
		t.Errorf("after the restart: %+v", got)
	}
}

func TestWatchCompactedRevision(t *testing.T) {
	server := serve(t)
	op := newOperator(t, server, "/net")
	s := open(t, testConfig(server, "/net", 0))
	ks, err := s.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	op.put(t, "/subnets/10.5.1.0-24", `{}`)
	op.put(t, "/subnets/10.5.1.0-24", `{"PublicIP":"192.0.2.1"}`)
	compact(t, server)
	stream, cancel, err := s.openStream(t.Context(), ks)
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	if r := <-stream; !errors.Is(r.Err(), rpctypes.ErrCompacted) {
		t.Errorf("got %+v", r)
	}
}

func TestCheckStaleRequests(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	var counts, sorts atomic.Int32
	client, err := newClient(c.config(0),
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker,
			opts ...grpc.CallOption) error {
			if r, ok := req.(*etcdserverpb.RangeRequest); ok && r.CountOnly {
				counts.Add(1)
			} else if ok && r.SortOrder != etcdserverpb.RangeRequest_NONE {
				sorts.Add(1)
			}
			return next(ctx, method, req, reply, cc, opts...)
		})
	if err != nil {
		t.Fatal(err)
	}
	s.client.Close()
	s.client = client
	mustClaim(t, s, request(c.network, 0))
	ks, err := s.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var d staleDetector
	check := func(wantSorts int32) {
		t.Helper()
		counts.Store(0)
		sorts.Store(0)
		for range 3 {
			if err := s.checkStale(t.Context(), ks, &d); err != nil {
				t.Fatal(err)
			}
		}
		if counts.Load() != 3 || sorts.Load() != wantSorts {
			t.Errorf("%d counts and %d sorts, want 3 and %d", counts.Load(), sorts.Load(), wantSorts)
		}
	}
	check(0)
	c.put(t, "/other", "not a lease")
	check(1)
	// A change missed by the stream is detected, even if the number of keys stays the same.
	c.put(t, "/subnets/"+slices.Collect(maps.Keys(ks.entries))[0], "{}")
	if err := s.checkStale(t.Context(), ks, &d); err != nil {
		t.Errorf("first mismatch: %v", err)
	}
	if err := s.checkStale(t.Context(), ks, &d); !errors.Is(err, errStale) {
		t.Errorf("missed change: %v", err)
	}
	if ks, err = s.list(t.Context()); err != nil {
		t.Fatal(err)
	}
	ks.entries["10.5.15.0-24"] = entry{}
	if err := s.checkStale(t.Context(), ks, &d); !errors.Is(err, errStale) {
		t.Errorf("additional lease at the same revision: %v", err)
	}
}

func TestJitter(t *testing.T) {
	low, high := 2*time.Second, time.Duration(0)
	for range 1000 {
		d := jitter(time.Second)
		low, high = min(low, d), max(high, d)
	}
	if low < 750*time.Millisecond || low > 800*time.Millisecond || high > 1250*time.Millisecond ||
		high < 1200*time.Millisecond {
		t.Errorf("from %s to %s", low, high)
	}
}

// TestWatchOutageWithoutOwnerKeys expects that failed checks end a watch, whatever happens between
// them.
func TestWatchOutageWithoutOwnerKeys(t *testing.T) {
	server := serve(t)
	op := newOperator(t, server, "/net")
	op.put(t, "/config", onlyV4)
	network := parseNetwork(t, onlyV4)
	s := open(t, testConfig(server, "/net", 0))
	s.disableWeftKeys(s.keys)
	s.ownerTTL, s.callTimeout = 30*time.Millisecond, 500*time.Millisecond
	s.random = func(int) int { return 0 } // not a subnet used below
	mustClaim(t, s, request(network, 0))
	w := startWatch(t, s)
	w.next(t)
	op.putLease(t, lease.Lease{Subnet: prefix("10.5.15.0/24"), Attrs: request(network, 1).Attrs})
	w.next(t) // by the stream
	server.Close()
	if err := w.end(t); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
