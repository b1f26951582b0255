package dataplane

import (
	"errors"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSpinsOnlyWhilePacketsKeepComing counts the looks at the clock: two for every wait, and one for every yield.
func TestSpinsOnlyWhilePacketsKeepComing(t *testing.T) {
	fds, wake := readable(t)
	now := time.Unix(1_700_000_000, 0)
	spins := func(w *waiter) bool {
		wake.clear()
		defer time.AfterFunc(10*time.Millisecond, wake.signal).Stop() // for one that does not spin
		clocked := 0
		must(t, w.poll(fds, func() time.Time {
			if clocked++; clocked == 3 {
				wake.signal()
			}
			return now
		}))
		return clocked > 2
	}
	learn := func(w *waiter, short time.Duration) {
		for range habitMax {
			w.waited(now, short)
		}
	}
	w := newTestWaiter(t, 0)
	if spins(w) {
		t.Error("spins before anything is known")
	}
	learn(w, spinLimit/2)
	if !spins(w) {
		t.Error("does not spin after short waits")
	}
	learn(w, time.Millisecond)
	if spins(w) {
		t.Error("spins after long waits")
	}
	learn(w, 0)
	w.cpu.until = now.Add(1)
	if spins(w) {
		t.Error("spins on a contended CPU")
	}
	learn(w, 0)
	now = w.cpu.until
	if !spins(w) {
		t.Error("does not try again whether the CPU is contended")
	}
	learn(w, 0)
	w.spin = false
	if spins(w) {
		t.Error("spins where it must not")
	}
}

// TestContention tells programs that take the CPU for themselves from those that share it, and from those that send.
func TestContention(t *testing.T) {
	const slice = 4 * time.Millisecond
	now := time.Unix(1_700_000_000, 0)
	var c contention
	for _, tt := range []struct {
		name   string
		yields []time.Duration // one in each wait
		work   time.Duration   // after each wait
		want   bool
	}{
		{"nobody else", slices.Repeat([]time.Duration{time.Microsecond}, 20_000), 0, false},
		{"one that shares", slices.Repeat([]time.Duration{longYield - 1}, 1000), 0, false},
		{"one time slice", append([]time.Duration{slice}, slices.Repeat([]time.Duration{100 * time.Microsecond}, 1000)...), 0, false},
		{"one that does not share", slices.Repeat([]time.Duration{slice}, 4), slice/inVain - 1, true},
		{"short time slices", slices.Repeat([]time.Duration{longYield}, 20), 0, true},
		{"one that sends", slices.Repeat([]time.Duration{slice}, 100), slice / inVain, false},
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
			t.Errorf("%s: %v after %v, %v a second later", tt.name, c.contended(now), now.Sub(before), c.contended(now.Add(contentionPause)))
		}
	}
}

// TestProgramThatDoesNotShareItsCPU has the kernel say how long yields take beside one.
func TestProgramThatDoesNotShareItsCPU(t *testing.T) {
	fds, wake := readable(t)
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
			_ = program.Wait() // says that it was killed
		}()
		begin := time.Now()
		for now := begin; !w.cpu.contended(now); now = time.Now() {
			// A packet comes during the first yield, and is soon dealt with.
			w.soon, w.steady = habitMax, habitMax
			wake.clear()
			rescue := time.AfterFunc(20*time.Millisecond, wake.signal) // of one that has noticed, and sleeps
			clocked := 0
			err := w.poll(fds, func() time.Time {
				if clocked++; clocked == 2 {
					wake.signal()
				}
				return time.Now()
			})
			rescue.Stop()
			if err != nil {
				return err
			}
			if now.Sub(begin) > 30*time.Second {
				return errors.New("it was not noticed")
			}
		}
		return nil
	}))
}

// onOneCPU calls f on a thread that may run on one CPU only, as the processes that f starts.
func onOneCPU(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		done <- func() error {
			var may, one unix.CPUSet
			if err := unix.SchedGetaffinity(0, &may); err != nil {
				return err
			}
			for cpu := 0; one.Count() == 0; cpu++ {
				if may.IsSet(cpu) {
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

func TestSpinFindsWhatIsThere(t *testing.T) {
	fds, wake := readable(t)
	w := newTestWaiter(t, habitMax)
	must(t, w.poll(fds, time.Now))
	if fds[0].Revents == 0 {
		t.Error("came back with nothing")
	}
	// And gives up when nothing comes: then it sleeps until something does.
	wake.clear()
	fds[0].Revents = 0
	time.AfterFunc(20*time.Millisecond, wake.signal)
	start := time.Now()
	must(t, w.poll(fds, time.Now))
	if fds[0].Revents == 0 || time.Since(start) < 15*time.Millisecond {
		t.Errorf("revents %x after %v", fds[0].Revents, time.Since(start))
	}
}
