package ctrl

import (
	"context"
	"net/netip"
	"time"
)

// event is what a message of the kernel is about, as far as it takes to see whether it concerns us.
type event struct {
	what    eventKind
	dev     string       // empty if not known any more
	dst     netip.Prefix // of a route
	lasting bool         // of an entry: permanent, or gone
}

type eventKind int

const (
	deviceEvent eventKind = iota
	addrEvent
	routeEvent
	entryEvent // a neighbour or forwarding entry
)

// settleTime is how long a burst of kernel messages may go on before it is acted upon: long enough for the burst of one
// `ip` command or a link flap, short against the second in which a repair has to be done.
const settleTime = 50 * time.Millisecond

// maxSettle bounds the pause after a sign where looking takes long, so that looking takes at most a fifth of the time
// and a repair still starts in half a second.
const maxSettle = 500 * time.Millisecond

// settleAfter is the pause before looking again, when the last look took so long.
func settleAfter(took time.Duration) time.Duration { return min(max(settleTime, 4*took), maxSettle) }

// watchFunc calls changed at the start and on each change; it blocks until ctx ends or the subscription breaks.
type watchFunc func(ctx context.Context, changed func()) error

// pokes runs watch in a goroutine of its own and passes its signs on as a channel of one pending sign. A subscription
// that breaks is reported and opened again after a second, which gives a sign, so that what was missed is found. The
// returned wait blocks until the goroutine has ended.
func pokes(ctx context.Context, watch watchFunc, broke func(error)) (signs <-chan struct{}, wait func()) {
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
			if err := watch(ctx, poke); err != nil && ctx.Err() == nil {
				broke(err)
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
	changed func(Iface, error)
	choose  func(IfaceOptions) (Iface, error)
	last    Iface
	lost    time.Time // since when no interface fits; zero while one does
	told    bool      // that none fits
}

// run looks at the start, after each burst of signs and every period.
func (w *ifaceWatch) run(ctx context.Context, watch watchFunc, period time.Duration) error {
	signs, wait := pokes(ctx, watch, func(error) {}) // the timer stands in
	defer wait()
	t := time.NewTicker(period)
	defer t.Stop()
	took := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		case <-signs:
			pause(ctx, settleAfter(took))
		}
		start := time.Now()
		w.look()
		took = time.Since(start)
	}
}

// look chooses again. An error keeps the last choice.
func (w *ifaceWatch) look() {
	i, err := w.choose(w.options)
	if err != nil {
		w.noneFits(err)
		return
	}
	i.Reason = "" // its wording is not a change
	if i != w.last || w.told {
		w.changed(i, nil)
	}
	w.last, w.lost, w.told = i, time.Time{}, false
}

// ifaceLoss is how long no interface may fit before that is told: an interface that loses its address for a moment, as
// when a DHCP client renews it, comes back sooner.
const ifaceLoss = 5 * time.Second

// noneFits tells once of a loss that lasts.
func (w *ifaceWatch) noneFits(err error) {
	if w.lost.IsZero() {
		w.lost = time.Now()
	}
	if !w.told && time.Since(w.lost) >= ifaceLoss {
		w.told = true
		w.changed(Iface{}, err)
	}
}

// underlayEvent says whether an event may change the choice of an interface: addresses come and go, devices change,
// routes that are not of the overlay.
func underlayEvent(e event) bool {
	switch e.what {
	case deviceEvent, addrEvent:
		return !overlayName(e.dev)
	case routeEvent:
		return e.dst.Bits() == 0 || !overlayName(e.dev)
	}
	return false
}
