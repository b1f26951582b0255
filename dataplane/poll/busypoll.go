package poll

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// busyPollTimeout limits busy-polling: longer than a round trip through an idle network takes,
	// too short to show in the load.
	busyPollTimeout = 200 * time.Microsecond
	// longYield is the shortest yield that counts as another program's whole time slice: 0.7 ms, or
	// more on several CPUs (kernel/sched/fair.c, sysctl_sched_base_slice).
	longYield = 700 * time.Microsecond
	// wastedYieldRatio: a wait's long yields are wasted if the work after it took less than
	// 1/wastedYieldRatio of their time.
	wastedYieldRatio = 16
	// contentionWindow is the period over which wasted yields are added up.
	contentionWindow = 10 * time.Millisecond
	// contentionPause is how long a CPU counts as contended.
	contentionPause = time.Second
)

// spin polls in a loop until one of fds is ready or busyPollTimeout has passed.
func (w *Waiter) spin(
	fds []unix.PollFd, start time.Time, clock func() time.Time,
) (ready int, err error) {
	for last := start; last.Sub(start) < busyPollTimeout; {
		if ready, err = rawPoll(fds, 0); err != nil || ready > 0 {
			return ready, err
		}
		yield()
		now := clock()
		w.cpu.yielded(now.Sub(last))
		last = now
	}
	return 0, nil
}

// contention detects that other programs use all of the CPU they get. A worker that yields to such
// a program runs again only after its time slice, even if a packet arrives; a worker blocked in the
// kernel preempts it as soon as a packet wakes it. With four such programs on two CPUs, round trips
// took 1.9 ms if workers yielded to them and 37 µs if not, and there were 390 and 2,800 TCP
// connections per second (medians of four interleaved rounds; kernel VXLAN: 11 µs and 12,600).
//
// A program that sends through the tunnel may use its whole time slice, too. But it leaves much
// work for the worker, so the yield was not wasted: with yields, 1.4 and 1.6 times as many of its
// 64-byte packets were carried as without (1 and 256 flows, four rounds).
type contention struct {
	since      time.Time     // start of the window
	yieldTime  time.Duration // long yields of the last wait
	wastedTime time.Duration // wasted yields of all waits in the window
	until      time.Time     // when to busy-poll again
}

// yielded records one yield.
func (c *contention) yielded(took time.Duration) {
	if took >= longYield {
		c.yieldTime += took
	}
}

// worked records that work of the given duration followed the last wait and ended now.
func (c *contention) worked(now time.Time, work time.Duration) {
	if work < c.yieldTime/wastedYieldRatio {
		c.wastedTime += c.yieldTime
	}
	c.yieldTime = 0
	span := now.Sub(c.since)
	if span < contentionWindow {
		return
	}
	if c.wastedTime > span/2 {
		c.until = now.Add(contentionPause)
	}
	c.since, c.wastedTime = now, 0
}

func (c *contention) contended(now time.Time) bool { return now.Before(c.until) }

// yield runs every thread that waits for this CPU. sched_yield(2) always succeeds on Linux.
func yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
