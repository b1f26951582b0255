package poll

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPriorityFollowsLoad checks the thread's nice value: raised while the worker is awake and
// busy, where that is permitted, else unchanged.
func TestPriorityFollowsLoad(t *testing.T) {
	normal, err := niceValue()
	must(t, err)
	p, err := ProbePriority()
	if err == nil && p != (Priority{normal, max(normal-niceBoost, minNice)}) || err != nil && p != (Priority{}) {
		t.Fatalf("priority %+v (%v), the process has %d", p, err, normal)
	}
	w := newTestWaiter(t, streakMax)
	w.busyPoll, w.thread.priority = false, p
	fds, _ := readable(t)
	runtime.LockOSThread() // check the same thread throughout
	defer runtime.UnlockOSThread()
	now := time.Unix(1_700_000_000, 0)
	wait := func(took time.Duration) error {
		start := now
		now = now.Add(took)
		return w.Wait(fds, func() time.Time { defer func() { start = now }(); return start })
	}
	work := func(d time.Duration) error { now = now.Add(d); return w.KeepRunning(now) }
	const a = busyWindow / 10
	want := func(nice int, errs ...error) {
		t.Helper()
		must(t, errors.Join(errs...))
		if got, err := niceValue(); err != nil || got != nice {
			t.Errorf("nice value %d (%v), want %d", got, err, nice)
		}
	}
	raised := normal + p.Busy - p.Normal
	want(normal, wait(a), work(3*a), wait(a))   // the window has not passed
	want(raised, work(a), wait(4*a), work(0))   // 4 of 10
	want(normal, work(2*a), wait(8*a), work(0)) // 2 of 10
	want(raised, work(a), wait(7*a), work(2*a)) // 3 of 10
	want(raised, work(a), work(20*a), work(a))  // without any wait
	want(normal, wait(busyWindow), wait(a))     // a whole window's wait
	want(raised, work(10*a), work(10*a))        // before it blocks
	want(normal, w.block(fds))                  // for the next goroutine on the thread
	want(normal, w.pin(), w.Unpin())            // at the worker's end
}

// TestPriorityRevoked removes CAP_SYS_NICE from a waiter's thread. The waiter goes on with normal
// priority and reports the loss once.
func TestPriorityRevoked(t *testing.T) {
	normal, err := niceValue()
	must(t, err)
	must(t, withoutSysNice(func() error {
		for range 3 {
			w := newTestWaiter(t, 0)
			losses := 0
			w.priorityLost = func(error) { losses++ }
			w.thread.priority = Priority{Normal: normal, Busy: normal - 1}
			w.load.busy = true
			if err := w.thread.pin(true); err == nil || w.thread.nice != normal {
				t.Errorf("raised to %d (%v)", w.thread.nice, err)
			}
			if err := errors.Join(w.pin(), w.pin()); err != nil {
				return err
			}
			if nice, err := niceValue(); nice != normal || err != nil {
				t.Errorf("nice value %d (%v), want %d", nice, err, normal)
			}
			if losses != 1 {
				t.Errorf("loss reported %d times, want 1", losses)
			}
			if err := w.Unpin(); err != nil {
				return err
			}
		}
		return nil
	}))
}

// withoutSysNice calls f on a thread without CAP_SYS_NICE, which ends with it.
func withoutSysNice(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData // 64 bits
		err := unix.Capget(&header, &sets[0])
		if err == nil {
			sets[0].Effective &^= 1 << unix.CAP_SYS_NICE
			err = unix.Capset(&header, &sets[0])
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}
