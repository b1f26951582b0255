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

	"weft/dataplane/feature"
	"weft/dataplane/poll"
	"weft/deploy/lab"
)

// TestPriorityNotPermitted opens an engine without CAP_SYS_NICE, in a child process if this one has
// it.
func TestPriorityNotPermitted(t *testing.T) {
	const inChild = "WEFT_TEST_WITHOUT_SYS_NICE"
	if _, err := poll.ProbePriority(); err == nil && os.Getenv(inChild) == "" {
		child := exec.Command(os.Args[0], "-test.v", "-test.run=^"+t.Name()+"$")
		child.Env = append(os.Environ(), inChild+"=1")
		child.Stdout, child.Stderr = t.Output(), t.Output()
		must(t, startWithoutSysNice(child))
		must(t, child.Wait())
		return
	}
	log := &logBuffer{}
	h := newHarnessWith(t, Config{Log: slog.New(slog.NewTextHandler(log, nil))})
	expectNoPriority(t, h.engine)
	for busy := range 2 {
		must(t, h.waiter.KeepRunning(h.clock.Add(time.Duration(busy)*time.Second)))
	}
	must(t, h.waiter.Unpin())

	// Workers that were permitted to raise their threads, and are not any more.
	nice, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	must(t, err)
	h.engine.features[feature.Priority] = nil
	h.engine.priority = poll.Priority{Normal: 20 - nice, Busy: 20 - nice - 1}
	for id := range 3 {
		w, err := newWorker(id, h.engine)
		must(t, err)
		for busy := range 3 {
			must(t, w.waiter.KeepRunning(h.clock.Add(time.Duration(busy)*time.Second)))
		}
		must(t, errors.Join(w.waiter.Unpin(), w.waiter.Close(), w.wake.Close()))
	}
	expectNoPriority(t, h.engine)
	if n := log.count("feature no longer used"); n != 1 {
		t.Errorf("logged %d times, want 1:\n%s", n, log)
	}
}

func expectNoPriority(t *testing.T, e *Engine) {
	t.Helper()
	s := e.Status()[slices.Index(feature.All(), feature.Priority)]
	if s.Used || !strings.Contains(s.Reason, "CAP_SYS_NICE") || !strings.Contains(s.Reason, "RLIMIT_NICE") {
		t.Errorf("status %+v", s)
	}
}

// startWithoutSysNice starts a program without CAP_SYS_NICE, from a thread that ends afterwards.
func startWithoutSysNice(c *exec.Cmd) error {
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

// TestNetnsBusyWorkerPriority sends packets between pods until a worker's thread is raised, and
// expects it to be lowered afterwards. With the feature disabled no thread is ever raised.
func TestNetnsBusyWorkerPriority(t *testing.T) {
	p, err := poll.ProbePriority()
	permitted := err == nil
	for name, without := range map[string][]feature.Name{"on": nil, "off": {feature.Priority}} {
		t.Run(name, func(t *testing.T) {
			ov := startOverlay(t, lab.Options{}, Config{Workers: 1, DisabledFeatures: without})
			conn, err := ov.pod(0).Dial("udp", netip.AddrPortFrom(podAddr(1), 9))
			must(t, err)
			defer conn.Close()
			raised := 0
			for sent := 0; raised == 0 && sent < 100_000; sent++ {
				// No program listens on that port, so some writes return an ICMP error.
				if _, err := conn.Write(make([]byte, 64)); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
					t.Fatal(err)
				}
				if sent%100 == 0 {
					raised = raisedThreads(t, p)
				}
			}
			if (raised > 0) != (permitted && without == nil) {
				t.Errorf("%d threads are raised", raised)
			}
			must(t, lab.Await(t.Context(), 5*time.Second, "idle workers", func() error {
				if n := raisedThreads(t, p); n > 0 {
					return fmt.Errorf("%d threads are raised", n)
				}
				return nil
			}))
		})
	}
}

// raisedThreads returns the number of this process's threads with the priority of a busy worker.
func raisedThreads(t *testing.T, p poll.Priority) (n int) {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	must(t, err)
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		must(t, err)
		// A thread may have ended meanwhile.
		got, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
		if err == nil && p.Busy != p.Normal && 20-got == p.Busy {
			n++
		}
	}
	return n
}
