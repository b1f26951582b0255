package poll

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	// niceBoost is how much lower the nice value of a busy worker's thread is than that of the
	// process. It gives the thread ten times the weight (sched(7)), so that the program that fills
	// a pod's socket cannot starve the worker that drains it. A kernel tunnel has no such problem:
	// it works in interrupts.
	niceBoost = 10
	// minNice is the nice value of the highest priority.
	minNice = -20
)

// Priority holds the nice values of a worker's thread. The zero value leaves the thread alone.
type Priority struct {
	Normal int // of the process
	Busy   int // of a thread whose worker is busy
}

// ProbePriority returns the priority of workers. The error is the reason why busy workers cannot be
// raised.
func ProbePriority() (Priority, error) {
	normal, err := niceValue()
	if err != nil {
		return Priority{}, err
	}
	p := Priority{Normal: normal, Busy: max(normal-niceBoost, minNice)}
	trial := pinnedThread{priority: p}
	if err := errors.Join(trial.pin(true), trial.unpin()); err != nil {
		return Priority{}, err
	}
	return p, nil
}

// pinnedThread is a thread that runs only one worker, with the priority of its work. Otherwise the
// scheduler would move the worker between threads.
type pinnedThread struct {
	priority Priority
	pinned   bool
	nice     int // of the thread, while pinned
}

// pin locks the calling goroutine to its thread, and raises the thread for a busy worker. The
// goroutine is locked even if that fails.
func (t *pinnedThread) pin(busy bool) error {
	if !t.pinned {
		runtime.LockOSThread()
		t.pinned, t.nice = true, t.priority.Normal
	}
	if busy {
		return t.setNice(t.priority.Busy)
	}
	return t.setNice(t.priority.Normal)
}

// unpin restores the thread's priority and unlocks the goroutine.
func (t *pinnedThread) unpin() error {
	if !t.pinned {
		return nil
	}
	err := t.setNice(t.priority.Normal)
	t.pinned = false
	runtime.UnlockOSThread()
	return err
}

func (t *pinnedThread) setNice(nice int) error {
	if t.nice == nice {
		return nil
	}
	if err := setNiceValue(nice); err != nil {
		return err
	}
	t.nice = nice
	return nil
}

// niceValue returns the nice value of the calling thread. The system call returns 20 minus that, so
// that the result is positive.
func niceValue() (int, error) {
	n, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return 0, fmt.Errorf("get nice value: %w", err)
	}
	return 20 - n, nil
}

func setNiceValue(nice int) error {
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice); err != nil {
		return fmt.Errorf("set nice value %d: %w: needs CAP_SYS_NICE in the initial user "+
			"namespace or RLIMIT_NICE of at least %d", nice, err, 20-nice)
	}
	return nil
}
