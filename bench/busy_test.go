package bench

import (
	"context"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOnBusyCPUs has the workload itself do nothing: the CPU time is that of others, and theirs ends with it.
func TestOnBusyCPUs(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(busyPerCPU*runtime.NumCPU() + 2))
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano())
	}
	const enough = 300 * time.Millisecond
	f, err := onBusyCPUs(func(context.Context, *overlay, Seconds, Figures) (Figures, error) {
		begin := time.Now()
		for before := used(); used()-before < enough; time.Sleep(time.Millisecond) {
			if time.Since(begin) > 30*time.Second {
				t.Fatal("the CPUs are not busy")
			}
		}
		return Figures{"p50": 1}, nil
	})(t.Context(), nil, Seconds{}, nil)
	if err != nil || f["p50"] != 1 {
		t.Errorf("%v, %v", f, err)
	}
	before := used()
	time.Sleep(enough / busyPerCPU)
	if after := used(); after-before > enough/10 {
		t.Errorf("%v of CPU time after the end", after-before)
	}
}
