package traffic

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// busyPerCPU is the number of busy threads per CPU: enough that no CPU is idle while one of them
// waits.
const busyPerCPU = 2

// OccupyCPUs keeps all CPUs busy with threads that never yield, as other programs on a node do,
// until stop is called. stop returns after they have exited.
func OccupyCPUs() (stop func()) {
	var stopped atomic.Bool
	var threads sync.WaitGroup
	for range busyPerCPU * runtime.NumCPU() {
		threads.Go(func() {
			for !stopped.Load() {
			}
		})
	}
	return func() {
		stopped.Store(true)
		threads.Wait()
	}
}
