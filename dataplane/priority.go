package dataplane

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	// priorityGain is how far below the process's nice value that of a busy worker lies. Its thread has ten times the
	// weight then (sched(7)), and whoever fills a pod's socket does not keep the worker waiting that is to empty it: a
	// kernel tunnel does its work in interrupts. One TCP stream was 1.20 and 1.09 times as fast with it, four 1.09 and 1.16
	// times (frames cut to the MTU, and not; two CPUs for both nodes and both programs, medians of 12 interleaved rounds);
	// 5 gave about half of that, 19 no more.
	priorityGain = 10
	// lowestNice is the highest priority there is.
	lowestNice = -20
)

// priority is the nice value of a worker's thread. The zero value leaves it alone.
type priority struct {
	usual, busy int
}

// findPriority returns the priority of workers. The error says why they cannot have a higher one when busy.
func findPriority() (priority, error) {
	usual, err := niceness()
	if err != nil {
		return priority{}, err
	}
	p := priority{usual: usual, busy: max(usual-priorityGain, lowestNice)}
	trial := ownThread{priority: p}
	if err := errors.Join(trial.hold(true), trial.release()); err != nil {
		return priority{}, err
	}
	return p, nil
}

// ownThread is what an awake worker has: a thread that runs nothing else, with the priority of its work. Else the scheduler
// would move the worker to another thread now and then.
type ownThread struct {
	priority priority
	held     bool
	nice     int // of a thread that is held
}

// hold keeps the calling goroutine on the thread it is on, and raises that for a busy worker. If it fails, the goroutine
// is on its own thread all the same.
func (t *ownThread) hold(busy bool) error {
	if !t.held {
		runtime.LockOSThread()
		t.held, t.nice = true, t.priority.usual
	}
	if busy {
		return t.set(t.priority.busy)
	}
	return t.set(t.priority.usual)
}

// release gives the thread back as it was.
func (t *ownThread) release() error {
	if !t.held {
		return nil
	}
	err := t.set(t.priority.usual)
	t.held = false
	runtime.UnlockOSThread()
	return err
}

func (t *ownThread) set(nice int) error {
	if t.nice == nice {
		return nil
	}
	if err := setNiceness(nice); err != nil {
		return err
	}
	t.nice = nice
	return nil
}

// niceness returns the nice value of the calling thread: the system call has it reversed, to be positive.
func niceness() (int, error) {
	n, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return 0, fmt.Errorf("get nice value: %w", err)
	}
	return 20 - n, nil
}

func setNiceness(nice int) error {
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice); err != nil {
		return fmt.Errorf("set nice value %d: %w: it takes CAP_SYS_NICE in the first user namespace, or a limit RLIMIT_NICE of %d",
			nice, err, 20-nice)
	}
	return nil
}
