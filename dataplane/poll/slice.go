package poll

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// shortSlice is the shortest slice that the kernel accepts (kernel/sched/syscalls.c,
// __setparam_fair).
const shortSlice = 100 * time.Microsecond

// ShortenSlices gives every thread of the process short scheduler slices, and so the threads that
// they create. A woken thread preempts one with a longer slice at once (Linux 6.12, PREEMPT_SHORT
// of kernel/sched/features.h), instead of waiting until that has used its own up. The share of the
// CPU stays the same.
//
// All threads, not only the pinned ones: any thread may be the one that the netpoller wakes.
func ShortenSlices() error {
	for changed := true; changed; { // threads that were created meanwhile have inherited either slice
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("list threads: %w", err)
		}
		changed = false
		for _, thread := range threads {
			id, err := strconv.Atoi(thread.Name())
			if err != nil {
				return fmt.Errorf("list threads: %w", err)
			}
			c, err := setSlice(id, shortSlice)
			if err != nil && !errors.Is(err, unix.ESRCH) { // the thread has exited
				return err
			}
			changed = changed || c
		}
	}
	return nil
}

// setSlice sets the slice of a thread, if it has another one, and reports whether it has changed.
func setSlice(thread int, d time.Duration) (changed bool, err error) {
	a, err := unix.SchedGetAttr(thread, 0)
	if err != nil {
		return false, fmt.Errorf("get scheduling attributes: %w", err)
	}
	if a.Policy != unix.SCHED_NORMAL {
		return false, fmt.Errorf("set slice: scheduling policy %d, want %d (SCHED_OTHER)", a.Policy,
			unix.SCHED_NORMAL)
	}
	if a.Runtime == uint64(d) {
		return false, nil
	}
	a.Runtime = uint64(d)
	if err := unix.SchedSetAttr(thread, a, 0); err != nil {
		return false, fmt.Errorf("set slice: %w", err)
	}
	if a, err = unix.SchedGetAttr(thread, 0); err != nil {
		return false, fmt.Errorf("get scheduling attributes: %w", err)
	}
	if a.Runtime != uint64(d) {
		return false, errors.New("set slice: the kernel ignores it: needs Linux 6.12")
	}
	return true, nil
}
