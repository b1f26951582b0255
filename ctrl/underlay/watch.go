package underlay

import (
	"context"
	"time"

	"weft/ctrl"
)

// ifaceWatch follows the choice of the underlay interface.
type ifaceWatch struct {
	options  Options
	changed  func(Iface, error)
	choose   func(Options) (Iface, error)
	last     Iface
	lost     time.Time // since when no interface matches; zero while one does
	reported bool      // the loss was reported
}

// run chooses at the start, after each burst of notifications and every period.
func (w *ifaceWatch) run(ctx context.Context, watch ctrl.WatchFunc, period time.Duration) error {
	// the ticker covers a broken subscription
	notified, wait := ctrl.Notifications(ctx, watch, func(error) {})
	defer wait()
	t := time.NewTicker(period)
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
	}
}

// update repeats the choice. After an error the last choice stays.
func (w *ifaceWatch) update() {
	i, err := w.choose(w.options)
	if err != nil {
		w.noMatch(err)
		return
	}
	i.Reason = "" // another reason is not a change
	if !i.Equal(w.last) || w.reported {
		w.changed(i, nil)
	}
	w.last, w.lost, w.reported = i, time.Time{}, false
}

// lossDelay is how long no interface must match before the loss is reported. An interface that
// loses its address for a moment, as when a DHCP client renews it, recovers sooner.
const lossDelay = 5 * time.Second

// noMatch reports a loss once it has lasted for lossDelay.
func (w *ifaceWatch) noMatch(err error) {
	if w.lost.IsZero() {
		w.lost = time.Now()
	}
	if !w.reported && time.Since(w.lost) >= lossDelay {
		w.reported = true
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
		return e.Dst.Bits() == 0 || !ctrl.OverlayName(e.Dev)
	}
	return false
}
