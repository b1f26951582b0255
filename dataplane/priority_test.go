package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/deploy/lab"
)

// TestBusyWorkerIsRaised looks at the thread: raised while the worker is awake and busy, where that is allowed, and else as
// it was.
func TestBusyWorkerIsRaised(t *testing.T) {
	usual, err := niceness()
	must(t, err)
	p, err := findPriority()
	if err == nil && p != (priority{usual, max(usual-priorityGain, lowestNice)}) || err != nil && p != (priority{}) {
		t.Fatalf("%+v (%v), usual is %d", p, err, usual)
	}
	w := newTestWaiter(t, habitMax)
	w.spin, w.thread.priority = false, p
	fds, _ := readable(t)
	runtime.LockOSThread() // so that the same thread is looked at
	defer runtime.UnlockOSThread()
	now := time.Unix(1_700_000_000, 0)
	poll := func(took time.Duration) error {
		start := now
		now = now.Add(took)
		return w.poll(fds, func() time.Time { defer func() { start = now }(); return start })
	}
	work := func(d time.Duration) error { now = now.Add(d); return w.goOn(now) }
	const a = workWindow / 10
	want := func(nice int, errs ...error) {
		t.Helper()
		must(t, errors.Join(errs...))
		if got, err := niceness(); err != nil || got != nice {
			t.Errorf("nice value %d (%v), want %d", got, err, nice)
		}
	}
	raised := usual + p.busy - p.usual
	want(usual, poll(a), work(3*a), poll(a))       // the window has not passed
	want(raised, work(a), poll(4*a), work(0))      // 4 of 10
	want(usual, work(2*a), poll(8*a), work(0))     // 2 of 10
	want(raised, work(a), poll(7*a), work(2*a))    // 3 of 10
	want(raised, work(a), work(20*a), work(a))     // without any wait
	want(usual, poll(workWindow), poll(a))         // a whole window's wait
	want(raised, work(10*a), work(10*a))           // before it sleeps
	want(usual, w.fallAsleep(fds))                 // for whoever runs on the thread then
	want(usual, w.stayAwake(), w.thread.release()) // as at the worker's end
}

// TestPriorityNotAllowed does without the right to raise one, in a process of its own where this one has it.
func TestPriorityNotAllowed(t *testing.T) {
	const inside = "WEFT_TEST_WITHOUT_SYS_NICE"
	if _, err := findPriority(); err == nil && os.Getenv(inside) == "" {
		child := exec.Command(os.Args[0], "-test.v", "-test.run=^"+t.Name()+"$")
		child.Env = append(os.Environ(), inside+"=1")
		must(t, startWithoutNice(child))
		must(t, child.Wait())
		return
	}
	b := newBench(t) // fails if its engine or its workers do
	i := slices.IndexFunc(b.engine.Status(), func(s FeatureStatus) bool { return s.Feature == FeaturePriority })
	s := b.engine.Status()[i]
	if s.Used || !strings.Contains(s.Why, "CAP_SYS_NICE") || !strings.Contains(s.Why, "RLIMIT_NICE") {
		t.Errorf("%+v", s)
	}
	b.waiter.work.busy = true
	must(t, b.waiter.stayAwake())
	must(t, b.waiter.thread.release())
}

// TestRightToPriorityIsTakenAway: a worker that was raised before goes on without, and the engine says so once.
func TestRightToPriorityIsTakenAway(t *testing.T) {
	log := &logBuffer{}
	b := newBenchWith(t, Config{Log: slog.New(slog.NewTextHandler(log, nil))})
	usual, err := niceness()
	must(t, err)
	b.engine.features[FeaturePriority] = nil
	must(t, withoutNice(func() error {
		for range 3 {
			b.waiter.thread.priority = priority{usual: usual, busy: usual - 1}
			b.waiter.work.busy = true
			if err := b.waiter.thread.hold(true); err == nil || b.waiter.thread.nice != usual {
				t.Errorf("raised to %d (%v)", b.waiter.thread.nice, err)
			}
			if err := errors.Join(b.waiter.stayAwake(), b.waiter.stayAwake()); err != nil {
				return err
			}
			if nice, err := niceness(); nice != usual || err != nil {
				t.Errorf("nice value %d (%v), was %d", nice, err, usual)
			}
			if err := b.waiter.thread.release(); err != nil {
				return err
			}
		}
		return nil
	}))
	i := slices.Index(Features(), FeaturePriority)
	if s := b.engine.Status()[i]; s.Used || !strings.Contains(s.Why, "CAP_SYS_NICE") {
		t.Errorf("%+v", s)
	}
	if n := log.count("without a feature"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, log)
	}
}

// withoutNice calls f on a thread that cannot raise its priority and ends with it.
func withoutNice(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData // the kernel's 64 bits
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

// startWithoutNice starts a program that cannot raise priorities, from a thread that ends with it.
func startWithoutNice(c *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_NICE, 0, 0, 0)
		if err == nil {
			err = c.Start()
		}
		started <- err
	}()
	return <-started
}

// TestNetnsBusyWorkersGoFirst sends packets from one pod to another until a worker has priority, and awaits that it loses
// it afterwards; none ever has it where it is switched off.
func TestNetnsBusyWorkersGoFirst(t *testing.T) {
	p, err := findPriority()
	allowed := err == nil
	for name, without := range map[string][]Feature{"on": nil, "off": {FeaturePriority}} {
		t.Run(name, func(t *testing.T) {
			ov := startOverlay(t, lab.Options{}, Config{Workers: 1, Without: without})
			conn, err := ov.pod(0).Dial("udp", netip.AddrPortFrom(podAddr(1), 9))
			must(t, err)
			defer conn.Close()
			raised := 0
			for sent := 0; raised == 0 && sent < 100_000; sent++ {
				// Nobody listens there, and the kernel says so now and then.
				if _, err := conn.Write(make([]byte, 64)); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
					t.Fatal(err)
				}
				if sent%100 == 0 {
					raised = raisedThreads(t, p)
				}
			}
			if (raised > 0) != (allowed && without == nil) {
				t.Errorf("%d workers with priority", raised)
			}
			must(t, lab.Await(t.Context(), 5*time.Second, "quiet", func() error {
				if n := raisedThreads(t, p); n > 0 {
					return fmt.Errorf("%d threads with priority", n)
				}
				return nil
			}))
		})
	}
}

// raisedThreads is how many threads of this process have the priority of a busy worker.
func raisedThreads(t *testing.T, p priority) (n int) {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	must(t, err)
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		must(t, err)
		// One that has ended meanwhile has none.
		if got, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err == nil && p.busy != p.usual && 20-got == p.busy {
			n++
		}
	}
	return n
}
