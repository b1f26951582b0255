package poll

import (
	"errors"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestBusyPollAfterShortWaits counts the calls of the clock: two per wait and one per yield.
func TestBusyPollAfterShortWaits(t *testing.T) {
	fds, event := readable(t)
	now := time.Unix(1_700_000_000, 0)
	spins := func(w *Waiter) bool {
		event.Clear()
		defer time.AfterFunc(10*time.Millisecond, event.Signal).Stop() // ends a wait that does not spin
		calls := 0
		must(t, w.Wait(fds, func() time.Time {
			if calls++; calls == 3 {
				event.Signal()
			}
			return now
		}))
		return calls > 2
	}
	record := func(w *Waiter, d time.Duration) {
		for range streakMax {
			w.record(now, d)
		}
	}
	w := newTestWaiter(t, 0)
	if spins(w) {
		t.Error("spins before the first wait")
	}
	record(w, busyPollTimeout/2)
	if !spins(w) {
		t.Error("does not spin after short waits")
	}
	record(w, time.Millisecond)
	if spins(w) {
		t.Error("spins after long waits")
	}
	record(w, 0)
	w.cpu.until = now.Add(1)
	if spins(w) {
		t.Error("spins on a contended CPU")
	}
	record(w, 0)
	now = w.cpu.until
	if !spins(w) {
		t.Error("does not spin after the contention pause")
	}
	record(w, 0)
	w.busyPoll = false
	if spins(w) {
		t.Error("spins although disabled")
	}
}

func TestContention(t *testing.T) {
	const slice = 4 * time.Millisecond
	now := time.Unix(1_700_000_000, 0)
	var c contention
	for _, tt := range []struct {
		name   string
		yields []time.Duration // one per wait
		work   time.Duration   // after each wait
		want   bool
	}{
		{"idle CPU", slices.Repeat([]time.Duration{time.Microsecond}, 20_000), 0, false},
		{"program that blocks often", slices.Repeat([]time.Duration{longYield - 1}, 1000), 0, false},
		{"one time slice",
			append([]time.Duration{slice}, slices.Repeat([]time.Duration{100 * time.Microsecond}, 1000)...), 0, false},
		{"program that computes", slices.Repeat([]time.Duration{slice}, 4), slice/wastedYieldRatio - 1, true},
		{"short time slices", slices.Repeat([]time.Duration{longYield}, 20), 0, true},
		{"program that sends", slices.Repeat([]time.Duration{slice}, 100), slice / wastedYieldRatio, false},
	} {
		now = now.Add(2 * contentionPause)
		c.worked(now, 0) // a new window
		before := now
		for _, took := range tt.yields {
			now = now.Add(took)
			c.yielded(took)
			now = now.Add(tt.work)
			c.worked(now, tt.work)
		}
		if c.contended(now) != tt.want || c.contended(now.Add(contentionPause)) {
			t.Errorf("%s: contended %v after %v, %v a second later", tt.name,
				c.contended(now), now.Sub(before), c.contended(now.Add(contentionPause)))
		}
	}
}

// TestContentionBusyProgram measures real yields beside a program that computes.
func TestContentionBusyProgram(t *testing.T) {
	fds, event := readable(t)
	w := newTestWaiter(t, 0)
	must(t, onOneCPU(func() error {
		program := exec.Command("sh", "-c", "while :; do :; done")
		program.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
		if err := program.Start(); err != nil {
			return err
		}
		defer func() {
			if err := program.Process.Kill(); err != nil {
				t.Error(err)
			}
			_ = program.Wait() // reports that it was killed
		}()
		begin := time.Now()
		for now := begin; !w.cpu.contended(now); now = time.Now() {
			// A packet arrives during the first yield and takes little work.
			w.busyStreak, w.rawStreak = streakMax, streakMax
			event.Clear()
			rescue := time.AfterFunc(20*time.Millisecond, event.Signal) // ends a wait that does not spin
			calls := 0
			err := w.Wait(fds, func() time.Time {
				if calls++; calls == 2 {
					event.Signal()
				}
				return time.Now()
			})
			rescue.Stop()
			if err != nil {
				return err
			}
			if now.Sub(begin) > 30*time.Second {
				return errors.New("contention not detected")
			}
		}
		return nil
	}))
}

// onOneCPU calls f on a thread that is limited to one CPU, as are the processes that f starts.
func onOneCPU(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- func() error {
			var allowed, one unix.CPUSet
			if err := unix.SchedGetaffinity(0, &allowed); err != nil {
				return err
			}
			for cpu := 0; one.Count() == 0; cpu++ {
				if allowed.IsSet(cpu) {
					one.Set(cpu)
				}
			}
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}

func TestBusyPollReady(t *testing.T) {
	fds, event := readable(t)
	w := newTestWaiter(t, streakMax)
	must(t, w.Wait(fds, time.Now))
	if fds[0].Revents == 0 {
		t.Error("Wait returned although nothing is ready")
	}
	// Without a packet the wait ends up in the netpoller.
	event.Clear()
	fds[0].Revents = 0
	time.AfterFunc(20*time.Millisecond, event.Signal)
	start := time.Now()
	must(t, w.Wait(fds, time.Now))
	if fds[0].Revents == 0 || time.Since(start) < 15*time.Millisecond {
		t.Errorf("revents %x after %v", fds[0].Revents, time.Since(start))
	}
}
