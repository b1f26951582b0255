package netfilter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pass sleeps for d of fake time and waits until all goroutines are blocked.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// running starts a manager with the default period in the calling test's bubble, and returns its
// log.
func running(t *testing.T, h host) (*Manager, *bytes.Buffer) {
	var out bytes.Buffer
	m := newManager(h, Options{Log: slog.New(slog.NewTextHandler(&out, nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
	return m, &out
}

func TestManagerResync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHost()
		a := h.appliers[IPTables]
		m, out := running(t, h)
		pass(time.Minute)
		opened, _ := h.calls()
		if s := m.Status(); s.InPlace || s.Err != nil || len(opened) > 0 {
			t.Fatalf("before Set: %+v, opened %v", s, opened)
		}
		notes := []string{"docker"}
		a.setResult(report{changes: []string{"all set"}, notes: notes}, nil)
		start := time.Now()
		m.Set(allRules())
		synctest.Wait()
		s := m.Status()
		if !s.InPlace || !s.Since.Equal(start) || s.Mode != IPTables || s.Repairs != 0 ||
			!slices.Equal(s.Notes, notes) {
			t.Fatalf("after Set: %+v", s)
		}
		s.Notes[0] = "changed by the caller"
		if got := a.applied()[0]; !slices.Equal(got[ipv4].rules, allRules().rules(ipv4)) || len(got[ipv6].rules) == 0 {
			t.Errorf("applied %v", a.applied()[0])
		}
		pass(defaultResync * 3)
		if len(a.applied()) != 4 || m.Status().Repairs != 0 {
			t.Errorf("%d comparisons in three periods", len(a.applied()))
		}
		a.setResult(report{changes: []string{"jump restored"}, notes: notes}, nil)
		pass(defaultResync)
		if s := m.Status(); s.Repairs != 1 || !s.Since.Equal(start) || s.Notes[0] != "docker" {
			t.Errorf("after a repair: %+v", s)
		}
		// A change after Set is not a repair.
		a.setResult(report{changes: []string{"masquerade removed"}, notes: notes}, nil)
		m.Set(Desired{})
		synctest.Wait()
		opened, _ = h.calls()
		if s := m.Status(); s.Repairs != 1 || len(opened) != 2 {
			t.Errorf("after another Set: %+v, opened %v", s, opened)
		}
		for _, want := range []string{
			`level=INFO msg="packet filter rules set" mode=iptables changes="all set"`,
			`level=WARN msg="packet filter rules repaired" mode=iptables changes="jump restored"`,
			`level=INFO msg="packet filter rules set" mode=iptables changes="masquerade removed"`,
			`level=WARN msg="packet filter note" note=docker`,
		} {
			if n := strings.Count(out.String(), want); n != 1 {
				t.Errorf("logged %d times: %s\n%s", n, want, out)
			}
		}
	})
}

func TestManagerRetryLogsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHost()
		h.setErrors(fmt.Errorf("%w: nothing installed", ErrUnsupported), nil)
		m, out := running(t, h)
		m.Set(allRules())
		pass(defaultResync*10 + time.Second)
		if s := m.Status(); s.InPlace || !errors.Is(s.Err, ErrUnsupported) || s.Mode != "" {
			t.Fatalf("%+v", s)
		}
		h.setErrors(nil, nil)
		a := h.appliers[IPTables]
		locked := errors.New("table is locked")
		a.setResult(report{}, locked)
		pass(defaultResync * 3)
		if s := m.Status(); s.InPlace || s.Err.Error() != "table is locked" || s.Mode != IPTables {
			t.Fatalf("%+v", s)
		}
		if _, removals := h.calls(); len(removals) > 0 {
			t.Error("old rules removed before the new ones were in place")
		}
		a.setResult(report{}, nil)
		pass(defaultResync)
		if s := m.Status(); !s.InPlace || s.Err != nil || time.Since(s.Since) > defaultResync {
			t.Fatalf("%+v", s)
		}
		a.setResult(report{}, locked)
		pass(defaultResync)
		if s := m.Status(); s.InPlace {
			t.Fatalf("%+v", s)
		}
		for text, times := range map[string]int{"nothing installed": 1, "table is locked": 2} {
			if n := strings.Count(out.String(), text); n != times {
				t.Errorf("%q logged %d times, want %d:\n%s", text, n, times, out)
			}
		}
	})
}

func TestManagerModeChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHost()
		m, out := running(t, h)
		d := allRules()
		m.Set(d)
		pass(defaultResync * 3)
		d.NFTables = true
		m.Set(d)
		pass(defaultResync * 3)
		opens, removals := h.calls()
		if want := []Mode{IPTables, NFTables}; !slices.Equal(opens, want) || !slices.Equal(removals, want) {
			t.Errorf("opened %v, removed elsewhere %v", opens, removals)
		}
		if s := m.Status(); s.Mode != NFTables {
			t.Errorf("%+v", s)
		}
		// A failed removal is retried and logged once, and does not affect InPlace.
		h.setErrors(nil, errors.New("no iptables-legacy"))
		d.NFTables = false
		m.Set(d)
		pass(defaultResync*3 + time.Second)
		s := m.Status()
		want := []string{"rules of an earlier run may remain: no iptables-legacy"}
		if _, removals = h.calls(); !s.InPlace || len(removals) != 6 || !slices.Equal(s.Notes, want) {
			t.Errorf("%+v, removed elsewhere %v", s, removals)
		}
		if n := strings.Count(out.String(), "no iptables-legacy"); n != 1 {
			t.Errorf("logged %d times", n)
		}
	})
}

// TestManagerSet checks that InPlace turns false on a change and stays true on an identical Set.
func TestManagerSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHost()
		m, _ := running(t, h)
		m.Set(allRules())
		synctest.Wait()
		placed := m.Status()
		pass(time.Second)
		m.Set(allRules())
		synctest.Wait()
		if s := m.Status(); !s.InPlace || s.Since != placed.Since || len(h.appliers[IPTables].applied()) != 1 {
			t.Errorf("identical Set: %+v", s)
		}
		for i, change := range []func(*Desired){
			func(d *Desired) { d.Nets = d.Nets[:1] },
			func(d *Desired) { d.NoTrack = nil },
			func(d *Desired) { d.Masquerade = false },
			func(d *Desired) { d.NoRandomPorts = true },
			func(d *Desired) { d.Forward = false },
			func(d *Desired) { d.KeepSource = false },
			func(d *Desired) { d.NFTables = true },
		} {
			d := allRules()
			change(&d)
			m.Set(d)
			if s := m.Status(); s.InPlace || s.Err != nil {
				t.Errorf("change %d: %+v", i, s)
			}
			synctest.Wait()
			if s := m.Status(); !s.InPlace || s.Repairs != 0 {
				t.Errorf("change %d applied: %+v", i, s)
			}
		}
	})
}

// TestManagerSetDuringApply checks that the result for an outdated Desired does not count.
func TestManagerSetDuringApply(t *testing.T) {
	h := newFakeHost()
	m := newManager(h, Options{})
	m.Set(allRules())
	h.appliers[IPTables].during = func() { m.Set(Desired{}) }
	m.reconcileOnce(t.Context())
	if s := m.Status(); s.InPlace {
		t.Errorf("%+v", s)
	}
	h.appliers[IPTables].during = nil
	m.reconcileOnce(t.Context())
	if s := m.Status(); !s.InPlace {
		t.Errorf("%+v", s)
	}
}

func TestManagerInvalidDesired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHost()
		m, _ := running(t, h)
		m.Set(Desired{Nets: []Net{{}}})
		synctest.Wait()
		if s := m.Status(); s.InPlace || s.Err == nil || len(h.opens) > 0 {
			t.Errorf("%+v, opened %v", s, h.opens)
		}
	})
}

// TestManagerCanceled checks that a canceled attempt does not change the status.
func TestManagerCanceled(t *testing.T) {
	h := newFakeHost()
	m := newManager(h, Options{})
	m.Set(allRules())
	m.reconcileOnce(t.Context())
	before := m.Status()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h.appliers[IPTables].setResult(report{}, context.Canceled)
	m.reconcileOnce(ctx)
	if after := m.Status(); !after.InPlace || after.Since != before.Since {
		t.Errorf("%+v", after)
	}
	if err := newManager(h, Options{}).Run(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestManagerReportedChange checks that a reported change is repaired at once, and that a flood of
// reports, as when two daemons undo each other's changes, does not cause one comparison each.
func TestManagerReportedChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFakeHost()
		a := h.appliers[IPTables]
		m, _ := running(t, h)
		m.Set(allRules())
		pass(time.Second)
		before := len(a.applied())
		a.setResult(report{changes: []string{"jump restored"}}, nil)
		h.changes <- struct{}{}
		pass(settleTime)
		if s := m.Status(); s.Repairs != 1 || len(a.applied()) != before+1 {
			t.Fatalf("after a report: %d repairs, %d comparisons", s.Repairs, len(a.applied())-before)
		}
		for range 60 * 20 {
			h.changes <- struct{}{}
			pass(50 * time.Millisecond)
		}
		most := burst + 60 + 60/int(defaultResync/time.Second) + 1
		if n := len(a.applied()) - before; n > most || n < 60 {
			t.Errorf("%d comparisons in a minute of reports, at most %d are allowed", n, most)
		}
	})
}
