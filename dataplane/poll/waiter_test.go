package poll

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// readable returns a readable descriptor to poll and the eventfd that it belongs to.
func readable(t *testing.T) ([]unix.PollFd, *EventFD) {
	t.Helper()
	event, err := NewEventFD()
	must(t, err)
	t.Cleanup(func() { must(t, event.Close()) })
	event.Signal()
	return []unix.PollFd{{Fd: int32(event.FD()), Events: unix.POLLIN}}, event
}

// newTestWaiter returns a waiter that may busy-poll, after the given number of short waits.
func newTestWaiter(t *testing.T, shortWaits int) *Waiter {
	t.Helper()
	handoff := NewHandoff()
	w, err := NewWaiter(Config{BusyPoll: true, Handoff: handoff})
	must(t, err)
	go handoff.Run()
	t.Cleanup(func() {
		handoff.Stop()
		must(t, w.Close())
	})
	for range shortWaits {
		w.record(time.Time{}, 0)
	}
	return w
}

func TestWaitAllocations(t *testing.T) {
	fds, _ := readable(t)
	spinning, blocking := newTestWaiter(t, streakMax), newTestWaiter(t, 0)
	if n := testing.AllocsPerRun(100, func() {
		if err := errors.Join(spinning.Wait(fds, time.Now), blocking.netpoll.wait(fds)); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
	must(t, spinning.Unpin())
}
