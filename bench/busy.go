package bench

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
)

// busyPerCPU is how many threads want each CPU for themselves in a workload on busy CPUs: enough that one which happens to
// wait leaves no CPU idle.
const busyPerCPU = 2

// onBusyCPUs is a workload beside threads that take all the CPU time they get, as other programs on a node do. What
// the whole machine used includes them.
func onBusyCPUs(run workload) workload {
	return func(ctx context.Context, o *overlay, s Seconds, before Figures) (Figures, error) {
		var over atomic.Bool
		var threads sync.WaitGroup
		for range busyPerCPU * runtime.NumCPU() {
			threads.Go(func() {
				for !over.Load() {
				}
			})
		}
		defer threads.Wait()
		defer over.Store(true)
		return run(ctx, o, s, before)
	}
}
