package ctrl

import (
	"context"
	"net/netip"
	"time"
)

// Event describes a netlink notification in enough detail to decide whether it is relevant.
type Event struct {
	Kind      EventKind
	Dev       string       // empty if the device is not known any more
	Dst       netip.Prefix // of a RouteEvent
	Protocol  int          // of a RouteEvent
	Permanent bool         // of a NeighEvent: the entry is permanent, or deleted
	// Object is the route, neighbour or forwarding entry as it is now, or was before its deletion;
	// nil for other events and if the message holds more than one.
	Object  Object
	Deleted bool // Object is gone; a neighbour's MAC is then unset
}

// EventKind is the kind of object that an Event is about.
type EventKind int

// The kinds of an Event.
const (
	LinkEvent EventKind = iota
	AddrEvent
	RouteEvent
	NeighEvent  // a neighbour or forwarding entry
	PolicyEvent // IPsec policies, without details
)

// minDebounce is the pause after a notification: longer than the burst of one `ip` command or a
// link flap, and short against the second within which a repair has to be done.
const minDebounce = 50 * time.Millisecond

// maxDebounce bounds the pause, so that a repair still starts within half a second.
const maxDebounce = 500 * time.Millisecond

// Debounce returns the pause between a notification and reading the kernel, given the duration of
// the last read. Reading takes at most a fifth of the time, up to maxDebounce.
func Debounce(took time.Duration) time.Duration {
	return min(max(minDebounce, 4*took),
		maxDebounce)
}

// WatchFunc calls notify at the start and on each change. It blocks until ctx ends or the
// subscription breaks.
type WatchFunc func(ctx context.Context, notify func()) error

// Notifications runs watch in a goroutine and returns its notifications as a channel with at most
// one pending. A broken subscription is passed to onError and reopened after a second; reopening
// notifies, so that missed changes are found. wait blocks until the goroutine has ended, which
// needs ctx to end.
func Notifications(ctx context.Context, watch WatchFunc,
	onError func(error)) (notified <-chan struct{}, wait func()) {
	c, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := watch(ctx, func() { trigger(c) }); err != nil && ctx.Err() == nil {
				onError(err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
	return c, func() { <-done }
}

// trigger adds a notification to a channel of capacity 1, unless one is pending.
func trigger(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
