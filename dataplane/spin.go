package dataplane

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// spinLimit is how long a worker looks again and again: longer than a round trip through an idle network takes,
	// shorter than anybody would notice in the load. With it round trips between two nodes took 0.93 and 0.70 of kernel
	// VXLAN's time (median; frames cut to the MTU, and not), without 2.15 and 1.68 (two CPUs for both nodes and both
	// programs, five interleaved rounds); throughput did not suffer.
	spinLimit = 200 * time.Microsecond
	// longYield is a yield after which another program ran for all of its time slice: 0.7 ms, or more on several CPUs
	// (kernel/sched/fair.c, sysctl_sched_base_slice).
	longYield = 700 * time.Microsecond
	// inVain is what part of a wait's long yields the work after it must take for them to have been of use.
	inVain = 16
	// contentionWindow is how long it takes to find out whether a CPU is contended, and contentionPause how long that
	// holds.
	contentionWindow = 10 * time.Millisecond
	contentionPause  = time.Second
)

// spinning looks again and again whether one of fds is ready.
func (w *waiter) spinning(fds []unix.PollFd, start time.Time, clock func() time.Time) (ready int, err error) {
	for last := start; last.Sub(start) < spinLimit; {
		if ready, err = look(fds, 0); err != nil || ready > 0 {
			return ready, err
		}
		yield()
		now := clock()
		w.cpu.yielded(now.Sub(last))
		last = now
	}
	return 0, nil
}

// contention says whether other programs want the CPU for themselves. A worker that yields to such a one is back only after
// its time slice, whatever arrives meanwhile, while one that is asleep goes before it as soon as a packet wakes it up. With
// four such programs on two CPUs round trips took 1.9 ms if workers yielded to them, and 37 us if they did not; TCP
// connections a second were 390 and 2,800 (medians of four interleaved rounds; kernel VXLAN had 11 us and 12,600).
//
// A program that sends through the tunnel may take its whole time slice, too. Then there is much to do afterwards, and to
// have waited for it was right: with yields 1.4 and 1.6 times as many of its 64-byte packets were carried as with sleep (1 and
// 256 flows, four rounds).
type contention struct {
	since time.Time     // the beginning of the window
	gone  time.Duration // how long the last wait's long yields took
	away  time.Duration // the same of all waits in the window that were in vain
	until time.Time     // when to try again
}

// yielded notes a yield that took so long.
func (c *contention) yielded(took time.Duration) {
	if took >= longYield {
		c.gone += took
	}
}

// worked notes that it is now, after so much work since the last wait.
func (c *contention) worked(now time.Time, work time.Duration) {
	if work < c.gone/inVain {
		c.away += c.gone
	}
	c.gone = 0
	span := now.Sub(c.since)
	if span < contentionWindow {
		return
	}
	if c.away > span/2 {
		c.until = now.Add(contentionPause)
	}
	c.since, c.away = now, 0
}

func (c *contention) contended(now time.Time) bool { return now.Before(c.until) }

// yield lets every thread run that waits for this CPU; sched_yield(2) always succeeds on Linux.
func yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
