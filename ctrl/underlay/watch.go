package underlay

import (
	"context"
	"time"

	"weft/ctrl"
)

// ifaceWatch follows the choice of the underlay interface.
type ifaceWatch struct {
	options Options
	inUse   func() Iface // zero: none
	changed func(Iface, error)
	choose  func(o Options, inUse Iface) (Iface, error)
	last    Iface     // last reported
	lost    time.Time // since when the interface in use is gone or worse; zero while it is not
	// lossReported is set once changed was called with an error, until it is called without
	lossReported bool
}

// run chooses at the start, after each burst of notifications and every period.
func (w *ifaceWatch) run(ctx context.Context, watch ctrl.WatchFunc, period time.Duration) error {
	// the timer covers a broken subscription
	notified, wait := ctrl.Notifications(ctx, watch, func(error) {})
	defer wait()
	t := time.NewTimer(period)
	defer t.Stop()
	took := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		case <-notified:
			select {
			case <-ctx.Done():
			case <-time.After(ctrl.Debounce(took)):
			}
		}
		start := time.Now()
		w.update()
		took = time.Since(start)
		t.Reset(w.next(period))
	}
}

// next returns the time until the next choice without a notification.
func (w *ifaceWatch) next(period time.Duration) time.Duration {
	if left := lossDelay - time.Since(w.lost); !w.lost.IsZero() && left > 0 {
		return left
	}
	return period
}

// lossDelay is how long the interface in use must be gone before another one or a worse address
// replaces it, or its loss is reported. An interface that loses its address for a moment, as when a
// DHCP client renews it, recovers sooner.
const lossDelay = 5 * time.Second

// update repeats the choice. After an error the last choice stays.
func (w *ifaceWatch) update() {
	inUse := w.inUse()
	i, err := w.choose(w.options, inUse)
	if err != nil || inUse.Name != "" && setback(inUse, i) {
		if w.lost.IsZero() {
			w.lost = time.Now()
		}
		if time.Since(w.lost) < lossDelay {
			return
		}
	} else {
		w.lost = time.Time{}
	}
	switch {
	case err == nil && i.Equal(w.last) && i.Note == w.last.Note && !w.lossReported:
	case err == nil:
		w.last, w.lossReported = i, false
		w.changed(i, nil)
	case !w.lossReported:
		w.lossReported = true
		w.changed(Iface{}, err)
	}
}

// relevant reports whether an event may change the choice: addresses and devices, and routes
// outside the overlay.
func relevant(e ctrl.Event) bool {
	switch e.Kind {
	case ctrl.LinkEvent, ctrl.AddrEvent:
		return !ctrl.OverlayName(e.Dev)
	case ctrl.RouteEvent:
		return e.Protocol != ctrl.RouteProtocol &&
			(e.Dst.Bits() == 0 || !ctrl.OverlayName(e.Dev))
	}
	return false
}
