package dataplane

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// readable returns a descriptor to poll that has something, and its other end.
func readable(t *testing.T) (fds []unix.PollFd, wake *wakeup) {
	t.Helper()
	wake, err := newWakeup()
	must(t, err)
	t.Cleanup(func() { must(t, wake.Close()) })
	wake.signal()
	return []unix.PollFd{{Fd: int32(wake.fd), Events: unix.POLLIN}}, wake
}

// newTestWaiter returns a waiter that may spin and has seen so many short waits.
func newTestWaiter(t *testing.T, short int) *waiter {
	t.Helper()
	relay := make(chan struct{}, 1)
	sleep, err := newSleeper(relay)
	must(t, err)
	go relayPolling(relay)
	t.Cleanup(func() {
		close(relay)
		must(t, sleep.Close())
	})
	w := &waiter{sleep: sleep, spin: true}
	for range short {
		w.waited(0)
	}
	return w
}

// TestSpinsOnlyWhilePacketsKeepComing counts the looks at the clock: two for every wait, and one for every look at the
// descriptors.
func TestSpinsOnlyWhilePacketsKeepComing(t *testing.T) {
	fds, _ := readable(t)
	now := time.Unix(1_700_000_000, 0)
	spins := func(w *waiter) bool {
		clocked := 0
		must(t, w.poll(fds, func() time.Time { clocked++; return now }))
		return clocked > 2
	}
	w := newTestWaiter(t, 0)
	if spins(w) {
		t.Error("spins before anything is known")
	}
	for range habitual {
		w.waited(spinLimit / 2)
	}
	if !spins(w) {
		t.Error("does not spin after short waits")
	}
	for range habitMax {
		w.waited(time.Millisecond)
	}
	if spins(w) {
		t.Error("spins after long waits")
	}
	w.spin = false
	for range habitMax {
		w.waited(0)
	}
	if spins(w) {
		t.Error("spins where it must not")
	}
}

func TestSpinFindsWhatIsThere(t *testing.T) {
	fds, wake := readable(t)
	w := newTestWaiter(t, habitMax)
	must(t, w.poll(fds, time.Now))
	if fds[0].Revents == 0 {
		t.Error("came back with nothing")
	}
	// And gives up when nothing comes: then it sleeps until something does.
	wake.clear()
	fds[0].Revents = 0
	time.AfterFunc(20*time.Millisecond, wake.signal)
	start := time.Now()
	must(t, w.poll(fds, time.Now))
	if fds[0].Revents == 0 || time.Since(start) < 15*time.Millisecond {
		t.Errorf("revents %x after %v", fds[0].Revents, time.Since(start))
	}
}

func TestWaitingAllocatesNothing(t *testing.T) {
	fds, _ := readable(t)
	spins, sleeps := newTestWaiter(t, habitMax), newTestWaiter(t, 0)
	if n := testing.AllocsPerRun(100, func() {
		if err := errors.Join(spins.poll(fds, time.Now), sleeps.sleep.until(fds)); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
