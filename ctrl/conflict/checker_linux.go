package conflict

import (
	"context"
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
	newMatcher := func() (matcher, error) { return k.RouteMatcher() }
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
		drain(c.changed, notified) // a check covers all that happened before it
		began := time.Now()
		r, err := c.check(ctx, newMatcher)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			c.log.Warn("cannot check the routes of other nodes", "err", err)
		} else {
			c.store(r)
		}
		timer.Reset(max(checkInterval, checkPause*time.Since(began)))
	}
}

// drain empties the channels.
func drain(channels ...<-chan struct{}) {
	for _, c := range channels {
		select {
		case <-c:
		default:
		}
	}
}
