package traffic

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// busyPerCPU is how many threads want each CPU for themselves in a workload on busy CPUs: enough
// that one which happens to wait leaves no CPU idle.
const busyPerCPU = 2

// OccupyCPUs keeps all CPUs busy with threads that never yield, as other programs on a node do,
// until stop is called. stop returns when they have ended.
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
