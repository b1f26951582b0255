package traffic

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOccupyCPUs checks that the threads use CPU time and end when stopped.
func TestOccupyCPUs(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	RaiseGOMAXPROCS()
	if free := runtime.GOMAXPROCS(0) - busyPerCPU*runtime.NumCPU(); free < maxGenerators+runtime.NumCPU() {
		t.Errorf("%d threads beside the busy ones can run, want all generators and one per CPU", free)
	}
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano())
	}
	before := runtime.NumGoroutine()
	stop := OccupyCPUs()
	begin, start := time.Now(), used()
	for busy := false; !busy; {
		time.Sleep(100 * time.Millisecond)
		busy = used()-start > time.Since(begin)/4 // a quarter of one CPU, far more than this loop takes
		if time.Since(begin) > 30*time.Second {
			t.Fatal("the CPUs are not busy")
		}
	}
	stop()
	begin = time.Now()
	for n := runtime.NumGoroutine(); n > before; n = runtime.NumGoroutine() {
		if time.Since(begin) > 30*time.Second {
			t.Fatalf("%d of %d goroutines are left", n-before, busyPerCPU*runtime.NumCPU())
		}
		runtime.Gosched() // a finished goroutine may not have exited yet
	}
}
