package poll

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// rawPollTimeout is the timeout of the raw ppoll.
	rawPollTimeout = 5 * time.Millisecond
	// streakMin is how many more short waits than long ones it takes to expect another short one.
	streakMin = 4
	// streakMax limits a streak, so that streakMax-streakMin+1 long waits end it.
	streakMax = 8
	// busyWindow is the period over which a worker's load is measured.
	busyWindow = 10 * time.Millisecond
)

// Config configures a Waiter. Handoff is required.
type Config struct {
	BusyPoll     bool        // busy-poll while packets keep coming and the CPU is not contended
	Priority     Priority    // of the thread; the zero value leaves it alone
	PriorityLost func(error) // called if a thread can no longer be raised
	Handoff      *Handoff    // shared by all waiters of the process
}

// Waiter waits for descriptors on behalf of one goroutine, to which all of its methods belong.
type Waiter struct {
	netpoll      *netpollWaiter
	thread       pinnedThread // while not in the netpoller
	priorityLost func(error)
	busyPoll     bool
	busyStreak   streak // of waits shorter than busyPollTimeout
	rawStreak    streak // of waits shorter than rawPollTimeout
	load         load
	cpu          contention
	lastReturn   time.Time // of Wait
}

// NewWaiter returns a waiter that expects long waits.
func NewWaiter(c Config) (*Waiter, error) {
	netpoll, err := newNetpollWaiter(c.Handoff)
	if err != nil {
		return nil, err
	}
	return &Waiter{
		netpoll:      netpoll,
		thread:       pinnedThread{priority: c.Priority},
		priorityLost: c.PriorityLost,
		busyPoll:     c.BusyPoll,
	}, nil
}

// streak counts up with each short wait and down with each long one.
type streak int

func (s *streak) record(short bool) {
	if short {
		*s = min(*s+1, streakMax)
	} else {
		*s = max(*s-1, 0)
	}
}

func (s streak) holds() bool { return s >= streakMin }

// load measures whether a worker is busy: working for at least a quarter of the time. A mostly idle
// worker keeps normal priority: a hundred raised ones would starve the senders.
type load struct {
	since  time.Time // start of the window
	waited time.Duration
	busy   bool
}

// record notes that a wait of duration waited ended now.
func (l *load) record(now time.Time, waited time.Duration) {
	if l.since.IsZero() {
		l.since = now.Add(-waited)
	}
	l.waited += waited
	if span := now.Sub(l.since); span >= busyWindow {
		l.busy = l.waited <= span/4*3
		l.since, l.waited = now, 0
	}
}

// record notes that a wait of duration d ended now.
func (w *Waiter) record(now time.Time, d time.Duration) {
	w.busyStreak.record(d < busyPollTimeout)
	w.rawStreak.record(d < rawPollTimeout)
	w.load.record(now, d)
}

// KeepRunning is called instead of Wait when the worker has more to do.
func (w *Waiter) KeepRunning(now time.Time) error {
	w.load.record(now, 0)
	return w.pin()
}

// pin keeps the goroutine on its thread, with the priority that suits its load. If the right to
// raise a thread has been revoked, the worker goes on with normal priority.
func (w *Waiter) pin() error {
	err := w.thread.pin(w.load.busy)
	if err != nil && w.load.busy {
		w.thread.priority.Busy = w.thread.priority.Normal
		w.priorityLost(err)
		err = nil
	}
	return errors.Join(err, w.netpoll.leave())
}

// Wait blocks until one of fds is ready and sets their Revents. A negative descriptor is ignored,
// as by poll(2). clock returns the current time.
func (w *Waiter) Wait(fds []unix.PollFd, clock func() time.Time) error {
	start := clock()
	w.cpu.worked(start, start.Sub(w.lastReturn))
	defer func() {
		w.lastReturn = clock()
		w.record(w.lastReturn, w.lastReturn.Sub(start))
	}()
	if !w.rawStreak.holds() {
		return w.block(fds)
	}
	if err := w.pin(); err != nil {
		return err
	}
	if w.busyPoll && w.busyStreak.holds() && !w.cpu.contended(start) {
		if n, err := w.spin(fds, start, clock); err != nil || n > 0 {
			return err
		}
	}
	if n, err := rawPoll(fds, rawPollTimeout); err != nil || n > 0 {
		return err
	}
	return w.block(fds)
}

// block unpins the thread and waits in the netpoller.
func (w *Waiter) block(fds []unix.PollFd) error {
	if err := w.thread.unpin(); err != nil {
		return err
	}
	return w.netpoll.wait(fds)
}

// Forget must be called before fd is closed, so that a new descriptor with the same number is not
// mistaken for it.
func (w *Waiter) Forget(fd int) { w.netpoll.forget(fd) }

// Unpin returns the thread to Go's scheduler with the priority it had. The goroutine calls it
// before it ends.
func (w *Waiter) Unpin() error { return w.thread.unpin() }

// Close closes the epoll instance. No Wait may be in progress.
func (w *Waiter) Close() error { return w.netpoll.Close() }

// rawPoll is ppoll(2) with timeout d as a raw system call, invisible to Go's scheduler. A signal
// ends it early, so the runtime can still preempt the thread.
func rawPoll(fds []unix.PollFd, d time.Duration) (ready int, err error) {
	timeout := unix.NsecToTimespec(int64(d))
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])),
		uintptr(len(fds)), uintptr(unsafe.Pointer(&timeout)), 0, 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR:
		return 0, nil
	}
	return 0, fmt.Errorf("poll: %w", errno)
}
