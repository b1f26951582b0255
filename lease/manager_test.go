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

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted is a store in memory that does what the test tells it. It runs on the clock of the test's bubble.
type scripted struct {
	mu       sync.Mutex
	revision int64
	leases   []Lease
	ttl      time.Duration // 0: leases never expire
	changed  chan struct{} // closed by each change
	broken   error         // every Watch fails with it
	failing  error         // every Claim and Renew fails with it
	refusing error         // every Claim fails with it
	once     error         // the running Watch fails with it
	hang     bool          // Claim and Renew wait for their context
	hidden   bool          // writes do not show in lists
	overdue  bool          // lists say that our lease is to be renewed, until it is
	gives    netip.Prefix  // Claim gives this subnet if it is set

	claims  []Request
	writes  []time.Time // of claims and renewals, tried or done
	watches int
}

func (s *scripted) Network(context.Context) (Network, error) { return Network{}, nil }

// wake tells the watches that something has changed. The caller holds mu.
func (s *scripted) wake() {
	if s.changed != nil {
		close(s.changed)
	}
	s.changed = make(chan struct{})
}

// do changes the store as another program would.
func (s *scripted) do(change func()) {
	s.mu.Lock()
	change()
	s.revision++
	s.wake()
	s.mu.Unlock()
	synctest.Wait()
}

// put writes a lease over whatever has its subnets. The caller holds mu.
func (s *scripted) put(l Lease) {
	s.leases = slices.DeleteFunc(slices.Clone(s.leases), l.SameSubnets)
	s.leases = append(s.leases, l)
	slices.SortFunc(s.leases, Compare)
}

// try is what Claim and Renew have in common.
func (s *scripted) try(ctx context.Context, write func() (Lease, error)) (Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes = append(s.writes, time.Now())
	if s.hang {
		s.mu.Unlock()
		<-ctx.Done()
		s.mu.Lock()
		return Lease{}, ctx.Err()
	}
	if s.failing != nil {
		return Lease{}, s.failing
	}
	l, err := write()
	if err != nil {
		return Lease{}, err
	}
	s.overdue = false
	if s.ttl > 0 {
		l.Expires = time.Now().Add(s.ttl)
	}
	if !s.hidden {
		s.put(l)
		s.revision++
		s.wake()
	}
	return l, nil
}

func (s *scripted) Claim(ctx context.Context, r Request) (Lease, error) {
	return s.try(ctx, func() (Lease, error) {
		s.claims = append(s.claims, r)
		if s.refusing != nil {
			return Lease{}, s.refusing
		}
		c, err := Choose(r, s.leases, func(int) int { return 0 })
		if s.gives.IsValid() {
			c.Subnet = s.gives
		}
		return Lease{Node: r.Node, Subnet: c.Subnet, Attrs: r.Attrs}, err
	})
}

func (s *scripted) Renew(ctx context.Context, l Lease) (Lease, error) {
	return s.try(ctx, func() (Lease, error) {
		if !slices.ContainsFunc(s.leases, l.SameSubnets) {
			return Lease{}, fmt.Errorf("%w: not there", ErrLost)
		}
		return l, nil
	})
}

func (s *scripted) Watch(ctx context.Context, deliver func(Snapshot)) error {
	s.mu.Lock()
	s.watches++
	s.mu.Unlock()
	for {
		s.mu.Lock()
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		list, changed, err := Snapshot{s.revision, slices.Clone(s.leases), s.overdue}, s.changed, s.broken
		if err == nil {
			err, s.once = s.once, nil
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

// seen is what has happened to a scripted store so far.
type seen struct {
	claims  []Request
	writes  []time.Time
	watches int
	leases  []Lease
}

func (s *scripted) seen() seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return seen{slices.Clone(s.claims), slices.Clone(s.writes), s.watches, slices.Clone(s.leases)}
}

// managed is a Manager that runs on a scripted store.
type managed struct {
	*Manager
	store *scripted
	stop  func()

	mu     sync.Mutex
	log    bytes.Buffer
	states []State
}

const (
	ownPublic = "192.0.2.1"
	ownSubnet = "10.5.1.0/24" // the first one that scripted gives
)

func peer(n int) Lease {
	l := held(fmt.Sprintf("10.5.%d.0/24", 100+n), "", fmt.Sprintf("192.0.2.%d", 100+n), "")
	l.Node = fmt.Sprint("peer", n)
	return l
}

// manage runs a test in a bubble with a Manager that has come to rest.
func manage(t *testing.T, o Options, prepare func(*scripted), test func(t *testing.T, m *managed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := &managed{store: &scripted{ttl: 24 * time.Hour, leases: []Lease{peer(0), peer(1)}, revision: 10}}
		if prepare != nil {
			prepare(m.store)
		}
		o.Log = slog.New(slog.NewTextHandler(m, nil))
		r := Request{Network: mustParseNetwork(t, `{"Network":"10.5.0.0/16"}`), Node: "self", Attrs: Attrs{PublicIP: addr(ownPublic)}}
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

func (m *managed) report(s State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.states = append(m.states, s)
}

// Write takes what is logged.
func (m *managed) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.log.Write(p)
}

// history is every state that was reported.
func (m *managed) history() []State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.states)
}

// state is the last one reported, once all is at rest.
func (m *managed) state(t *testing.T) State {
	t.Helper()
	synctest.Wait()
	states := m.history()
	if len(states) == 0 {
		t.Fatal("no state was reported")
	}
	return states[len(states)-1]
}

// pass lets time pass.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// text is the whole log.
func (m *managed) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.log.String()
}

// logged counts a text in the log.
func (m *managed) logged(text string) int { return strings.Count(m.text(), text) }

func (m *managed) wantHeld(t *testing.T, subnet string, all ...Lease) {
	t.Helper()
	s := m.state(t)
	if !s.Held || !s.Connected || s.Err != nil || s.Self.Subnet != prefix(subnet) {
		t.Errorf("want %s held, the state is %+v", subnet, s)
	}
	m.wantAll(t, all...)
}

// wantAll wants exactly these leases beside our own, or without it.
func (m *managed) wantAll(t *testing.T, peers ...Lease) {
	t.Helper()
	s := m.state(t)
	got := slices.DeleteFunc(slices.Clone(s.All), func(l Lease) bool { return l.PublicIP == addr(ownPublic) })
	if !slices.EqualFunc(got, peers, Lease.Equal) {
		t.Errorf("peers are %v, want %v", got, peers)
	}
}

func TestFirstHeldStateIsComplete(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if len(m.history()) != 1 || len(m.history()[0].All) != 3 {
			t.Errorf("states: %+v", m.history())
		}
	})
}

func TestPeersComeAndGoAtOnce(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		m.store.do(func() { m.store.put(peer(2)) })
		m.wantHeld(t, ownSubnet, peer(0), peer(1), peer(2))
		changed := peer(1)
		changed.PublicIP = addr("198.51.100.1")
		m.store.do(func() { m.store.put(changed) })
		m.wantHeld(t, ownSubnet, peer(0), changed, peer(2))
		m.store.do(func() { m.store.leases = slices.DeleteFunc(slices.Clone(m.store.leases), peer(0).SameSubnets) })
		m.wantHeld(t, ownSubnet, changed, peer(2))
	})
}

func TestRenewsBeforeExpiry(t *testing.T) {
	manage(t, Options{RenewMargin: time.Hour}, nil, func(t *testing.T, m *managed) {
		start := m.store.seen().writes[0]
		pass(5 * 24 * time.Hour)
		want := []time.Duration{0, 23 * time.Hour, 46 * time.Hour, 69 * time.Hour, 92 * time.Hour, 115 * time.Hour}
		for i, at := range m.store.seen().writes {
			if i >= len(want) || at.Sub(start) != want[i] {
				t.Fatalf("writes at %v, want %v after %s", m.store.seen().writes, want, start)
			}
		}
		if left := time.Until(m.state(t).Self.Expires); len(m.store.seen().writes) != len(want) || left < 18*time.Hour {
			t.Errorf("%d writes, %s left", len(m.store.seen().writes), left)
		}
	})
}

func TestAReservationIsNotRenewed(t *testing.T) {
	manage(t, Options{}, func(s *scripted) { s.ttl = 0 }, func(t *testing.T, m *managed) {
		pass(100 * time.Hour)
		if len(m.store.seen().writes) != 1 {
			t.Errorf("written %d times", len(m.store.seen().writes))
		}
		m.SetAttrs(Attrs{PublicIP: addr("192.0.2.77")})
		synctest.Wait()
		if len(m.store.seen().writes) != 2 || m.state(t).Self.PublicIP != addr("192.0.2.77") {
			t.Errorf("its attributes were not published: %+v", m.state(t).Self)
		}
	})
}

func TestFailingRenewalIsTriedOn(t *testing.T) {
	manage(t, Options{RenewMargin: time.Hour}, nil, func(t *testing.T, m *managed) {
		m.store.do(func() { m.store.failing = errors.New("no quorum") })
		pass(23*time.Hour + 10*time.Minute)
		s := m.state(t)
		if !s.Held || s.Err == nil || len(s.All) != 3 {
			t.Errorf("state: %+v", s)
		}
		tries := len(m.store.seen().writes)
		pass(time.Minute)
		if more := len(m.store.seen().writes) - tries; more < 1 || more > 60 {
			t.Errorf("%d tries in a minute", more)
		}
		if n := m.logged("no quorum"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, m.text())
		}
		m.store.do(func() { m.store.failing = nil })
		pass(time.Minute)
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if m.logged("fine again") != 1 {
			t.Errorf("log:\n%s", m.text())
		}
	})
}

func TestFullPoolIsTriedForEver(t *testing.T) {
	full := fmt.Errorf("%w: all are leased", ErrNoSubnet)
	manage(t, Options{}, func(s *scripted) { s.failing = full }, func(t *testing.T, m *managed) {
		pass(time.Hour)
		if s := m.state(t); s.Held || !errors.Is(s.Err, ErrNoSubnet) {
			t.Errorf("state: %+v", s)
		}
		if n := len(m.store.seen().writes); n < 3600/5 || n > 2*3600/5+20 {
			t.Errorf("%d tries in an hour", n)
		}
		if n := m.logged("all are leased"); n != 1 || len(m.history()) != 1 {
			t.Errorf("logged %d times, reported %d times", n, len(m.history()))
		}
		m.store.do(func() { m.store.failing = fmt.Errorf("%w: by bob", ErrInUse) })
		pass(time.Minute)
		if s := m.state(t); !errors.Is(s.Err, ErrInUse) || m.logged("by bob") != 1 {
			t.Errorf("state: %+v", s)
		}
		m.store.do(func() { m.store.failing = nil })
		pass(5 * time.Second)
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
	})
}

func TestLosingTheStoreTearsNothingDown(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		m.store.do(func() {
			m.store.broken, m.store.failing = errors.New("connection refused"), errors.New("connection refused")
		})
		pass(48 * time.Hour) // beyond the expiry
		s := m.state(t)
		if s.Connected || s.Err == nil || s.Self.Subnet != prefix(ownSubnet) {
			t.Errorf("state: %+v", s)
		}
		m.wantAll(t, peer(0), peer(1))
		if n := m.logged("connection refused"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		// It comes back without our lease, which has expired meanwhile, and with another peer.
		m.store.do(func() {
			m.store.broken, m.store.failing = nil, nil
			m.store.leases = []Lease{peer(1), peer(2)}
		})
		pass(10 * time.Second)
		m.wantHeld(t, ownSubnet, peer(1), peer(2))
	})
}

func TestLostLeaseIsClaimedAgainTheSameSubnetFirst(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		pass(time.Minute)
		m.store.do(func() { m.store.leases = []Lease{peer(0), peer(1)} })
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if n := len(m.store.seen().claims); n != 2 || m.store.seen().claims[1].Previous != prefix(ownSubnet) {
			t.Errorf("claims: %+v", m.store.seen().claims)
		}
		lost := slices.IndexFunc(m.history(), func(s State) bool { return !s.Held && s.Self.Subnet == prefix(ownSubnet) })
		if lost >= 0 && len(m.history()[lost].All) < 3 {
			t.Errorf("while lost: %+v", m.history()[lost])
		}
	})
}

func TestTakenLeaseGivesAnotherSubnetLoudly(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		pass(time.Minute)
		rival := held(ownSubnet, "", "192.0.2.250", "")
		m.store.do(func() { m.store.put(rival) })
		m.wantHeld(t, "10.5.2.0/24", rival, peer(0), peer(1))
		if m.logged("level=ERROR") != 1 || m.logged("192.0.2.250") != 1 {
			t.Errorf("log:\n%s", m.text())
		}
	})
}

func TestOldListAfterAClaimIsNotHeldAgainstUs(t *testing.T) {
	manage(t, Options{}, func(s *scripted) { s.hidden = true }, func(t *testing.T, m *managed) {
		m.store.do(func() { m.store.put(peer(2)) }) // a list that is older than our claim
		if len(m.store.seen().claims) != 1 {
			t.Errorf("claimed %d times", len(m.store.seen().claims))
		}
		m.wantAll(t, peer(0), peer(1), peer(2))
		pass(2 * settle)
		if len(m.store.seen().claims) < 2 {
			t.Error("our lease never shows, and nobody minds")
		}
	})
}

func TestAListThatIsNotKeptUpToDateSaysNothing(t *testing.T) {
	manage(t, Options{}, func(s *scripted) { s.hidden = true }, func(t *testing.T, m *managed) {
		m.store.do(func() { m.store.broken = errors.New("broken") }) // the last list lacks our lease
		pass(time.Hour)
		if n := len(m.store.seen().claims); n != 1 {
			t.Errorf("claimed %d times", n)
		}
	})
}

func TestWipedStoreKeepsPeersForAWhile(t *testing.T) {
	manage(t, Options{PeerGrace: time.Minute}, nil, func(t *testing.T, m *managed) {
		pass(time.Minute)
		m.store.do(func() { m.store.revision, m.store.leases, m.store.once = 0, nil, errors.New("revision went back") })
		pass(10 * time.Second)
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if s := m.state(t); len(m.store.seen().leases) != 1 || s.Revision > 5 {
			t.Errorf("not claimed again: %+v, %+v", m.store.seen().leases, s)
		}
		m.store.do(func() { m.store.put(peer(1)) })
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		pass(time.Minute)
		m.wantHeld(t, ownSubnet, peer(1))
		for i, s := range m.history() {
			if len(s.All) == 0 {
				t.Errorf("state %d has no leases: %+v", i, s)
			}
		}
	})
}

// wipe is what an etcd looks like whose data directory was lost.
func (m *managed) wipe() {
	m.store.do(func() { m.store.revision, m.store.leases, m.store.once = 0, nil, errors.New("revision went back") })
	pass(10 * time.Second)
}

func TestPeersOfAWipedStoreAreKeptForADay(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		pass(time.Minute)
		m.wipe()
		pass(23 * time.Hour) // a flannel claims again when it renews
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		m.store.do(func() { m.store.put(peer(1)) })
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if m.logged("they are kept") != 1 || m.logged("10.5.100.0/24 of 192.0.2.100, 10.5.101.0/24 of 192.0.2.101") != 1 || m.logged("dropping") != 0 {
			t.Errorf("log:\n%s", m.text())
		}
		pass(time.Hour)
		m.wantHeld(t, ownSubnet, peer(1))
		if m.logged(`claimed again" peers="10.5.100.0/24 of 192.0.2.100" after=24h`) != 1 {
			t.Errorf("log:\n%s", m.text())
		}
	})
}

func TestAKeptPeerGivesWayToWhoHasItsSubnet(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		pass(time.Minute)
		m.wipe()
		rival := held("10.5.100.0/25", "", "192.0.2.200", "")
		m.store.do(func() { m.store.put(rival) })
		m.wantHeld(t, ownSubnet, rival, peer(1))
		if m.logged(`subnets now" peers="10.5.100.0/24 of 192.0.2.100"`) != 1 {
			t.Errorf("log:\n%s", m.text())
		}
	})
}

func TestALostKeyOfOursIsNotALossOfData(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		pass(time.Minute)
		m.store.do(func() { m.store.leases = []Lease{peer(0), peer(1)} })
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if m.logged("lease lost, claiming again") != 1 || m.logged("the store") != 1 /* "gone from the store" */ {
			t.Errorf("log:\n%s", m.text())
		}
		m.store.do(func() { m.store.leases = slices.DeleteFunc(slices.Clone(m.store.leases), peer(0).SameSubnets) })
		m.wantHeld(t, ownSubnet, peer(1))
	})
}

func TestASubnetThatWasOursIsNotKeptAsAPeers(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		pass(time.Minute)
		m.store.do(func() { m.store.failing = errors.New("no quorum") })
		m.wipe()
		m.SetAttrs(Attrs{PublicIP: addr("198.51.100.5")}) // so that the old lease looks like another node's
		m.store.do(func() { m.store.failing = nil; m.store.gives = prefix("10.5.77.0/24") })
		pass(10 * time.Second)
		s := m.state(t)
		if want := []Lease{s.Self, peer(0), peer(1)}; s.Self.Subnet != prefix("10.5.77.0/24") || !slices.EqualFunc(s.All, want, Lease.Equal) {
			t.Errorf("state: %+v", s)
		}
	})
}

func TestRestoredStoreIsWrittenToAtOnce(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		pass(time.Minute)
		before := len(m.store.seen().writes)
		// A backup that has our lease, on an etcd lease of which nobody knows the rest.
		m.store.do(func() { m.store.revision, m.store.once = 5, errors.New("revision went back") })
		pass(10 * time.Second)
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if n := len(m.store.seen().writes) - before; n != 1 || len(m.store.seen().claims) != 1 {
			t.Errorf("written %d times, claimed %d times", n, len(m.store.seen().claims))
		}
	})
}

func TestAnotherOwnerSaidByTheWatch(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		m.store.do(func() {
			m.store.once, m.store.failing = fmt.Errorf("%w: by bob", ErrInUse), fmt.Errorf("%w: by bob", ErrInUse)
		})
		pass(time.Minute)
		if s := m.state(t); s.Held || !s.Connected || !errors.Is(s.Err, ErrInUse) || s.Self.Subnet != prefix(ownSubnet) {
			t.Errorf("state: %+v", s)
		}
		m.wantAll(t, peer(0), peer(1))
		m.store.do(func() { m.store.failing = nil })
		pass(time.Minute)
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
	})
}

func TestALeaseThatSomebodyShortenedIsRenewedAtOnce(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		m.store.do(func() { m.store.overdue = true })
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if n := len(m.store.seen().writes); n != 2 || len(m.store.seen().claims) != 1 {
			t.Errorf("written %d times, claimed %d times", n, len(m.store.seen().claims))
		}
		// A renewal that fails is not hastened by each list that says so again.
		m.store.do(func() { m.store.overdue, m.store.failing = true, errors.New("no quorum") })
		pass(time.Minute)
		before := len(m.store.seen().writes)
		for range 100 {
			m.store.do(func() {})
		}
		if n := len(m.store.seen().writes) - before; n != 0 {
			t.Errorf("tried %d times more", n)
		}
	})
}

func TestAClaimThatFailedWaitsOutItsPause(t *testing.T) {
	manage(t, Options{}, func(s *scripted) { s.failing = errors.New("no quorum") }, func(t *testing.T, m *managed) {
		pass(time.Minute) // the pauses are long by now, and one has just begun
		for before := len(m.store.seen().writes); len(m.store.seen().writes) == before; {
			pass(100 * time.Millisecond)
		}
		before := len(m.store.seen().writes)
		for i := range 100 {
			m.SetAttrs(Attrs{PublicIP: netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})})
			synctest.Wait()
		}
		if n := len(m.store.seen().writes) - before; n != 0 {
			t.Errorf("tried %d times more", n)
		}
	})
}

func TestARenewalIsReportedThoughNoListShowsIt(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		before := m.state(t).Self.Expires
		m.store.do(func() { m.store.hidden = true })
		pass(23 * time.Hour)
		if s := m.state(t); !s.Self.Expires.After(before) {
			t.Errorf("until %s, before %s", s.Self.Expires, before)
		}
	})
}

func TestALossIsReportedThoughTheTroubleIsOld(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		trouble := errors.New("no quorum")
		m.store.do(func() { m.store.failing = trouble })
		m.SetAttrs(Attrs{PublicIP: addr("198.51.100.5")}) // a renewal, which fails
		if s := m.state(t); !s.Held || s.Err == nil {
			t.Fatalf("state: %+v", s)
		}
		m.store.mu.Lock() // gone, but no list says so: the next renewal does, and the claim has the old trouble
		m.store.failing, m.store.refusing, m.store.leases = nil, trouble, []Lease{peer(0), peer(1)}
		m.store.mu.Unlock()
		pass(5 * time.Second)
		if s := m.state(t); s.Held {
			t.Errorf("state: %+v", s)
		}
	})
}

func TestEachTroubleOfTheWatchIsReportedOnce(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		reports := len(m.history())
		for i, trouble := range []string{"connection refused", "no leader"} {
			m.store.do(func() { m.store.broken = errors.New(trouble) })
			pass(time.Minute)
			if s := m.state(t); len(m.history()) != reports+i+1 || s.Connected || s.Err.Error() != trouble {
				t.Errorf("%d reports, the last is %+v", len(m.history())-reports, s)
			}
		}
	})
}

func TestSetAttrs(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		next := Attrs{PublicIP: addr("198.51.100.5"), BackendType: "host-gw"}
		m.SetAttrs(next)
		synctest.Wait()
		if s := m.state(t); !s.Held || !s.Self.Attrs.Equal(next) || len(m.store.seen().writes) != 2 {
			t.Errorf("state: %+v", s)
		}
		m.SetAttrs(next) // nothing new
		synctest.Wait()
		if len(m.store.seen().writes) != 2 {
			t.Error("wrote the same again")
		}
		// While the store fails the newest one waits, and is written as soon as it works.
		m.store.do(func() { m.store.failing = errors.New("no quorum") })
		for i := range 10 {
			next.PublicIP = netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + i)})
			m.SetAttrs(next)
		}
		pass(time.Minute)
		m.store.do(func() { m.store.failing = nil })
		pass(5 * time.Second)
		if s := m.state(t); !s.Held || s.Err != nil || !s.Self.Attrs.Equal(next) || len(m.store.seen().claims) != 1 {
			t.Errorf("state: %+v, claims %d", s, len(m.store.seen().claims))
		}
	})
}

func TestRenewalThatFindsTheLeaseLostClaimsAtOnce(t *testing.T) {
	manage(t, Options{RenewMargin: time.Hour}, nil, func(t *testing.T, m *managed) {
		m.store.mu.Lock() // gone, but the watch does not say so
		m.store.leases = []Lease{peer(0), peer(1)}
		m.store.mu.Unlock()
		pass(23*time.Hour + time.Second)
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if len(m.store.seen().claims) != 2 {
			t.Errorf("claims: %+v", m.store.seen().claims)
		}
	})
}

func TestRunEndsAtOnce(t *testing.T) {
	for _, hang := range []bool{false, true} {
		manage(t, Options{}, func(s *scripted) { s.hang = hang }, func(t *testing.T, m *managed) {
			start := time.Now()
			m.stop()
			if d := time.Since(start); d > 0 {
				t.Errorf("hanging store %v: took %s", hang, d)
			}
		})
	}
}

func TestBrokenWatchIsNotHammered(t *testing.T) {
	manage(t, Options{}, nil, func(t *testing.T, m *managed) {
		reports := len(m.history())
		m.store.do(func() { m.store.broken = errors.New("broken") })
		pass(time.Hour)
		if n := len(m.history()) - reports; n != 1 {
			t.Errorf("reported %d times", n)
		}
		if n := m.store.seen().watches; n < 3600/5 || n > 2*3600/5+20 {
			t.Errorf("%d watches in an hour", n)
		}
	})
}
