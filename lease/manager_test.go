package lease

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFirstHeldStateComplete(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if len(m.reported()) != 1 || m.reported()[0].All.Len() != 3 {
			t.Errorf("states: %+v", m.reported())
		}
	})
}

func TestPeerChanges(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		m.store.update(func() { m.store.put(peer(2)) })
		m.wantHeld(t, ownSubnet, peer(0), peer(1), peer(2))
		changed := peer(1)
		changed.PublicIP = addr("198.51.100.1")
		m.store.update(func() { m.store.put(changed) })
		m.wantHeld(t, ownSubnet, peer(0), changed, peer(2))
		m.store.update(func() { m.store.leases = slices.DeleteFunc(slices.Clone(m.store.leases), peer(0).SameSubnets) })
		m.wantHeld(t, ownSubnet, changed, peer(2))
	})
}

// TestBurstJoined checks that the first change of a burst is reported at once and the rest of it
// after an interval, with the last list.
func TestBurstJoined(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		advance(joinInterval)
		before := len(m.reported())
		for i := range 50 {
			m.store.update(func() { m.store.put(peer(2 + i)) })
			synctest.Wait()
		}
		if n := len(m.reported()) - before; n != 1 || m.reported()[before].All.Len() != 4 {
			t.Errorf("%d reports at once", n)
		}
		advance(joinInterval)
		if n := len(m.reported()) - before; n != 2 || m.reported()[before+1].All.Len() != 53 {
			t.Errorf("%d reports after the interval", n)
		}
	})
}

func TestRenewBeforeExpiry(t *testing.T) {
	runManager(t, Options{RenewMargin: time.Hour}, nil, func(t *testing.T, m *testManager) {
		advance(5 * 24 * time.Hour)
		writes := m.store.calls().writes
		for i := range writes[1:] {
			const margin = time.Hour
			if d := writes[i+1].Sub(writes[i]); d > 24*time.Hour-margin || d < 24*time.Hour-margin*9/8 {
				t.Errorf("renewed after %s", d)
			}
		}
		if left := time.Until(m.state(t).Self.Expires); len(writes) != 6 || left < 18*time.Hour {
			t.Errorf("%d writes, %s left", len(writes), left)
		}
	})
}

func TestReservationNotRenewed(t *testing.T) {
	runManager(t, Options{}, func(s *fakeStore) { s.ttl = 0 }, func(t *testing.T, m *testManager) {
		advance(100 * time.Hour)
		if len(m.store.calls().writes) != 1 {
			t.Errorf("written %d times", len(m.store.calls().writes))
		}
		m.SetAttrs(Attrs{PublicIP: addr("192.0.2.77")})
		synctest.Wait()
		if len(m.store.calls().writes) != 2 || m.state(t).Self.PublicIP != addr("192.0.2.77") {
			t.Errorf("attributes not published: %+v", m.state(t).Self)
		}
	})
}

func TestRenewalRetried(t *testing.T) {
	runManager(t, Options{RenewMargin: time.Hour}, nil, func(t *testing.T, m *testManager) {
		m.store.update(func() { m.store.writeErr = errors.New("no quorum") })
		advance(23*time.Hour + 10*time.Minute)
		s := m.state(t)
		if !s.Held || s.Err == nil || s.All.Len() != 3 {
			t.Errorf("state: %+v", s)
		}
		tries := len(m.store.calls().writes)
		advance(time.Minute)
		if more := len(m.store.calls().writes) - tries; more < 1 || more > 60 {
			t.Errorf("%d tries in a minute", more)
		}
		if n := m.countLogged("no quorum"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, m.logText())
		}
		m.store.update(func() { m.store.writeErr = nil })
		advance(time.Minute)
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if m.countLogged("lease store recovered") != 1 {
			t.Errorf("log:\n%s", m.logText())
		}
	})
}

func TestFullPoolRetried(t *testing.T) {
	full := fmt.Errorf("%w: all are leased", ErrNoSubnet)
	runManager(t, Options{}, func(s *fakeStore) { s.writeErr = full }, func(t *testing.T, m *testManager) {
		advance(time.Hour)
		if s := m.state(t); s.Held || !errors.Is(s.Err, ErrNoSubnet) {
			t.Errorf("state: %+v", s)
		}
		if n := len(m.store.calls().writes); n < 3600/5 || n > 2*3600/5+20 {
			t.Errorf("%d tries in an hour", n)
		}
		if n := m.countLogged("all are leased"); n != 1 || len(m.reported()) != 1 {
			t.Errorf("logged %d times, reported %d times", n, len(m.reported()))
		}
		m.store.update(func() { m.store.writeErr = fmt.Errorf("%w: by bob", ErrInUse) })
		advance(time.Minute)
		if s := m.state(t); !errors.Is(s.Err, ErrInUse) || m.countLogged("by bob") != 1 {
			t.Errorf("state: %+v", s)
		}
		m.store.update(func() { m.store.writeErr = nil })
		advance(5 * time.Second)
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
	})
}

func TestStoreOutageKeepsState(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		m.store.update(func() {
			m.store.watchErr, m.store.writeErr = errors.New("connection refused"), errors.New("connection refused")
		})
		advance(48 * time.Hour) // beyond the expiry
		s := m.state(t)
		if s.Connected || s.Err == nil || s.Self.Subnet != prefix(ownSubnet) {
			t.Errorf("state: %+v", s)
		}
		m.wantPeers(t, peer(0), peer(1))
		if n := m.countLogged("connection refused"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		// The store returns with another peer and without this node's lease, which has expired.
		m.store.update(func() {
			m.store.watchErr, m.store.writeErr = nil, nil
			m.store.leases = []Lease{peer(1), peer(2)}
		})
		advance(10 * time.Second)
		m.wantHeld(t, ownSubnet, peer(1), peer(2))
	})
}

func TestLostLeaseReclaimed(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		advance(time.Minute)
		m.store.update(func() { m.store.leases = []Lease{peer(0), peer(1)} })
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if n := len(m.store.calls().claims); n != 2 || m.store.calls().claims[1].Previous != prefix(ownSubnet) {
			t.Errorf("claims: %+v", m.store.calls().claims)
		}
		lost := slices.IndexFunc(m.reported(),
			func(s State) bool { return !s.Held && s.Self.Subnet == prefix(ownSubnet) })
		if lost >= 0 && m.reported()[lost].All.Len() < 3 {
			t.Errorf("while lost: %+v", m.reported()[lost])
		}
	})
}

func TestTakenLeaseGetsOtherSubnet(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		advance(time.Minute)
		rival := newLease(ownSubnet, "", "192.0.2.250", "")
		m.store.update(func() { m.store.put(rival) })
		m.wantHeld(t, "10.5.2.0/24", rival, peer(0), peer(1))
		if m.countLogged("level=ERROR") != 1 || m.countLogged("192.0.2.250") != 1 {
			t.Errorf("log:\n%s", m.logText())
		}
	})
}

func TestListOlderThanClaim(t *testing.T) {
	runManager(t, Options{}, func(s *fakeStore) { s.hidden = true }, func(t *testing.T, m *testManager) {
		m.store.update(func() { m.store.put(peer(2)) }) // a list older than the claim
		if len(m.store.calls().claims) != 1 {
			t.Errorf("claimed %d times", len(m.store.calls().claims))
		}
		m.wantPeers(t, peer(0), peer(1), peer(2))
		advance(2 * watchLag)
		if len(m.store.calls().claims) < 2 {
			t.Error("missing lease not claimed again")
		}
	})
}

func TestDisconnectedListIgnored(t *testing.T) {
	runManager(t, Options{}, func(s *fakeStore) { s.hidden = true }, func(t *testing.T, m *testManager) {
		m.store.update(func() { m.store.watchErr = errors.New("broken") }) // the last list lacks this node's lease
		advance(time.Hour)
		if n := len(m.store.calls().claims); n != 1 {
			t.Errorf("claimed %d times", n)
		}
	})
}

func TestWipedStoreKeepsPeers(t *testing.T) {
	runManager(t, Options{PeerGrace: time.Minute}, nil, func(t *testing.T, m *testManager) {
		advance(time.Minute)
		m.store.update(func() {
			m.store.revision, m.store.leases, m.store.watchErrOnce = 0, nil, errors.New("revision went back")
		})
		advance(10 * time.Second)
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if s := m.state(t); len(m.store.calls().leases) != 1 || s.Revision > 5 {
			t.Errorf("lease not claimed again: %+v, %+v", m.store.calls().leases, s)
		}
		m.store.update(func() { m.store.put(peer(1)) })
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		advance(time.Minute)
		m.wantHeld(t, ownSubnet, peer(1))
		for i, s := range m.reported() {
			if s.All.Len() == 0 {
				t.Errorf("state %d without leases: %+v", i, s)
			}
		}
	})
}

func TestGracePeersDefaultDay(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		advance(time.Minute)
		m.wipe()
		advance(23 * time.Hour) // flannel claims again when it renews
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		m.store.update(func() { m.store.put(peer(1)) })
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if m.countLogged("keeping them") != 1 ||
			m.countLogged("10.5.100.0/24 of 192.0.2.100, 10.5.101.0/24 of 192.0.2.101") != 1 ||
			m.countLogged("dropping") != 0 {
			t.Errorf("log:\n%s", m.logText())
		}
		advance(time.Hour)
		m.wantHeld(t, ownSubnet, peer(1))
		if m.countLogged(`did not claim again" peers="10.5.100.0/24 of 192.0.2.100" grace=24h`) != 1 {
			t.Errorf("log:\n%s", m.logText())
		}
	})
}

func TestGracePeerDisplaced(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		advance(time.Minute)
		m.wipe()
		rival := newLease("10.5.100.0/25", "", "192.0.2.200", "")
		m.store.update(func() { m.store.put(rival) })
		m.wantHeld(t, ownSubnet, rival, peer(1))
		if m.countLogged(`claimed by other nodes" peers="10.5.100.0/24 of 192.0.2.100"`) != 1 {
			t.Errorf("log:\n%s", m.logText())
		}
	})
}

func TestLostOwnKeyOnly(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		advance(time.Minute)
		m.store.update(func() { m.store.leases = []Lease{peer(0), peer(1)} })
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if m.countLogged("lease lost, claiming again") != 1 || m.countLogged("missing from the store") != 1 ||
			m.countLogged("store lost") != 0 {
			t.Errorf("log:\n%s", m.logText())
		}
		m.store.update(func() { m.store.leases = slices.DeleteFunc(slices.Clone(m.store.leases), peer(0).SameSubnets) })
		m.wantHeld(t, ownSubnet, peer(1))
	})
}

func TestOldSubnetNotGracePeer(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		advance(time.Minute)
		m.store.update(func() { m.store.writeErr = errors.New("no quorum") })
		m.wipe()
		m.SetAttrs(Attrs{PublicIP: addr("198.51.100.5")}) // so that the old lease appears to be another node's
		m.store.update(func() { m.store.writeErr = nil; m.store.nextSubnet = prefix("10.5.77.0/24") })
		advance(10 * time.Second)
		s := m.state(t)
		if want := []Lease{s.Self, peer(0), peer(1)}; s.Self.Subnet != prefix("10.5.77.0/24") ||
			!slices.EqualFunc(List(s.All), want, Lease.Equal) {
			t.Errorf("state: %+v", s)
		}
	})
}

func TestRestoredStoreRenewed(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		advance(time.Minute)
		before := len(m.store.calls().writes)
		// The restored data has this node's lease, with an unknown expiry.
		m.store.update(func() { m.store.revision, m.store.watchErrOnce = 5, errors.New("revision went back") })
		advance(10 * time.Second)
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if n := len(m.store.calls().writes) - before; n != 1 || len(m.store.calls().claims) != 1 {
			t.Errorf("written %d times, claimed %d times", n, len(m.store.calls().claims))
		}
	})
}

func TestWatchErrInUse(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		m.store.update(func() {
			m.store.watchErrOnce, m.store.writeErr = fmt.Errorf("%w: by bob", ErrInUse),
				fmt.Errorf("%w: by bob", ErrInUse)
		})
		advance(time.Minute)
		if s := m.state(t); s.Held || !s.Connected || !errors.Is(s.Err, ErrInUse) ||
			s.Self.Subnet != prefix(ownSubnet) {
			t.Errorf("state: %+v", s)
		}
		m.wantPeers(t, peer(0), peer(1))
		m.store.update(func() { m.store.writeErr = nil })
		advance(time.Minute)
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
	})
}

func TestRenewShortenedLease(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		m.store.update(func() { m.store.renewNow = true })
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if n := len(m.store.calls().writes); n != 2 || len(m.store.calls().claims) != 1 {
			t.Errorf("written %d times, claimed %d times", n, len(m.store.calls().claims))
		}
		// Further lists with RenewNow do not shorten the backoff of a failed renewal.
		m.store.update(func() { m.store.renewNow, m.store.writeErr = true, errors.New("no quorum") })
		advance(time.Minute)
		before := len(m.store.calls().writes)
		for range 100 {
			m.store.update(func() {})
		}
		if n := len(m.store.calls().writes) - before; n != 0 {
			t.Errorf("%d additional writes", n)
		}
	})
}

func TestFailedClaimBackoff(t *testing.T) {
	runManager(t, Options{}, func(s *fakeStore) { s.writeErr = errors.New("no quorum") },
		func(t *testing.T, m *testManager) {
			advance(time.Minute) // wait for a long backoff, then for its start
			for before := len(m.store.calls().writes); len(m.store.calls().writes) == before; {
				advance(100 * time.Millisecond)
			}
			before := len(m.store.calls().writes)
			for i := range 100 {
				m.SetAttrs(Attrs{PublicIP: netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})})
				synctest.Wait()
			}
			if n := len(m.store.calls().writes) - before; n != 0 {
				t.Errorf("%d additional writes", n)
			}
		})
}

func TestRenewalReportedWithoutList(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		before := m.state(t).Self.Expires
		m.store.update(func() { m.store.hidden = true })
		advance(23 * time.Hour)
		if s := m.state(t); !s.Self.Expires.After(before) {
			t.Errorf("expires %s, before the renewal %s", s.Self.Expires, before)
		}
	})
}

func TestLossReportedDuringError(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		failure := errors.New("no quorum")
		m.store.update(func() { m.store.writeErr = failure })
		m.SetAttrs(Attrs{PublicIP: addr("198.51.100.5")}) // triggers a renewal, which fails
		if s := m.state(t); !s.Held || s.Err == nil {
			t.Fatalf("state: %+v", s)
		}
		m.store.mu.Lock() // lost, but in no list: the renewal finds out, and the claim fails as before
		m.store.writeErr, m.store.claimErr, m.store.leases = nil, failure, []Lease{peer(0), peer(1)}
		m.store.mu.Unlock()
		advance(5 * time.Second)
		if s := m.state(t); s.Held {
			t.Errorf("state: %+v", s)
		}
	})
}

func TestWatchErrorsReportedOnce(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		reports := len(m.reported())
		for i, failure := range []string{"connection refused", "no leader"} {
			m.store.update(func() { m.store.watchErr = errors.New(failure) })
			advance(time.Minute)
			if s := m.state(t); len(m.reported()) != reports+i+1 || s.Connected || s.Err.Error() != failure {
				t.Errorf("%d reports, the last is %+v", len(m.reported())-reports, s)
			}
		}
	})
}

func TestSetAttrs(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		next := Attrs{PublicIP: addr("198.51.100.5"), BackendType: "host-gw"}
		m.SetAttrs(next)
		synctest.Wait()
		if s := m.state(t); !s.Held || !s.Self.Attrs.Equal(next) || len(m.store.calls().writes) != 2 {
			t.Errorf("state: %+v", s)
		}
		m.SetAttrs(next) // unchanged
		synctest.Wait()
		if len(m.store.calls().writes) != 2 {
			t.Error("unchanged attributes written again")
		}
		// While the store fails, the newest attributes wait and are written at recovery.
		m.store.update(func() { m.store.writeErr = errors.New("no quorum") })
		for i := range 10 {
			next.PublicIP = netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + i)})
			m.SetAttrs(next)
		}
		advance(time.Minute)
		m.store.update(func() { m.store.writeErr = nil })
		advance(5 * time.Second)
		if s := m.state(t); !s.Held || s.Err != nil || !s.Self.Attrs.Equal(next) || len(m.store.calls().claims) != 1 {
			t.Errorf("state: %+v, claims %d", s, len(m.store.calls().claims))
		}
	})
}

func TestRenewLostLeaseReclaims(t *testing.T) {
	runManager(t, Options{RenewMargin: time.Hour}, nil, func(t *testing.T, m *testManager) {
		m.store.mu.Lock() // lost, but the watch does not notice
		m.store.leases = []Lease{peer(0), peer(1)}
		m.store.mu.Unlock()
		advance(23*time.Hour + time.Second)
		m.wantHeld(t, ownSubnet, peer(0), peer(1))
		if len(m.store.calls().claims) != 2 {
			t.Errorf("claims: %+v", m.store.calls().claims)
		}
	})
}

func TestRunCancel(t *testing.T) {
	for _, hang := range []bool{false, true} {
		runManager(t, Options{}, func(s *fakeStore) { s.hang = hang }, func(t *testing.T, m *testManager) {
			start := time.Now()
			m.stop()
			if d := time.Since(start); d > 0 {
				t.Errorf("hanging store %v: Run returned after %s", hang, d)
			}
		})
	}
}

func TestBrokenWatchBackoff(t *testing.T) {
	runManager(t, Options{}, nil, func(t *testing.T, m *testManager) {
		reports := len(m.reported())
		m.store.update(func() { m.store.watchErr = errors.New("broken") })
		advance(time.Hour)
		if n := len(m.reported()) - reports; n != 1 {
			t.Errorf("reported %d times", n)
		}
		if n := m.store.calls().watches; n < 3600/5 || n > 2*3600/5+20 {
			t.Errorf("%d watches in an hour", n)
		}
	})
}
