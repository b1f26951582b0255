package scale

import (
	"context"
	"sync"
	"time"
)

// Restart are the figures of a restart of all other nodes, one after the other: each writes its
// lease again, without a change.
type Restart struct {
	Took       time.Duration
	CPU        float64 // of the daemon, per time
	Sent, Lost int     // packets to the nodes
	Differing  int     // as in Churn
}

// restart measures a restart of all other nodes within the duration of a measurement.
func (r *run) restart(ctx context.Context, f *Figures) (err error) {
	r.sink.reset()
	before, err := r.daemon.CPUTime()
	if err != nil {
		return err
	}
	sampling, stop := context.WithCancel(ctx)
	defer stop()
	var work sync.WaitGroup
	work.Go(func() { f.Restart.Sent, f.Restart.Lost = r.sample(sampling) })
	began := time.Now()
	err = r.rewriteAll(ctx)
	f.Restart.Took = time.Since(began)
	stop()
	work.Wait()
	if err != nil {
		return err
	}
	after, err := r.daemon.CPUTime()
	f.Restart.CPU = float64(after-before) / float64(time.Since(began))
	_, f.Restart.Differing = r.settle()
	return err
}

// rewriteAll writes all leases again, a few at a time.
func (r *run) rewriteAll(ctx context.Context) error {
	live, _ := r.cluster.listed()
	steps := int(r.Duration / changeInterval)
	n := min(max(1, (len(live)+steps-1)/steps), maxOps)
	for len(live) > 0 {
		n := min(n, len(live))
		if err := r.cluster.rewrite(live[:n]); err != nil {
			return err
		}
		live = live[n:]
		if err := sleep(ctx, changeInterval); err != nil {
			return err
		}
	}
	return nil
}
