package dataplane

import (
	"errors"
	"fmt"
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

	"weft/bench/lab"
)

// TestAwakeWorkerIsRaised looks at the thread: raised where that is allowed, and in any case as it was after it.
func TestAwakeWorkerIsRaised(t *testing.T) {
	usual, err := niceness()
	must(t, err)
	p, err := findPriority()
	if err == nil && p != (priority{usual, max(usual-priorityGain, lowestNice)}) || err != nil && p != (priority{}) {
		t.Fatalf("%+v (%v), usual is %d", p, err, usual)
	}
	w := newTestWaiter(t, 0)
	w.sleep.thread.priority = p
	fds, _ := readable(t)
	runtime.LockOSThread() // so that the same thread is looked at
	defer runtime.UnlockOSThread()
	want := func(nice int) {
		t.Helper()
		if got, err := niceness(); err != nil || got != nice {
			t.Errorf("nice value %d (%v), want %d", got, err, nice)
		}
	}
	for range 2 {
		for range 2 {
			must(t, w.sleep.stayAwake())
			want(usual + p.awake - p.asleep)
		}
		must(t, w.sleep.until(fds))
		want(usual)
	}
	must(t, w.sleep.thread.hold())
	must(t, w.sleep.thread.release())
	want(usual)
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
	must(t, b.worker.waiter.sleep.stayAwake())
	must(t, b.worker.waiter.sleep.thread.release())
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

// TestNetnsBusyWorkersGoFirst sends packets from one pod to another until the workers of both nodes have priority, and
// awaits that they lose it afterwards; it never appears where it is switched off.
func TestNetnsBusyWorkersGoFirst(t *testing.T) {
	p, err := findPriority()
	allowed := err == nil
	flood := func(t *testing.T, ov *overlay, packets int, until func() error) error {
		conn, err := ov.pod(0).Dial("udp", netip.AddrPortFrom(podAddr(1), 9))
		must(t, err)
		defer conn.Close()
		for err = until(); err != nil && packets > 0; err = until() {
			for range min(packets, 100) {
				if _, err := conn.Write(make([]byte, 64)); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
					return err
				}
				packets--
			}
		}
		return err
	}
	t.Run("on", func(t *testing.T) {
		ov := startOverlay(t, lab.Options{}, Config{Workers: 1})
		err := flood(t, ov, 200_000, func() error { return raisedThreads(p, 2) })
		if allowed != (err == nil) {
			t.Errorf("allowed: %v, but %v", allowed, err)
		}
		must(t, lab.Await(t.Context(), 5*time.Second, "quiet", func() error { return raisedThreads(p, 0) }))
	})
	t.Run("off", func(t *testing.T) {
		ov := startOverlay(t, lab.Options{}, Config{Workers: 1, Without: []Feature{FeaturePriority}})
		if err := flood(t, ov, 50_000, func() error { return raisedThreads(p, 1) }); err == nil {
			t.Error("a thread has priority")
		}
	})
}

// raisedThreads says if not n threads of this process have the priority of a busy worker.
func raisedThreads(p priority, n int) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	raised := 0
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		if err != nil {
			return err
		}
		// One that has ended meanwhile has none.
		if got, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err == nil && p.awake != p.asleep && 20-got == p.awake {
			raised++
		}
	}
	if raised != n {
		return fmt.Errorf("%d threads with nice value %d, want %d", raised, p.awake, n)
	}
	return nil
}
