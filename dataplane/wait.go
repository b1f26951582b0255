package dataplane

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// quietWait is how long a worker waits in the kernel without Go's scheduler knowing: it keeps its thread and its P
	// and is awake as soon as the kernel says so. With it one and four TCP streams were 5 to 20 % faster in all four
	// pairs of medians (two CPUs, four rounds).
	quietWait = 5 * time.Millisecond
	// habitual is how many waits in a row must have been short for the next to be taken for short as well, and
	// habitMax how many that were not it takes to unlearn that.
	habitual = 4
	habitMax = 8
	// workWindow is how long it takes to find out whether a worker is busy: long enough to change its priority seldom.
	workWindow = 10 * time.Millisecond
)

// waiter is how a worker waits for packets. While they keep coming it stays awake: it looks again and again, then waits
// in the kernel. Else it sleeps.
//
// Waiting in the kernel costs two context switches and, on an idle CPU, the time it takes to wake that up, of which the
// sender pays a part; looking costs CPU time that nobody else wants: a worker spins only while packets keep coming within
// spinLimit, yields after every look, and does not spin on a contended CPU.
type waiter struct {
	sleep  *sleeper
	thread ownThread   // while awake
	denied func(error) // told that the thread cannot be raised any more
	spin   bool        // spinning is allowed
	soon   habit       // packets come within spinLimit
	steady habit       // and within quietWait
	work   workload
	cpu    contention
	over   time.Time // the end of the last wait
}

// habit rises with each wait that was short, and falls with each other.
type habit int

func (h *habit) learn(short bool) {
	if short {
		*h = min(*h+1, habitMax)
	} else {
		*h = max(*h-1, 0)
	}
}

func (h habit) holds() bool { return h >= habitual }

// workload says whether a worker is busy: that it has worked for a quarter of the time or more. One that wakes up now and
// then has nothing to go before others for; a hundred of those with priority keep whoever sends to them from sending.
type workload struct {
	since  time.Time // the beginning of the window
	waited time.Duration
	busy   bool
}

// learn notes that it is now, after a wait that took so long.
func (l *workload) learn(now time.Time, waited time.Duration) {
	if l.since.IsZero() {
		l.since = now.Add(-waited)
	}
	l.waited += waited
	if span := now.Sub(l.since); span >= workWindow {
		l.busy = l.waited <= span/4*3
		l.since, l.waited = now, 0
	}
}

// waited learns that it is now, after a wait that took so long, asleep or not.
func (w *waiter) waited(now time.Time, d time.Duration) {
	w.soon.learn(d < spinLimit)
	w.steady.learn(d < quietWait)
	w.work.learn(now, d)
}

// goOn is to be called where the worker has more to do and does not wait.
func (w *waiter) goOn(now time.Time) error {
	w.work.learn(now, 0)
	return w.stayAwake()
}

// stayAwake has the worker keep its thread, with the priority of its work, and others do without that. The right to raise
// a thread can be taken away; then the worker goes on as if it was never busy.
func (w *waiter) stayAwake() error {
	err := w.thread.hold(w.work.busy)
	if err != nil && w.work.busy {
		w.thread.priority.busy = w.thread.priority.usual
		w.denied(err)
		err = nil
	}
	return errors.Join(err, w.sleep.stayAwake())
}

// fallAsleep gives the thread back and sleeps until one of fds is ready.
func (w *waiter) fallAsleep(fds []unix.PollFd) error {
	if err := w.thread.release(); err != nil {
		return err
	}
	return w.sleep.until(fds)
}

// poll waits until one of fds is ready.
func (w *waiter) poll(fds []unix.PollFd, clock func() time.Time) error {
	start := clock()
	w.cpu.worked(start, start.Sub(w.over))
	defer func() {
		w.over = clock()
		w.waited(w.over, w.over.Sub(start))
	}()
	if !w.steady.holds() {
		return w.fallAsleep(fds)
	}
	if err := w.stayAwake(); err != nil {
		return err
	}
	if w.spin && w.soon.holds() && !w.cpu.contended(start) {
		if n, err := w.spinning(fds, start, clock); err != nil || n > 0 {
			return err
		}
	}
	if n, err := look(fds, quietWait); err != nil || n > 0 {
		return err
	}
	return w.fallAsleep(fds)
}

// look is poll for d at most, without Go's scheduler knowing. A signal ends it early, so the runtime can still stop the
// thread when it has to.
func look(fds []unix.PollFd, d time.Duration) (ready int, err error) {
	limit := unix.NsecToTimespec(int64(d))
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)),
		uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR:
		return 0, nil
	}
	return 0, fmt.Errorf("poll: %w", errno)
}
