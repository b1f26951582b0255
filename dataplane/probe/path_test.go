package probe

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// search runs a search on a path of an MTU until it has a result, with a tick per packet, and
// returns the number of ticks.
func search(s *mtuSearch, now *time.Time, mtu int, loss float64) int {
	for ticks := 1; ; ticks++ {
		*now = now.Add(tick)
		if size := s.size; size <= mtu && rand.Float64() >= loss {
			s.passed(size, *now)
		} else {
			s.lost(size, *now)
		}
		if s.next.After(*now) {
			return ticks
		}
	}
}

func TestMTUSearchEveryMTU(t *testing.T) {
	for mtu := echoSize; mtu <= 1500; mtu++ {
		now := time.Now()
		s := newMTUSearch(echoSize, 1472, now)
		if ticks := search(&s, &now, mtu, 0); s.known != min(mtu, 1472) || ticks > 35 {
			t.Fatalf("path of %d bytes: found %d in %d ticks", mtu, s.known, ticks)
		}
	}
}

func TestMTUSearchChangedPath(t *testing.T) {
	now := time.Now()
	s := newMTUSearch(echoSize, 1472, now)
	for _, step := range []struct{ mtu, checks int }{{1500, 1}, {1400, 1}, {1300, 1}, {1500, mtuRestart}} {
		for range step.checks {
			now = s.next
			search(&s, &now, step.mtu, 0)
		}
		if want := min(step.mtu, 1472); s.known != want {
			t.Errorf("path of %d bytes: %d after %d checks", step.mtu, s.known, step.checks)
		}
	}
}

func TestMTUSearchLossyPath(t *testing.T) {
	wrong := 0
	for range 1000 {
		now := time.Now()
		s := newMTUSearch(echoSize, 1472, now)
		if search(&s, &now, 1472, 0.1); s.known != 1472 {
			wrong++
		}
	}
	if wrong > 10 {
		t.Errorf("%d of 1000 searches on a path with 10 %% loss were wrong", wrong)
	}
}

func TestMTUSearchReported(t *testing.T) {
	now := time.Now()
	for _, c := range []struct{ reported, next int }{
		{1372, 1372},                      // tried next
		{0, (echoSize + 1471 + 1) / 2},    // not known: half of the range
		{9000, (echoSize + 1471 + 1) / 2}, // cannot be true
		{20, (echoSize + 1471 + 1) / 2},   // likewise: smaller packets got through
	} {
		s := newMTUSearch(echoSize, 1472, now)
		if s.tooBig(1472, c.reported, now); s.size != c.next || s.high >= 1472 {
			t.Errorf("report of %d: %+v, want %d next", c.reported, s, c.next)
		}
	}
}

func TestPathLost(t *testing.T) {
	now := time.Now()
	p := newPath(netip.MustParseAddr("10.5.2.0"), 1472, now)
	if wait := p.due.Sub(now); wait < settleTime || wait > 2*settleTime {
		t.Errorf("first echo after %v", wait)
	}
	p.answer(byWorkers, time.Millisecond, now, time.Hour)
	if wait := p.due.Sub(now); wait < 54*time.Minute || wait > 66*time.Minute {
		t.Errorf("echo after an answer after %v", wait)
	}
	for range unreachableAfter - 1 {
		if p.lose(byWorkers, now, time.Hour); p.due != now || p.state().Unreachable != "" {
			t.Errorf("after a lost echo: %+v", p)
		}
	}
	p.lose(byWorkers, now, time.Hour)
	s := p.state()
	if p.due.Sub(now) < 54*time.Minute || s.Sent != 4 || s.Lost != 3 || s.Median != time.Millisecond ||
		!strings.HasPrefix(s.Unreachable, "no answer from 10.5.2.0 since 20") {
		t.Errorf("after three: %+v, next after %v", s, p.due.Sub(now))
	}
	p.ways[byWorkers].err = errors.New("operation not permitted")
	if r := p.reason(); !strings.HasSuffix(r, ": operation not permitted") {
		t.Errorf("reason %q", r)
	}
	if p.answer(byWorkers, time.Second, now, time.Hour); p.state().Unreachable != "" {
		t.Errorf("after an answer: %+v", p.state())
	}
}

// TestPathWays breaks the ways of a path one after the other.
func TestPathWays(t *testing.T) {
	now := time.Now()
	p := newPath(netip.MustParseAddr("10.5.2.0"), 1472, now)
	p.setFast(true)
	broken := map[way]bool{}
	rounds := func(n int) {
		for range n {
			if by := p.turn; broken[by] {
				p.lose(by, now, time.Hour)
			} else {
				p.answer(by, time.Millisecond, now, time.Hour)
			}
		}
	}
	check := func(when, reason string, bulk, fast bool) {
		t.Helper()
		s := p.state()
		if !strings.HasPrefix(s.Unreachable, reason) || (s.Unreachable == "") != (reason == "") ||
			p.losesBulk() != bulk || p.avoidsFast() != fast {
			t.Errorf("%s: %q, bulk lost %v, fast path avoided %v", when, s.Unreachable, p.losesBulk(), p.avoidsFast())
		}
	}
	rounds(4)
	check("both work", "", false, false)
	if s := p.state(); *s.Workers != (Loss{Sent: 2}) || *s.Fast != (Loss{Sent: 2}) || s.Sent != 4 {
		t.Errorf("%+v", s)
	}
	broken[byWorkers] = true
	rounds(unreachableAfter + 1)
	check("without workers", "bulk flows are lost", true, false)
	broken = map[way]bool{byFast: true}
	rounds(unreachableAfter + 2)
	check("without a fast path", "", false, true)
	broken[byWorkers] = true
	broken[byWorkersBack] = true
	rounds(2 * unreachableAfter)
	check("none", "no answer", false, false)
	delete(broken, byWorkersBack)
	rounds(3)
	check("answers of the fast path lost", "no answer", false, true)
	delete(broken, byWorkers)
	rounds(3)
	check("avoided by the other node, too", "", false, true)
	broken[byWorkers] = true
	rounds(unreachableAfter)
	check("none again", "no answer", false, false)
	p.setFast(false)
	broken = nil
	rounds(2)
	check("one way", "", false, false)
	if s := p.state(); s.Workers != nil || p.turn != byWorkers || p.options(p.turn) != (options{}) {
		t.Errorf("%+v", s)
	}
}

func TestWindowFull(t *testing.T) {
	var w window
	for i := range 3 * windowLen {
		w.add(time.Duration(i%3) - 1) // every third is lost
	}
	if sent, missing, median := w.summary(); sent != windowLen || missing != windowLen/3 || median != 1 {
		t.Errorf("%d sent, %d lost, median %v", sent, missing, median)
	}
}

func target(i int) Target {
	return Target{ID: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}
}

// TestSampleStable compares the sample with that of the slow definition, and with the one after a
// node has left.
func TestSampleStable(t *testing.T) {
	const n = 20
	seed := maphash.MakeSeed()
	var all []Target
	for i := range 1000 {
		all = append(all, target(i))
	}
	got := sample(slices.Values(all), n, seed)
	sorted := slices.SortedFunc(slices.Values(all), func(a, b Target) int {
		x, y := maphash.Comparable(seed, a.ID), maphash.Comparable(seed, b.ID)
		if x < y {
			return -1
		}
		return 1
	})
	if !slices.Equal(got, sorted[:n]) {
		t.Errorf("got %v\nwant %v", got, sorted[:n])
	}
	without := slices.DeleteFunc(slices.Clone(all), func(t Target) bool { return t == got[3] })
	if after := sample(slices.Values(without), n, seed); !slices.Equal(after, sorted[:n+1]) &&
		!slices.Equal(after, slices.Concat(sorted[:3], sorted[4:n+1])) {
		t.Errorf("after one left: %v", after)
	}
	if few := sample(slices.Values(all[:5]), n, seed); len(few) != 5 {
		t.Errorf("sample of 5: %v", few)
	}
}

func TestProberSet(t *testing.T) {
	p := New(time.Minute)
	a, b := target(1), target(2)
	a.Addr, b.Addr, b.Addr6 = a.ID.Addr(), b.ID.Addr(), netip.MustParseAddr("fd00::")
	p.Set(Source{MTU: 1472}, slices.Values([]Target{a, b}))
	p.nodes[a.ID].paths[0].answer(byWorkers, time.Second, time.Now(), time.Minute)
	p.Set(Source{MTU: 1472}, slices.Values([]Target{a}))
	r := p.Results()
	if len(r) != 1 || r[a.ID].Path == nil || r[a.ID].Path.Last != time.Second || r[a.ID].Path6 != nil {
		t.Errorf("results %v", describe(r))
	}
	a.Addr = b.Addr
	if p.Set(Source{MTU: 1472}, slices.Values([]Target{a})); p.Results()[a.ID].Path.Last != 0 {
		t.Error("a changed address keeps the results")
	}
}

func describe(all map[netip.Prefix]Result) (s string) {
	for id, r := range all {
		s += fmt.Sprintf("%v: %+v %+v; ", id, r.Path, r.Path6)
	}
	return s
}

func TestPathLosesLessOften(t *testing.T) {
	now := time.Now()
	p := newPath(netip.MustParseAddr("10.5.2.0"), 1472, now)
	const interval = 10 * time.Second
	for i, intervals := range []time.Duration{0, 0, 1, 2, 3, 3, 3} {
		p.lose(byWorkers, now, interval)
		if d := p.due.Sub(now) - intervals*interval; d.Abs() > intervals*interval/10 {
			t.Errorf("next echo %v after %d lost ones, want %d intervals", p.due.Sub(now), i+1, intervals)
		}
	}
	p.answer(byWorkers, time.Millisecond, now, interval)
	if d := p.due.Sub(now); (d - interval).Abs() > interval/10 {
		t.Errorf("next echo %v after an answer", d)
	}
}

// Many paths share the echoes per second.
func TestIntervalOfManyPaths(t *testing.T) {
	p := New(10 * time.Second)
	for _, c := range []struct {
		nodes int
		want  time.Duration
	}{{1, 10 * time.Second}, {100, 10 * time.Second}, {150, 15 * time.Second}, {500, 20 * time.Second}} {
		p.Set(Source{MTU: 1472}, func(yield func(Target) bool) {
			for i := range c.nodes {
				a := netip.AddrFrom4([4]byte{10, 5, byte(i), byte(i >> 8)})
				if !yield(Target{ID: netip.PrefixFrom(a, 32), Addr: a}) {
					return
				}
			}
		})
		if got := p.Interval(); got != c.want {
			t.Errorf("%d nodes: interval %v, want %v", c.nodes, got, c.want)
		}
	}
}
