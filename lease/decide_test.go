package lease

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestFateOf(t *testing.T) {
	self := held("10.5.1.0/24", "", "192.0.2.1", "")
	want := Attrs{PublicIP: addr("192.0.2.2")}
	tests := []struct {
		name string
		list []Lease
		want fate
	}{
		{"an empty list", nil, missing},
		{"others only", []Lease{held("10.5.2.0/24", "", "192.0.2.1", "")}, missing},
		{"as it was", []Lease{held("10.5.1.0/24", "", "192.0.2.1", "")}, ours},
		{"as it is to be", []Lease{held("10.5.1.0/24", "", "192.0.2.2", "")}, ours},
		{"another node's", []Lease{held("10.5.1.0/24", "", "192.0.2.3", "")}, taken},
		{"of nobody", []Lease{held("10.5.1.0/24", "", "", "")}, taken},
		{"with another family", []Lease{held("10.5.1.0/24", "fd10::/64", "192.0.2.1", "")}, missing},
	}
	for _, test := range tests {
		if got, _ := fateOf(self, want, test.list); got != test.want {
			t.Errorf("%s: got %d, want %d", test.name, got, test.want)
		}
	}
}

func TestWiped(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	state := func(expires time.Time, holding bool) State {
		return State{Self: Lease{Expires: expires}, Held: holding, Revision: 10}
	}
	later, earlier := now.Add(time.Hour), now.Add(-time.Hour)
	tests := []struct {
		name     string
		before   State
		revision int64
		fate     fate
		want     bool
	}{
		{"the revision goes on", state(later, true), 11, ours, false},
		{"the revision stays", state(later, true), 10, ours, false},
		{"the revision goes back", state(later, true), 9, ours, true},
		{"the revision has caught up, our lease is gone", state(later, true), 11, missing, true},
		{"our reservation is gone", state(time.Time{}, true), 11, missing, true},
		{"our lease had expired", state(earlier, true), 11, missing, false},
		{"we held none", state(later, false), 11, missing, false},
	}
	for _, test := range tests {
		if got := wiped(test.before, test.revision, test.fate, now); got != test.want {
			t.Errorf("%s: got %v", test.name, got)
		}
	}
}

func TestRenewAt(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	tests := []struct{ left, margin, want time.Duration }{
		{24 * time.Hour, time.Hour, 23 * time.Hour},
		{24 * time.Hour, 1439 * time.Minute, time.Minute},
		{24 * time.Hour, 24 * time.Hour, 12 * time.Hour},
		{time.Hour, 2 * time.Hour, 30 * time.Minute},
		{-time.Hour, time.Hour, -30 * time.Minute}, // due
	}
	for _, test := range tests {
		if got := renewAt(Lease{Expires: now.Add(test.left)}, now, test.margin).Sub(now); got != test.want {
			t.Errorf("%s left, margin %s: in %s, want %s", test.left, test.margin, got, test.want)
		}
	}
	if got := renewAt(Lease{}, now, time.Hour); !got.IsZero() {
		t.Errorf("a reservation is renewed at %s", got)
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	for i, full := range []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000} {
		full *= time.Millisecond
		if got := b.next(); got > full || got <= full/2 {
			t.Errorf("pause %d is %s, want up to %s", i, got, full)
		}
	}
}

func TestRoster(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	a, b, c := held("10.5.1.0/24", "", "192.0.2.1", ""), held("10.5.2.0/24", "", "192.0.2.2", ""), held("10.5.3.0/24", "", "192.0.2.3", "")
	bOfC := held("10.5.2.0/24", "", "192.0.2.3", "")
	bElsewhere := held("10.5.9.0/24", "", "192.0.2.2", "")
	type step struct {
		after time.Duration // since the last step
		list  []Lease
		reset bool
		want  []Lease
	}
	tests := []struct {
		name  string
		grace time.Duration
		steps []step
	}{
		{"an ordinary removal is immediate", time.Minute, []step{{0, []Lease{a}, false, []Lease{a}}}},
		{"peers stay after a wipe, for a while", time.Minute, []step{
			{0, nil, true, []Lease{a, b, c}},
			{59 * time.Second, []Lease{c}, false, []Lease{a, b, c}},
			{time.Second, []Lease{c}, false, []Lease{c}},
		}},
		{"back is back: its next removal is an ordinary one", time.Minute, []step{
			{0, nil, true, []Lease{a, b, c}},
			{0, []Lease{b}, false, []Lease{a, b, c}},
			{0, nil, false, []Lease{a, c}},
		}},
		{"another node claims the subnet", time.Minute, []step{{0, nil, true, []Lease{a, b, c}}, {0, []Lease{bOfC}, false, []Lease{a, bOfC}}}},
		{"the peer claims another subnet", time.Minute, []step{{0, []Lease{bElsewhere}, true, []Lease{a, c, bElsewhere}}}},
		{"wiped twice: what is kept gains no time", time.Minute, []step{
			{0, []Lease{a}, true, []Lease{a, b, c}},
			{30 * time.Second, nil, true, []Lease{a, b, c}},
			{29 * time.Second, nil, false, []Lease{a, b, c}},
			{time.Second, nil, false, []Lease{a}},
			{30 * time.Second, nil, false, nil},
		}},
		{"no grace", -1, []step{{0, []Lease{a}, true, []Lease{a}}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r, at, all := roster{grace: test.grace}, now, []Lease{a, b, c}
			for i, s := range test.steps {
				at = at.Add(s.after)
				r.expire(at)
				before := slices.Clone(all)
				shown := all
				if s.reset {
					r.keep(all, at)
				}
				all, _ = r.merge(s.list)
				if !slices.EqualFunc(all, s.want, Lease.Equal) {
					t.Errorf("step %d: got %v, want %v", i, all, s.want)
				}
				if !slices.EqualFunc(shown, before, Lease.Equal) {
					t.Errorf("step %d changed a list that was shown before", i)
				}
			}
		})
	}
}

func TestSameNode(t *testing.T) {
	tests := []struct {
		a4, a6, b4, b6 string
		want           bool
	}{
		{"192.0.2.1", "", "192.0.2.1", "", true},
		{"192.0.2.1", "fd::1", "192.0.2.1", "fd::2", true},
		{"192.0.2.1", "fd::1", "192.0.2.2", "fd::1", false},
		{"192.0.2.1", "fd::1", "", "fd::1", false},
		{"", "fd::1", "", "fd::1", true},
		{"", "fd::1", "", "fd::2", false},
		{"", "", "", "", false},
	}
	for _, test := range tests {
		a, b := Attrs{PublicIP: addr(test.a4), PublicIPv6: addr(test.a6)}, Attrs{PublicIP: addr(test.b4), PublicIPv6: addr(test.b6)}
		if a.SameNode(b) != test.want || b.SameNode(a) != test.want {
			t.Errorf("%+v: got %v", test, a.SameNode(b))
		}
	}
}

func TestExpiryInTheLog(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	var b strings.Builder
	log := slog.New(slog.NewTextHandler(&b, nil))
	log.Info("never", expiry(Lease{}))
	log.Info("then", expiry(Lease{Expires: at}))
	if got := b.String(); strings.Count(got, "expires=") != 1 || !strings.Contains(got, "msg=then expires=2030-01-01") {
		t.Error(got)
	}
}
