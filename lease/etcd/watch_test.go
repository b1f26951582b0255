package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"weft/lease"
	"weft/lease/etcd/testetcd"
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

// next is the next list.
func (w watcher) next(t *testing.T) lease.Snapshot {
	t.Helper()
	select {
	case s := <-w.lists:
		return s
	case err := <-w.ended:
		t.Fatalf("the watch ended: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("no list")
	}
	return lease.Snapshot{}
}

// end is why the watch ended.
func (w watcher) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-w.ended:
		if err == nil {
			t.Fatal("the watch ended without an error")
		}
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("the watch goes on")
	}
	return nil
}

func TestStrayKeyIsLoggedOnceAndHarmless(t *testing.T) {
	c := newCluster(t, onlyV4)
	var log lockedBuffer
	config := c.config(0)
	config.Log = slog.New(slog.NewTextHandler(&log, nil))
	s := open(t, config)
	s.random = func(int) int { return 0 } // not a subnet that is used below
	own := mustClaim(t, s, request(c.network, 0))
	w := startWatch(t, s)
	if got := w.next(t); len(got.Leases) != 1 {
		t.Fatalf("first list: %+v", got)
	}
	c.put(t, "/subnets/foo", "bar")
	c.put(t, "/subnets/foo", "baz")
	c.put(t, "/subnets/10.5.14.0-24", "no JSON")
	c.putLease(t, lease.Lease{Subnet: prefix("10.5.15.0/24"), Attrs: request(c.network, 1).Attrs})
	if got := w.next(t); len(got.Leases) != 2 || !got.Leases[0].SameSubnets(own) {
		t.Errorf("list: %+v", got)
	}
	mustClaim(t, s, request(c.network, 0)) // lists them again
	for _, key := range []string{"/subnets/foo", "/subnets/10.5.14.0-24"} {
		if n := strings.Count(log.String(), "key="+c.prefix+key+" "); n != 1 {
			t.Errorf("%s was logged %d times:\n%s", key, n, log.String())
		}
	}
	// A lease that cannot be read any more is no lease.
	c.put(t, "/subnets/10.5.15.0-24", "no JSON")
	if got := w.next(t); len(got.Leases) != 1 {
		t.Errorf("list: %+v", got)
	}
}

// lockedBuffer is a log that may be read while it is written.
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

func TestWatchTellsNothingNewOfARenewal(t *testing.T) {
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
	if got := w.next(t); len(got.Leases) != 1 || got.Leases[0].BackendType != "host-gw" || got.Revision <= first.Revision {
		t.Errorf("list: %+v", got)
	}
}

func TestAKeyThatWasMovedToAnotherEtcdLeaseIsRenewedAtOnce(t *testing.T) {
	for _, test := range []struct {
		name     string
		reserved bool // by the operator, before
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
					t.Fatal("the key stays on the operator's etcd lease")
				}
			}
			ttl, err := c.TimeToLive(t.Context(), c.grantOf(t, key))
			if err != nil || ttl.GrantedTTL != 86400 {
				t.Errorf("etcd lease of %d s, %v", ttl.GrantedTTL, err)
			}
		})
	}
}

// runManager runs a Manager until the test ends, and returns the lease that it holds.
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

func TestOurOwnRenewalIsNotTakenForAnothers(t *testing.T) {
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
			t.Error("a list says that our lease is overdue")
		}
		last = got.Leases[0].BackendType
	}
}

func TestWipedAndRestoredDataIsNoticed(t *testing.T) {
	server := serve(t)
	const prefix = "/net"
	operate(t, server, prefix).put(t, "/config", onlyV4)
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
	s := open(t, quiet(server, prefix, 0))
	l := mustClaim(t, s, request(network, 0))
	for range 5 { // so that the revision of the new data is smaller
		if _, err := s.Renew(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	w := startWatch(t, s)
	before := w.next(t)

	restart(false)
	operate(t, server, prefix).putLease(t, lease.Lease{Subnet: l.Subnet, Attrs: l.Attrs})
	restart(true)
	t.Logf("wiped: %v", w.end(t))
	w = startWatch(t, s)
	if got := w.next(t); got.Revision >= before.Revision || len(got.Leases) != 0 {
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
	if got := w.next(t); len(got.Leases) != 1 {
		t.Errorf("after the claim: %+v", got)
	}
}

func TestWatchSurvivesARestartOrSaysSo(t *testing.T) {
	server := serve(t)
	op := operate(t, server, "/net")
	op.put(t, "/config", onlyV4)
	s := open(t, quiet(server, "/net", 0))
	s.callTimeout = 200 * time.Millisecond
	w := startWatch(t, s)
	w.next(t)
	op.put(t, "/subnets/10.5.1.0-24", `{}`)
	w.next(t) // the stream is open
	server.Close()
	t.Logf("stopped: %v", w.end(t))
	if err := s.Watch(t.Context(), func(lease.Snapshot) {}); err == nil {
		t.Error("a watch of a stopped server ended without an error")
	}
	if _, _, err := s.open(t.Context(), 1); err == nil {
		t.Error("a stopped server answered a watch")
	}
	if _, err := s.Claim(t.Context(), request(parseNetwork(t, onlyV4), 0)); err == nil {
		t.Error("a claim from a stopped server succeeded")
	} else {
		t.Logf("claim: %v", err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	s.callTimeout = defaultCallTimeout
	l := mustClaim(t, s, request(parseNetwork(t, onlyV4), 0))
	w = startWatch(t, s)
	if got := w.next(t); len(got.Leases) != 2 || !got.Leases[0].SameSubnets(l) && !got.Leases[1].SameSubnets(l) {
		t.Errorf("after the restart: %+v", got)
	}
}

func TestCompactedStartIsSaid(t *testing.T) {
	server := serve(t)
	op := operate(t, server, "/net")
	s := open(t, quiet(server, "/net", 0))
	v, err := s.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	op.put(t, "/subnets/10.5.1.0-24", `{}`)
	op.put(t, "/subnets/10.5.1.0-24", `{"PublicIP":"192.0.2.1"}`)
	compact(t, server)
	stream, cancel, err := s.open(t.Context(), v.revision+1)
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	if r := <-stream; !errors.Is(r.Err(), rpctypes.ErrCompacted) {
		t.Errorf("got %+v", r)
	}
}

func TestOwnerKeyComesBack(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	s.ownerTTL = time.Second
	l := mustClaim(t, s, request(c.network, 0))
	grant := c.grantOf(t, "/weft/owners/"+formatKey(l))
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
	if err := s.beat(t.Context()); err != nil {
		t.Errorf("the new owner key is not kept alive: %v", err)
	}
	// But not over another daemon that has taken it meanwhile.
	s = open(t, c.config(1))
	l = mustClaim(t, s, request(c.network, 1))
	c.put(t, "/weft/owners/"+formatKey(l), `{"id":"other","node":"bob"}`)
	if err := startWatch(t, s).end(t); !errors.Is(err, lease.ErrInUse) || !strings.Contains(err.Error(), `"bob"`) {
		t.Errorf("got %v", err)
	}
	startWatch(t, s).next(t) // said once; the list is delivered all the same
}

func TestOwnerKeyIsNotPutOverAChange(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	l := mustClaim(t, s, request(c.network, 0))
	key := formatKey(l)
	c.delete(t, "/weft/owners/"+key)
	v, err := s.list(t.Context()) // puts it again
	if err != nil {
		t.Fatal(err)
	}
	const hers = `{"id":"hers","node":"alice"}`
	c.put(t, "/weft/owners/"+key, hers)
	if err := s.own(t.Context(), s.ownerKeys(), s.holding(), v.entries[key], owner{}); err == nil || c.all(t, "/weft/owners/")[key] != hers {
		t.Errorf("put over an owner: %v", err)
	}
	c.delete(t, "/weft/owners/"+key)
	c.putLease(t, lease.Lease{Subnet: l.Subnet, Attrs: request(c.network, 5).Attrs})
	if err := s.own(t.Context(), s.ownerKeys(), s.holding(), v.entries[key], owner{}); err == nil || len(c.all(t, "/weft/owners/")) != 0 {
		t.Errorf("owns the lease of another node: %v", err)
	}
}

// pipe is a connection to a server that can be cut without a word, as a dead firewall does.
type pipe struct {
	listener net.Listener
	mu       sync.Mutex
	dead     bool
	conns    []net.Conn
}

func newPipe(t *testing.T, server *testetcd.Server) *pipe {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &pipe{listener: l}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", strings.TrimPrefix(server.Endpoint(), "http://"))
			if err != nil {
				in.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			all.Go(func() { p.copy(in, out) })
			all.Go(func() { p.copy(out, in) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		all.Wait()
	})
	return p
}

func (p *pipe) copy(to io.Writer, from io.Reader) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		dead := p.dead
		p.mu.Unlock()
		if dead {
			continue
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

func (p *pipe) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
}

func TestWatchNoticesASilentServer(t *testing.T) {
	server := serve(t)
	p := newPipe(t, server)
	config := quiet(server, "/net", 0)
	config.Endpoints = []string{"http://" + p.listener.Addr().String()}
	s, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	mustClaim(t, s, request(parseNetwork(t, onlyV4), 0))
	s.callTimeout = 200 * time.Millisecond
	w := startWatch(t, s)
	w.next(t)
	operate(t, server, "/net").put(t, "/subnets/10.5.200.0-24", `{}`)
	w.next(t) // the stream is open
	p.cut()
	t.Logf("cut: %v", w.end(t))
	if err := s.Watch(t.Context(), func(lease.Snapshot) {}); err == nil {
		t.Error("a watch through a dead connection ended without an error")
	}
	start := time.Now()
	if err := s.Close(); err != nil || time.Since(start) > 1500*time.Millisecond {
		t.Errorf("Close took %s, %v", time.Since(start), err)
	}
}

func TestAQuietEtcdIsOnlyCounted(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	var counts, sorts atomic.Int32
	s.dialer.DialOptions = append(s.dialer.DialOptions, grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if r, ok := req.(*etcdserverpb.RangeRequest); ok && r.CountOnly {
				counts.Add(1)
			} else if ok && r.SortOrder != etcdserverpb.RangeRequest_NONE {
				sorts.Add(1)
			}
			return next(ctx, method, req, reply, cc, opts...)
		}))
	mustClaim(t, s, request(c.network, 0))
	v, err := s.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var g guard
	check := func(wantSorts int32) {
		t.Helper()
		counts.Store(0)
		sorts.Store(0)
		for range 3 {
			if err := s.check(t.Context(), v, &g); err != nil {
				t.Fatal(err)
			}
		}
		if counts.Load() != 3 || sorts.Load() != wantSorts {
			t.Errorf("%d counts and %d sorts, want 3 and %d", counts.Load(), sorts.Load(), wantSorts)
		}
	}
	check(0)
	c.put(t, "/other", "a key that is no lease")
	check(1)
	// A change that the stream does not tell is found: of a value here, which is no matter of counting.
	c.put(t, "/subnets/"+slices.Collect(maps.Keys(v.entries))[0], "{}")
	if err := s.check(t.Context(), v, &g); err != nil {
		t.Errorf("a change may be on its way: %v", err)
	}
	if err := s.check(t.Context(), v, &g); !errors.Is(err, errDoubt) {
		t.Errorf("a lost change: %v", err)
	}
	if v, err = s.list(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.entries["10.5.15.0-24"] = entry{}
	if err := s.check(t.Context(), v, &g); !errors.Is(err, errDoubt) {
		t.Errorf("a lease too many at the same revision: %v", err)
	}
}

func TestJitter(t *testing.T) {
	low, high := 2*time.Second, time.Duration(0)
	for range 1000 {
		d := jitter(time.Second)
		low, high = min(low, d), max(high, d)
	}
	if low < 750*time.Millisecond || low > 800*time.Millisecond || high > 1250*time.Millisecond || high < 1200*time.Millisecond {
		t.Errorf("from %s to %s", low, high)
	}
}

func TestAHeaderThatIsAheadOfItsEventsIsNotBelieved(t *testing.T) {
	v := newView("/s/", 1, 3, nil)
	kv := &mvccpb.KeyValue{Key: []byte("/s/10.5.1.0-24"), Value: []byte(`{}`), ModRevision: 5}
	put := &clientv3.Event{Type: mvccpb.PUT, Kv: kv}
	v.apply(clientv3.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: 9}, Events: []*clientv3.Event{put}})
	if v.revision != 5 {
		t.Errorf("revision %d after an event of 5", v.revision)
	}
	if v.apply(clientv3.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: 9}}); v.revision != 9 {
		t.Errorf("revision %d when the server says that all is told up to 9", v.revision)
	}
}

func TestApply(t *testing.T) {
	put := func(key, value string) *clientv3.Event {
		return &clientv3.Event{Type: mvccpb.PUT, Kv: &mvccpb.KeyValue{Key: []byte("/s/" + key), Value: []byte(value), ModRevision: 5}}
	}
	del := func(key string) *clientv3.Event {
		return &clientv3.Event{Type: mvccpb.DELETE, Kv: &mvccpb.KeyValue{Key: []byte("/s/" + key), ModRevision: 5}}
	}
	tests := []struct {
		name   string
		event  *clientv3.Event
		change bool
		left   int
	}{
		{"new", put("10.5.2.0-24", `{}`), true, 2},
		{"changed", put("10.5.1.0-24", `{"PublicIP":"192.0.2.9"}`), true, 1},
		{"renewed", put("10.5.1.0-24", `{"PublicIP":"192.0.2.1"}`), false, 1},
		{"became unreadable", put("10.5.1.0-24", `x`), true, 0},
		{"new but unreadable", put("foo", `{}`), false, 1},
		{"deleted", del("10.5.1.0-24"), true, 0},
		{"deleted what was not there", del("10.5.2.0-24"), false, 1},
		{"deleted what was unreadable", del("bad"), false, 1},
		{"became readable", put("10.5.9.0-24", `{}`), true, 2},
	}
	for _, test := range tests {
		v := newView("/s/", 1, 3, []*mvccpb.KeyValue{
			{Key: []byte("/s/10.5.1.0-24"), Value: []byte(`{"PublicIP":"192.0.2.1"}`), ModRevision: 2},
			{Key: []byte("/s/10.5.9.0-24"), Value: []byte(`x`), ModRevision: 2},
			{Key: []byte("/s/bad"), Value: []byte(`{}`), ModRevision: 2},
		})
		r := clientv3.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: 5}, Events: []*clientv3.Event{test.event}}
		if got := v.apply(r); got != test.change || len(v.snapshot().Leases) != test.left || v.snapshot().Revision != 5 {
			t.Errorf("%s: change %v, list %+v", test.name, got, v.snapshot())
		}
	}
}
