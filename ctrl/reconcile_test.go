package ctrl

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// reconciling runs a reconciler on f in a synctest bubble during body, and returns its log.
func reconciling(t *testing.T, f *fakeKernel, body func(r *Reconciler)) string {
	t.Helper()
	var log bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		r := NewReconciler(f, ReconcilerOptions{Log: slog.New(slog.NewTextHandler(&log, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		body(r)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
		t.Log(log.String())
	})
	return log.String()
}

// after lets d of the bubble's time pass.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestReconcilerFirstAndRepair(t *testing.T) {
	f := &fakeKernel{state: State{Links: []Link{eth0}}}
	reconciling(t, f, func(r *Reconciler) {
		after(time.Minute)
		if f.count() != 0 {
			t.Errorf("%d looks before there was a wanted state", f.count())
		}
		want := vxlanWant()
		r.Set(want)
		synctest.Wait()
		if got := f.take(); len(got) != 5 {
			t.Errorf("first programming: %q", got)
		}
		s := r.Status()
		if !s.Synced || s.Err != nil || s.Repairs != 0 {
			t.Errorf("status %+v", s)
		}
		start := time.Now()
		f.set(func(s *State) { s.Routes = nil })
		for len(f.take()) == 0 {
			after(time.Millisecond)
		}
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("repaired after %v", took)
		}
		if s := r.Status(); !s.Synced || s.Repairs != 1 {
			t.Errorf("status %+v", s)
		}
		// Without a notification, the resync finds it.
		f.mu.Lock()
		f.state.FDB = nil
		f.mu.Unlock()
		after(defaultResync)
		if got := f.take(); len(got) != 1 {
			t.Errorf("after the timer: %q", got)
		}
	})
}

// TestReconcilerSetIsNoRepair checks that changes for a new wanted state do not count as repairs.
func TestReconcilerSetIsNoRepair(t *testing.T) {
	f := &fakeKernel{state: vxlanHave()}
	reconciling(t, f, func(r *Reconciler) {
		r.Set(vxlanWant())
		synctest.Wait()
		want := vxlanWant()
		want.Routes = nil
		r.Set(want)
		synctest.Wait()
		if got := f.take(); len(got) != 1 {
			t.Fatalf("got %q", got)
		}
		if s := r.Status(); s.Repairs != 0 {
			t.Errorf("%d repairs", s.Repairs)
		}
	})
}

// TestReconcilerCurrent checks that right after a Set, Synced refers to the previous state.
func TestReconcilerCurrent(t *testing.T) {
	f := &fakeKernel{state: vxlanHave()}
	reconciling(t, f, func(r *Reconciler) {
		expect := func(when string, synced, current bool) {
			t.Helper()
			if s := r.Status(); s.Synced != synced || s.Current != current {
				t.Errorf("%s: %+v", when, s)
			}
		}
		for _, was := range []bool{false, true} {
			f.mu.Lock() // blocks comparisons
			r.Set(vxlanWant())
			expect("set", was, false)
			f.mu.Unlock()
			synctest.Wait()
			expect("compared", true, true)
		}
	})
}

func TestReconcilerRetries(t *testing.T) {
	refused := errors.New("refused")
	f := &fakeKernel{state: State{Links: []Link{eth0}}}
	f.fail = func(o Op) error {
		if _, isLink := o.Object.(Link); isLink {
			return refused
		}
		return nil
	}
	reconciling(t, f, func(r *Reconciler) {
		r.Set(vxlanWant())
		synctest.Wait()
		if s := r.Status(); s.Synced || !errors.Is(s.Err, refused) {
			t.Errorf("status %+v", s)
		}
		if got := f.take(); len(got) != 0 {
			t.Errorf("without the device, yet %q", got)
		}
		start, reads := time.Now(), f.count()
		after(5 * minRetry)
		if n := f.count() - reads; n < 2 || n > 4 {
			t.Errorf("%d tries in %v", n, time.Since(start))
		}
		after(time.Minute)
		reads = f.count()
		after(time.Minute)
		if n := f.count() - reads; n < 5 || n > 7 {
			t.Errorf("%d tries a minute in the long run", n)
		}
		f.mu.Lock()
		f.fail = nil
		f.mu.Unlock()
		after(maxRetry)
		if s := r.Status(); !s.Synced {
			t.Errorf("status %+v", s)
		}
	})
}

func TestReconcilerReadFails(t *testing.T) {
	f := &fakeKernel{state: vxlanHave(), readErr: errors.New("no answer")}
	reconciling(t, f, func(r *Reconciler) {
		r.Set(vxlanWant())
		synctest.Wait()
		if s := r.Status(); s.Synced || s.Err == nil || s.Err.Error() != "read kernel state: no answer" {
			t.Errorf("status %+v", s)
		}
		f.mu.Lock()
		f.readErr = nil
		f.mu.Unlock()
		after(maxRetry)
		if s := r.Status(); !s.Synced {
			t.Errorf("status %+v", s)
		}
	})
}

func TestReconcilerWaitsAndConflicts(t *testing.T) {
	f := &fakeKernel{state: State{Links: []Link{eth0}}}
	want := State{Networks: nets, Links: []Link{{Name: "flannel0", Kind: KindTUN, Up: true, External: true}}}
	reconciling(t, f, func(r *Reconciler) {
		r.Set(want)
		synctest.Wait()
		s := r.Status()
		if s.Synced || s.Err != nil || !slices.Equal(s.Waiting, []string{"flannel0"}) {
			t.Errorf("status %+v", s)
		}
		reads := f.count()
		after(time.Minute)
		if n := f.count() - reads; n > 7 {
			t.Errorf("%d looks a minute for a device that others make", n)
		}
		f.set(func(s *State) { s.Links = append(slices.Clone(s.Links), Link{Name: "flannel0", Kind: KindTUN}) })
		after(minDebounce)
		if s := r.Status(); !s.Synced || len(f.take()) != 1 {
			t.Errorf("status %+v", s)
		}
		f.set(func(s *State) { s.Links[1].Kind = "dummy" })
		after(minDebounce)
		if s := r.Status(); s.Err == nil || !strings.Contains(s.Err.Error(), "not owned by this daemon") {
			t.Errorf("status %+v", s)
		}
	})
}

// TestReconcilerRepairLog checks that frequent repairs are logged once per minute.
func TestReconcilerRepairLog(t *testing.T) {
	f := &fakeKernel{state: vxlanHave()}
	log := reconciling(t, f, func(r *Reconciler) {
		r.Set(vxlanWant())
		synctest.Wait()
		for range 125 {
			f.set(func(s *State) { s.FDB = nil })
			after(time.Second)
		}
		if s := r.Status(); s.Repairs != 125 {
			t.Errorf("%d repairs", s.Repairs)
		}
	})
	if n := strings.Count(log, "another program"); n != 3 {
		t.Errorf("told %d times in 125 s", n)
	}
}

// TestReconcilerWatchFails checks that a broken subscription is reopened and missed changes are
// found.
func TestReconcilerWatchFails(t *testing.T) {
	f := &fakeKernel{state: vxlanHave(), watchEr: errors.New("broken")}
	reconciling(t, f, func(r *Reconciler) {
		r.Set(vxlanWant())
		synctest.Wait()
		f.mu.Lock()
		f.state.Routes = nil
		f.mu.Unlock()
		after(2 * time.Second)
		if f.watches != 2 || len(f.take()) != 1 {
			t.Errorf("%d watches, routes %v", f.watches, f.state.Routes)
		}
	})
}

// TestReconcilerManyNotifications checks that constant notifications do not keep the reconciler
// busy.
func TestReconcilerManyNotifications(t *testing.T) {
	f := &fakeKernel{state: vxlanHave()}
	reconciling(t, f, func(r *Reconciler) {
		r.Set(vxlanWant())
		synctest.Wait()
		reads := f.count()
		for range 1000 {
			f.set(func(*State) {})
			time.Sleep(time.Millisecond)
		}
		if n := f.count() - reads; n > 25 {
			t.Errorf("%d looks in a second of noise", n)
		}
	})
}

func TestDebounce(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		0: minDebounce, time.Millisecond: minDebounce, 50 * time.Millisecond: 200 * time.Millisecond,
		time.Second: maxDebounce,
	} {
		if got := Debounce(took); got != want {
			t.Errorf("after %v: %v, want %v", took, got, want)
		}
	}
}

func TestRelevant(t *testing.T) {
	r := NewReconciler(&fakeKernel{}, ReconcilerOptions{})
	r.Set(vxlanWant())
	tests := []struct {
		e    Event
		want bool
	}{
		{Event{Kind: LinkEvent, Dev: "flannel.1"}, true},
		{Event{Kind: LinkEvent, Dev: "eth0"}, true}, // the underlay
		{Event{Kind: LinkEvent, Dev: "veth1"}, false},
		{Event{Kind: LinkEvent, Dev: "flannel0"}, true}, // may be left over
		{Event{Kind: AddrEvent, Dev: "flannel.1"}, true},
		{Event{Kind: AddrEvent, Dev: "cni0"}, false},
		{Event{Kind: RouteEvent, Dst: prefix("10.5.9.0/24"), Dev: "cni0"}, true},
		{Event{Kind: RouteEvent, Dst: prefix("10.6.9.0/24"), Dev: "flannel.1"}, false},
		{Event{Kind: NeighEvent, Dev: "flannel.1", Permanent: true}, true},
		{Event{Kind: NeighEvent, Dev: "flannel.1"}, false},
		{Event{Kind: NeighEvent, Dev: "cni0", Permanent: true}, false},
	}
	for _, tt := range tests {
		if got := r.relevant(tt.e); got != tt.want {
			t.Errorf("%+v: %v", tt.e, got)
		}
	}
}

func TestApplyOnceAndCleanup(t *testing.T) {
	f := &fakeKernel{state: vxlanHave()}
	f.state.FOU = []FOUPort{{8285}}
	if err := ApplyOnce(f, State{Networks: nets, FreePorts: []FOUPort{{8285}}}); err != nil {
		t.Fatal(err)
	}
	if got, want := f.take(), []string{"delete device flannel.1 type vxlan",
		"delete fou port 8285 ipproto 4"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}

	f = &fakeKernel{state: vxlanHave()}
	f.state.Addrs, f.state.Routes = nil, f.state.Routes[1:] // the device carries nothing
	removed, err := Cleanup(f)
	if want := []string{"device flannel.1 type vxlan",
		"route 192.168.9.0/24 via 172.31.0.9 dev eth0 proto 157"}; err != nil || !slices.Equal(removed, want) {
		t.Errorf("removed %q, %v; want %q", removed, err, want)
	}
	f.fail = func(Op) error { return errors.New("refused") }
	f.state = vxlanHave()
	if removed, err := Cleanup(f); err == nil || len(removed) != 0 {
		t.Errorf("removed %q, %v", removed, err)
	}
}

func TestJoinFirst(t *testing.T) {
	if joinFirst(nil) != nil {
		t.Error("no errors are an error")
	}
	var errs []error
	for range 5 {
		errs = append(errs, errors.New("x"))
	}
	if got := joinFirst(errs).Error(); got != "x\nx\nx\nand 2 more" {
		t.Errorf("got %q", got)
	}
}

// TestDiffConverges applies diff to random states: its operations must produce the wanted state at
// once, leave foreign objects unchanged, and leave nothing to do.
func TestDiffConverges(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		have, want := randomState(rnd), randomState(rnd)
		want.Routes = slices.DeleteFunc(want.Routes, func(r Route) bool { return !nets[0].Contains(r.Dst.Addr()) })
		for i := range want.Routes {
			want.Routes[i].Protocol = RouteProtocol
		}
		want.Networks, want.FlannelRoutes = nets, []FlannelRoute{{prefix("10.5.3.0/24"), addr("172.31.0.3")}}
		foreign := func(s State) (out []Route) {
			for _, r := range s.Routes {
				if r.Protocol == 4 || !nets[0].Contains(r.Dst.Addr()) {
					out = append(out, r)
				}
			}
			return out
		}
		have.Links = append(have.Links, eth0)
		first := diff(have, want)
		now := have
		for _, o := range first.ops {
			now = applied(now, o)
		}
		again := diff(now, want)
		if len(again.ops) != 0 {
			t.Fatalf("have\n%swant\n%sfirst %q\nleft over %q", dumpState(have), dumpState(want), texts(first.ops),
				texts(again.ops))
		}
		if before, later := foreign(have), foreign(now); len(first.ops) > 0 && !slices.Equal(before, later) {
			t.Fatalf("foreign routes before\n%v\nafter\n%v\nby %q", before, later, texts(first.ops))
		}
	}
}

// randomState draws from few values, so that states overlap.
func randomState(rnd *rand.Rand) State {
	pick := func(n int) int { return rnd.IntN(n) }
	var s State
	if pick(3) > 0 {
		s.Links = append(s.Links, vx(func(l *Link) {
			l.MTU, l.VXLAN.Port, l.Up = 1450+pick(2), 8472+pick(2),
				pick(2) == 0
		}))
	}
	seen := map[Route]bool{}
	for range pick(6) {
		r := Route{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(pick(4)), 0}), 24),
			Via: netip.AddrFrom4([4]byte{172, 31, 0, byte(pick(4))}),
			Dev: "eth0", Protocol: []int{RouteProtocol, protocolBoot, 4}[pick(3)]}
		if pick(5) == 0 {
			r.Dst = prefix("192.168.0.0/24")
		}
		if !seen[r.key()] {
			seen[r.key()] = true
			s.Routes = append(s.Routes, r)
		}
	}
	entries := map[byte]bool{}
	for range pick(4) {
		m := byte(pick(3))
		if len(s.Links) == 0 || entries[m] {
			continue
		}
		entries[m] = true
		s.FDB = append(s.FDB, FDBEntry{"flannel.1", MAC{2, m}, netip.AddrFrom4([4]byte{172, 31, 0, byte(pick(2))})})
		s.Addrs = append(s.Addrs, Addr{"flannel.1", HostPrefix(netip.AddrFrom4([4]byte{10, 5, m, 0}))})
	}
	return s
}

func TestReconcilerDifferences(t *testing.T) {
	f := &fakeKernel{state: State{Links: []Link{eth0}}}
	r := NewReconciler(f, ReconcilerOptions{})
	if got, err := r.Differences(9); err != nil || len(got) > 0 {
		t.Errorf("before Set: %q, %v", got, err)
	}
	r.Set(vxlanWant())
	got, err := r.Differences(2)
	if err != nil || len(got) != 3 || !strings.HasPrefix(got[0], "create device flannel.1 ") || got[2] != "and 3 more" {
		t.Errorf("%q, %v", got, err)
	}
	if done := f.take(); len(done) > 0 {
		t.Errorf("changed the kernel: %q", done)
	}
}
