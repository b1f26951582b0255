package dataplane

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// spinLimit is how long a worker looks again and again before it sleeps: longer than a round trip through an
	// idle network takes, shorter than anybody would notice in the load.
	spinLimit = 50 * time.Microsecond
	// spinGap between two looks means that somebody else had the CPU meanwhile: one look takes less than 1 us.
	spinGap = 10 * time.Microsecond
	// spinRest is how long a worker does not spin after it has seen such a gap, and doubles up to spinRestMax
	// while that goes on.
	spinRest    = 10 * time.Millisecond
	spinRestMax = time.Second
	// spinScore is how many waits in a row must have been worth spinning for, and spinScoreMax how many that were
	// not it takes to stop.
	spinScore    = 4
	spinScoreMax = 8
)

// spinner decides whether a worker spins before it sleeps. Sleeping costs two context switches and, on an idle CPU,
// the time it takes to wake that up; spinning costs the CPU that somebody else may need. So a worker spins only
// while packets keep coming within spinLimit, and not while others want its CPU.
type spinner struct {
	allowed bool
	score   int           // rises with each wait that was shorter than spinLimit, falls with each other
	rest    time.Duration // the last one taken
	notTill time.Time
}

// worthwhile reports whether to spin now.
func (s *spinner) worthwhile(now time.Time) bool {
	return s.allowed && s.score >= spinScore && now.After(s.notTill)
}

// waited learns from a wait that took so long, asleep or not.
func (s *spinner) waited(d time.Duration) {
	if d < spinLimit {
		s.score = min(s.score+1, spinScoreMax)
	} else {
		s.score = max(s.score-1, 0)
	}
}

// disturbed learns that somebody else had the CPU while the worker was spinning.
func (s *spinner) disturbed(now time.Time) {
	if now.Sub(s.notTill) > spinRestMax {
		s.rest = 0 // long ago
	}
	s.rest = min(max(2*s.rest, spinRest), spinRestMax)
	s.notTill = now.Add(s.rest)
}

// poll waits until one of fds is ready.
func (s *spinner) poll(fds []unix.PollFd, clock func() time.Time) error {
	start := clock()
	defer func() { s.waited(clock().Sub(start)) }()
	if s.worthwhile(start) {
		for last := start; last.Sub(start) < spinLimit; {
			n, err := look(fds)
			if err != nil || n > 0 {
				return err
			}
			now := clock()
			if now.Sub(last) > spinGap {
				s.disturbed(now)
				break
			}
			last = now
		}
	}
	if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
		return fmt.Errorf("poll: %w", err)
	}
	return nil
}

// look is poll without waiting. Go's scheduler is not told: there is nothing to wait for.
func look(fds []unix.PollFd) (ready int, err error) {
	var none unix.Timespec
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)),
		uintptr(unsafe.Pointer(&none)), 0, 0, 0)
	if errno != 0 && errno != unix.EINTR {
		return 0, fmt.Errorf("poll: %w", errno)
	}
	if errno != 0 {
		return 0, nil
	}
	return int(n), nil
}
