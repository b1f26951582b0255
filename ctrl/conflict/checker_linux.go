package conflict

import (
	"context"
	"fmt"
	"time"

	"weft/ctrl"
)

// Run checks until ctx ends, and returns its error. It works in the network namespace of the
// calling thread.
func (c *Checker) Run(ctx context.Context) error {
	k, err := ctrl.OpenKernel(nil)
	if err != nil {
		return err
	}
	defer k.Close()
	watch := func(ctx context.Context, notify func()) error { return k.Watch(ctx, relevant, notify) }
	// The timer covers a broken subscription.
	notified, wait := ctrl.Notifications(ctx, watch, func(error) {})
	defer wait()
	timer := time.NewTimer(checkInterval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.changed:
		case <-timer.C:
		case <-notified:
			if err := sleep(ctx, settle); err != nil {
				return err
			}
		}
		r, err := c.check(ctx, k)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			c.log.Warn("cannot check the routes of other nodes", "err", err)
		} else {
			c.store(r)
		}
		timer.Reset(checkInterval)
	}
}

// check checks all addresses of the query, in steps.
func (c *Checker) check(ctx context.Context, k *ctrl.Kernel) (*Result, error) {
	c.mu.Lock()
	q := c.query
	c.mu.Unlock()
	var r *round
	for n := 0; n == 0 || n < len(q.Peers); n += peersPerStep {
		if n > 0 {
			if err := sleep(ctx, stepInterval); err != nil {
				return nil, err
			}
		}
		m, err := k.RouteMatcher()
		if err != nil {
			return nil, fmt.Errorf("look up routes: %w", err)
		}
		if r == nil {
			r = newRound(q, m)
			r.targets()
		}
		r.match = m
		r.peers(q.Peers[n:min(n+peersPerStep, len(q.Peers))])
	}
	return &r.Result, nil
}
