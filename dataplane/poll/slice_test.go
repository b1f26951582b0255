package poll

import (
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestShortenSlices checks that threads have the slice on kernels that know it, those created later
// included, and keep their nice value.
func TestShortenSlices(t *testing.T) {
	needSlices(t)
	must(t, onOwnThread(func() error {
		return errors.Join(ShortenSlices(), wantSlice(t, shortSlice), onOwnThread(func() error {
			return wantSlice(t, shortSlice)
		}))
	}))
}

// TestSetSlice checks one thread: a slice that it has, a new one, one that the kernel does not
// accept, another policy, and that the nice value stays.
func TestSetSlice(t *testing.T) {
	needSlices(t)
	const nice = 5
	must(t, onOwnThread(func() error {
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice); err != nil {
			return err
		}
		for _, c := range []struct {
			d       time.Duration
			changed bool
		}{{3 * shortSlice, true}, {shortSlice, true}, {shortSlice, false}} {
			if changed, err := setSlice(0, c.d); changed != c.changed || err != nil {
				t.Errorf("%v: changed %v, %v", c.d, changed, err)
			}
			if err := wantSlice(t, c.d); err != nil {
				return err
			}
		}
		if changed, err := setSlice(0, shortSlice/2); changed || err == nil {
			t.Errorf("a slice below the kernel's minimum: changed %v, %v", changed, err)
		}
		if got, err := niceValue(); got != nice || err != nil {
			t.Errorf("nice value %d (%v), want %d", got, err, nice)
		}
		batch := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_BATCH, Nice: nice}
		err := unix.SchedSetAttr(0, &batch, 0)
		if changed, err := setSlice(0, shortSlice); changed || err == nil {
			t.Errorf("another policy: changed %v, %v", changed, err)
		}
		return err
	}))
}

// needSlices skips the test on kernels without slices of threads, after a check of the error there.
func needSlices(t *testing.T) {
	t.Helper()
	a, err := unix.SchedGetAttr(0, 0)
	must(t, err)
	if a.Runtime != 0 {
		return
	}
	if err := ShortenSlices(); err == nil || !strings.Contains(err.Error(), "needs Linux 6.12") {
		t.Errorf("%v, want the kernel that it needs", err)
	}
	t.Skip("NOT TESTED: the kernel has no slices of threads")
}

func wantSlice(t *testing.T, want time.Duration) error {
	a, err := unix.SchedGetAttr(0, 0)
	if err == nil && a.Runtime != uint64(want) {
		t.Errorf("slice %v, want %v", time.Duration(a.Runtime), want)
	}
	return err
}

// onOwnThread calls f on a thread that ends with it.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}
