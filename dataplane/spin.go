package dataplane

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// spinLimit is how long a worker looks again and again before it sleeps: longer than a round trip through an
	// idle network takes, shorter than anybody would notice in the load. With it round trips between two nodes took
	// 0.93 and 0.70 of kernel VXLAN's time (median; frames cut to the MTU, and not), without 2.15 and 1.68 (two CPUs for
	// both nodes and both programs, five interleaved rounds); throughput did not suffer.
	spinLimit = 200 * time.Microsecond
	// spinScore is how many waits in a row must have been worth spinning for, and spinScoreMax how many that were
	// not it takes to stop.
	spinScore    = 4
	spinScoreMax = 8
	// quietWait is how long a worker sleeps in the kernel without Go's scheduler knowing. While traffic goes on waits
	// are shorter, and so the worker keeps its thread and its P: told of every wait, Go's monitor thread takes the P
	// away after 20 us (runtime.retake) and the worker needs another thread's help to go on. With it one and four TCP
	// streams were 5 to 20 % faster in all four pairs of medians (two CPUs, four rounds).
	quietWait = 5 * time.Millisecond
)

// spinner decides whether a worker spins before it sleeps. Sleeping costs two context switches and, on an idle CPU,
// the time it takes to wake that up, of which the sender pays a part; spinning costs CPU time that nobody else wants:
// a worker spins only while packets keep coming within spinLimit, and yields after every look.
type spinner struct {
	allowed bool
	score   int // rises with each wait that was shorter than spinLimit, falls with each other
}

// waited learns from a wait that took so long, asleep or not.
func (s *spinner) waited(d time.Duration) {
	if d < spinLimit {
		s.score = min(s.score+1, spinScoreMax)
	} else {
		s.score = max(s.score-1, 0)
	}
}

// poll waits until one of fds is ready.
func (s *spinner) poll(fds []unix.PollFd, clock func() time.Time) error {
	start := clock()
	defer func() { s.waited(clock().Sub(start)) }()
	if s.allowed && s.score >= spinScore {
		for clock().Sub(start) < spinLimit {
			if n, err := look(fds, 0); err != nil || n > 0 {
				return err
			}
			yield()
		}
	}
	if n, err := look(fds, quietWait); err != nil || n > 0 {
		return err
	}
	if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
		return fmt.Errorf("poll: %w", err)
	}
	return nil
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

// yield lets every thread run that waits for this CPU; sched_yield(2) always succeeds on Linux.
func yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
