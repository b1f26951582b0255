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
		w.waited(time.Time{}, 0)
	}
	return w
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
