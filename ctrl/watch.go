package ctrl

import (
	"context"
	"time"
)

// settle is how long a burst of kernel messages may go on before it is acted upon: long enough for the burst of one
// `ip` command or a link flap, short against the second in which a repair has to be done.
const settle = 50 * time.Millisecond

// watchFunc calls changed at the start and on each change; it blocks until ctx ends or the subscription breaks.
type watchFunc func(ctx context.Context, changed func()) error

// pokes runs watch in a goroutine of its own and passes its signs on as a channel of one pending sign. A broken
// subscription is opened again after a second. The returned wait blocks until the goroutine has ended.
func pokes(ctx context.Context, watch watchFunc) (signs <-chan struct{}, wait func()) {
	c, done := make(chan struct{}, 1), make(chan struct{})
	poke := func() {
		select {
		case c <- struct{}{}:
		default:
		}
	}
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := watch(ctx, poke); err != nil {
				poke() // what was lost in between is found by looking
			}
			pause(ctx, time.Second)
		}
	}()
	return c, func() { <-done }
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// ifaceWatch follows the choice of the underlay interface.
type ifaceWatch struct {
	options IfaceOptions
	changed func(Iface)
	view    func() (netView, error)
	reach   reachFunc
	last    Iface
}

// run looks at the start, after each burst of signs and every period.
func (w *ifaceWatch) run(ctx context.Context, watch watchFunc, period time.Duration) error {
	signs, wait := pokes(ctx, watch)
	defer wait()
	t := time.NewTicker(period)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		case <-signs:
			pause(ctx, settle)
		}
		w.look()
	}
}

// look chooses again. An error keeps the last choice: an interface that lost its address for a moment comes back.
func (w *ifaceWatch) look() {
	v, err := w.view()
	if err != nil {
		return
	}
	i, err := choose(w.options, v, w.reach)
	if err != nil {
		return
	}
	i.Reason = "" // its wording is not a change
	if i != w.last {
		w.last = i
		w.changed(i)
	}
}
