package lease

import (
	"errors"
	"log/slog"
	"testing"
	"time"
	"unsafe"
)

// stepped returns at as if the wall clock had been set by the given duration: the monotonic reading
// is unchanged. No method of Time can do this.
func stepped(t *testing.T, at time.Time, by time.Duration) time.Time {
	t.Helper()
	now := at
	wall := (*uint64)(unsafe.Pointer(&now)) // time.Time.wall: a flag, 33 bits of seconds, 30 of nanoseconds
	*wall += uint64(by/time.Second) << 30
	if now.Sub(at) != 0 || now.Round(0).Sub(at.Round(0)) != by {
		t.Fatalf("stepping %s by %s gave %s", at, by, now)
	}
	return now
}

// newTestHolder returns a holder that the test steps itself.
func newTestHolder(s Store, states *[]State) *holder {
	m := NewManager(s, Request{Attrs: Attrs{PublicIP: addr(ownPublic)}}, Options{Log: slog.New(slog.DiscardHandler)})
	return newHolder(m, func(s State) { *states = append(*states, s) })
}

func TestRetryClockSetBack(t *testing.T) {
	var states []State
	h := newTestHolder(&fakeStore{writeErr: errors.New("no quorum")}, &states)
	h.step(t.Context())
	back := stepped(t, time.Now().Add(backoffMax), -3*time.Hour)
	if !h.isDue(back) || h.pause(back) != 0 {
		t.Errorf("retry not due, pause %s", h.pause(back))
	}
	if now := time.Now(); h.isDue(now) || h.pause(stepped(t, now, -3*time.Hour)) > backoffMax {
		t.Errorf("due %v, pause %s", h.isDue(now), h.pause(now))
	}
}

func TestLossClockSetBack(t *testing.T) {
	var states []State
	store := &fakeStore{ttl: 24 * time.Hour}
	h := newTestHolder(store, &states)
	h.m.request.Network = mustParseNetwork(t, `{"Network":"10.5.0.0/16"}`)
	h.step(t.Context())
	if !h.held {
		t.Fatal("lease not held")
	}
	// A list received after the watch lag lacks the lease.
	late := stepped(t, time.Now().Add(watchLag), -3*time.Hour)
	h.handle(event{list: Snapshot{Revision: 1}}, late)
	if h.checkOwn(late); h.held {
		t.Error("lease still held after the loss")
	}
	h.peers.keep(NewSet(peer(0)), time.Now())
	day := time.Now().Add(24 * time.Hour)
	if n := h.peers.countExpired(stepped(t, time.Now(), 48*time.Hour)); n != 0 {
		t.Error("peers expired because the wall clock was set forward")
	}
	if n := h.peers.countExpired(stepped(t, day, -3*time.Hour)); n != 1 {
		t.Error("peers kept because the wall clock was set back")
	}
}

func TestRenewalEitherClock(t *testing.T) {
	var states []State
	h := newTestHolder(&fakeStore{ttl: 24 * time.Hour}, &states)
	h.m.request.Network = mustParseNetwork(t, `{"Network":"10.5.0.0/16"}`)
	h.step(t.Context())
	now := time.Now()
	for _, test := range []struct {
		name string
		at   time.Time
		due  bool
	}{
		{"at once", now, false},
		{"after 22 hours", now.Add(22 * time.Hour), false},
		{"after 23 hours", now.Add(23 * time.Hour), true},
		{"after 23 hours, clock set back", stepped(t, now.Add(23*time.Hour), -3*time.Hour), true},
		{"after a sleep of 23 hours", stepped(t, now, 23*time.Hour), true},
	} {
		if got := h.isDue(test.at); got != test.due {
			t.Errorf("%s: due %v", test.name, got)
		}
	}
	if h.state.Self.Expires != h.state.Self.Expires.Round(0) { //nolint:staticcheck // compares the readings
		t.Error("expiry has a monotonic reading, which stops during sleep")
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
		t.Errorf("renewAt of a reservation = %s, want zero", got)
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	for i, full := range []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000} {
		full *= time.Millisecond
		if got := b.next(); got > full || got <= full/2 {
			t.Errorf("delay %d = %s, want (%s, %s]", i, got, full/2, full)
		}
	}
}

func TestLengthenedMargin(t *testing.T) {
	low, high := 2*time.Hour, time.Duration(0)
	for range 1000 {
		d := lengthened(time.Hour)
		low, high = min(low, d), max(high, d)
	}
	if low < time.Hour || low > 61*time.Minute || high > 67*time.Minute+30*time.Second || high < 66*time.Minute {
		t.Errorf("from %s to %s", low, high)
	}
}
