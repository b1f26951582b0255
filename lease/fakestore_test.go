package lease

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeStore is a store in memory whose failures the test sets. It uses the clock of the synctest
// bubble.
type fakeStore struct {
	mu           sync.Mutex
	revision     int64
	leases       []Lease
	ttl          time.Duration // 0: leases never expire
	changed      chan struct{} // closed at each change
	watchErr     error         // returned by every Watch
	writeErr     error         // returned by every Claim and Renew
	claimErr     error         // returned by every Claim
	watchErrOnce error         // returned by the running Watch
	hang         bool          // Claim and Renew wait for their context
	hidden       bool          // writes do not show in lists
	renewNow     bool          // lists set RenewNow until the next write
	nextSubnet   netip.Prefix  // returned by Claim if set

	claims  []Request
	writes  []time.Time // times of claims and renewals, including failed ones
	watches int
}

func (s *fakeStore) Network(context.Context) (Network, error) { return Network{}, nil }

// notify wakes the watches. The caller holds mu.
func (s *fakeStore) notify() {
	if s.changed != nil {
		close(s.changed)
	}
	s.changed = make(chan struct{})
}

// update changes the store as another program would.
func (s *fakeStore) update(change func()) {
	s.mu.Lock()
	change()
	s.revision++
	s.notify()
	s.mu.Unlock()
	synctest.Wait()
}

// put writes a lease, replacing one with the same subnets. The caller holds mu.
func (s *fakeStore) put(l Lease) {
	s.leases = slices.DeleteFunc(slices.Clone(s.leases), l.SameSubnets)
	s.leases = append(s.leases, l)
	slices.SortFunc(s.leases, Compare)
}

// write is the common part of Claim and Renew.
func (s *fakeStore) write(ctx context.Context, makeLease func() (Lease, error)) (Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes = append(s.writes, time.Now())
	if s.hang {
		s.mu.Unlock()
		<-ctx.Done()
		s.mu.Lock()
		return Lease{}, ctx.Err()
	}
	if s.writeErr != nil {
		return Lease{}, s.writeErr
	}
	l, err := makeLease()
	if err != nil {
		return Lease{}, err
	}
	s.renewNow = false
	if s.ttl > 0 {
		l.Expires = time.Now().Add(s.ttl)
	}
	if !s.hidden {
		s.put(l)
		s.revision++
		s.notify()
	}
	return l, nil
}

func (s *fakeStore) Claim(ctx context.Context, r Request) (Lease, error) {
	return s.write(ctx, func() (Lease, error) {
		s.claims = append(s.claims, r)
		if s.claimErr != nil {
			return Lease{}, s.claimErr
		}
		c, err := Choose(r, s.leases, func(int) int { return 0 })
		if s.nextSubnet.IsValid() {
			c.Subnet = s.nextSubnet
		}
		return Lease{Node: r.Node, Subnet: c.Subnet, Attrs: r.Attrs}, err
	})
}

func (s *fakeStore) Renew(ctx context.Context, l Lease) (Lease, error) {
	return s.write(ctx, func() (Lease, error) {
		if !slices.ContainsFunc(s.leases, l.SameSubnets) {
			return Lease{}, fmt.Errorf("%w: not there", ErrLost)
		}
		return l, nil
	})
}

func (s *fakeStore) Watch(ctx context.Context, deliver func(Snapshot)) error {
	s.mu.Lock()
	s.watches++
	s.mu.Unlock()
	for {
		s.mu.Lock()
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		list, changed, err := Snapshot{s.revision, NewSet(slices.Clone(s.leases)...), s.renewNow}, s.changed, s.watchErr
		if err == nil {
			err, s.watchErrOnce = s.watchErrOnce, nil
		}
		s.mu.Unlock()
		if err != nil {
			return err
		}
		deliver(list)
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// calls are the calls of a fakeStore so far, and its leases.
type calls struct {
	claims  []Request
	writes  []time.Time
	watches int
	leases  []Lease
}

func (s *fakeStore) calls() calls {
	s.mu.Lock()
	defer s.mu.Unlock()
	return calls{slices.Clone(s.claims), slices.Clone(s.writes), s.watches, slices.Clone(s.leases)}
}

// testManager is a Manager that runs on a fakeStore.
type testManager struct {
	*Manager
	store *fakeStore
	stop  func()

	mu     sync.Mutex
	log    bytes.Buffer
	states []State
}

const (
	ownPublic = "192.0.2.1"
	ownSubnet = "10.5.1.0/24" // the first one that fakeStore allocates
)

func peer(n int) Lease {
	l := newLease(fmt.Sprintf("10.5.%d.0/24", 100+n), "", fmt.Sprintf("192.0.2.%d", 100+n), "")
	l.Node = fmt.Sprint("peer", n)
	return l
}

// runManager runs test in a synctest bubble, with a Manager that has claimed its lease and is idle.
func runManager(t *testing.T, o Options, prepare func(*fakeStore), test func(t *testing.T, m *testManager)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := &testManager{store: &fakeStore{ttl: 24 * time.Hour, leases: []Lease{peer(0), peer(1)}, revision: 10}}
		if prepare != nil {
			prepare(m.store)
		}
		o.Log = slog.New(slog.NewTextHandler(m, nil))
		r := Request{Network: mustParseNetwork(t, `{"Network":"10.5.0.0/16"}`), Node: "self",
			Attrs: Attrs{PublicIP: addr(ownPublic)}}
		m.Manager = NewManager(m.store, r, o)
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() {
			if err := m.Run(ctx, m.report); err != nil {
				t.Errorf("Run returned %v", err)
			}
		})
		m.stop = func() {
			cancel()
			done.Wait()
		}
		defer m.stop()
		synctest.Wait()
		test(t, m)
	})
}

func (m *testManager) report(s State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.states = append(m.states, s)
}

// Write appends to the log.
func (m *testManager) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.log.Write(p)
}

// reported returns all states reported so far.
func (m *testManager) reported() []State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.states)
}

// state waits until the last list has been handled and returns the last reported state.
func (m *testManager) state(t *testing.T) State {
	t.Helper()
	advance(joinInterval)
	states := m.reported()
	if len(states) == 0 {
		t.Fatal("no state reported")
	}
	return states[len(states)-1]
}

// advance advances the clock of the bubble.
func advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// logText returns the whole log.
func (m *testManager) logText() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.log.String()
}

// countLogged counts the occurrences of text in the log.
func (m *testManager) countLogged(text string) int { return strings.Count(m.logText(), text) }

func (m *testManager) wantHeld(t *testing.T, subnet string, all ...Lease) {
	t.Helper()
	s := m.state(t)
	if !s.Held || !s.Connected || s.Err != nil || s.Self.Subnet != prefix(subnet) {
		t.Errorf("%s not held: %+v", subnet, s)
	}
	m.wantPeers(t, all...)
}

// wantPeers checks that the state holds exactly these leases, apart from this node's.
func (m *testManager) wantPeers(t *testing.T, peers ...Lease) {
	t.Helper()
	s := m.state(t)
	got := slices.DeleteFunc(List(s.All), func(l Lease) bool { return l.PublicIP == addr(ownPublic) })
	if !slices.EqualFunc(got, peers, Lease.Equal) {
		t.Errorf("got peers %v, want %v", got, peers)
	}
}

// wipe resets the store like an etcd whose data directory was lost.
func (m *testManager) wipe() {
	m.store.update(func() {
		m.store.revision, m.store.leases, m.store.watchErrOnce = 0, nil, errors.New("revision went back")
	})
	advance(10 * time.Second)
}
