package lease

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// Options configure a Manager. The zero value selects the defaults.
type Options struct {
	// RenewMargin is the time before its expiry at which the lease is renewed. The default is 60
	// minutes, as in flannel.
	RenewMargin time.Duration
	// PeerGrace is how long peers are retained after the store's data was wiped or restored, unless
	// they claim again or other nodes claim their subnets. The default is 24 h, the duration of a
	// lease: flannel claims again only when it renews. A negative value retains none.
	PeerGrace time.Duration
	// Log receives a message per change of the lease and one per distinct error. The default is
	// slog.Default().
	Log *slog.Logger
}

const (
	defaultRenewMargin = time.Hour
	defaultPeerGrace   = 24 * time.Hour
)

// State is the complete state of a Manager.
type State struct {
	// Self is this node's lease. It is set from the first time that Held is true. After a loss it
	// keeps the lost lease until another one is claimed.
	Self Lease
	// Held reports whether this node held Self when the store was last read. It becomes true no
	// earlier than the first list, so All is complete then.
	Held bool
	// All holds every lease, including this node's. It does not change while the store is
	// unreachable.
	All      Set
	Revision int64 // of All, in the store
	// Connected reports whether All is kept up to date.
	Connected bool
	// Err is the reason why the lease is not held or the store is not connected; nil if neither
	// applies. It wraps ErrNoSubnet or ErrInUse if the store returned them.
	Err error
}

// Manager holds one lease in a store while Run runs.
type Manager struct {
	store        Store
	options      Options
	attrsChanged chan struct{} // holds one entry while attributes wait to be published

	mu      sync.Mutex // guards request.Attrs
	request Request
}

// NewManager returns a Manager that claims a lease for r from store.
func NewManager(store Store, r Request, o Options) *Manager {
	if o.RenewMargin <= 0 {
		o.RenewMargin = defaultRenewMargin
	}
	if o.PeerGrace == 0 {
		o.PeerGrace = defaultPeerGrace
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Manager{store: store, request: r, options: o, attrsChanged: make(chan struct{}, 1)}
}

// SetAttrs replaces the attributes of the lease, for example after a change of the public IP. It
// returns at once; Run publishes them. It is safe for concurrent use.
func (m *Manager) SetAttrs(a Attrs) {
	m.mu.Lock()
	m.request.Attrs = a
	m.mu.Unlock()
	select {
	case m.attrsChanged <- struct{}{}:
	default: // the pending notification covers a
	}
}

func (m *Manager) currentRequest() Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.request
}

// Run claims the lease, renews it and watches all leases until ctx ends; then it returns nil. Store
// errors do not end it. Run calls report with the complete state after every change, always from
// its own goroutine, and does nothing else until report returns.
func (m *Manager) Run(ctx context.Context, report func(State)) error {
	var watcher sync.WaitGroup
	defer watcher.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := newEventQueue()
	h := newHolder(m, report)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var joining <-chan time.Time // set during the interval after a list
	for watching := false; ; {
		h.step(ctx)
		if !watching && h.held {
			watching = true
			watcher.Go(func() { m.watch(ctx, events) })
		}
		timer.Reset(h.pause(time.Now()))
		ready := events.ready
		if joining != nil {
			ready = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.attrsChanged:
			h.attrsChanged()
		case <-ready:
			for _, e := range events.take() {
				h.handle(e, time.Now())
			}
			joining = time.After(joinInterval)
		case <-joining:
			joining = nil
		case <-timer.C:
		}
	}
}

// watch calls the store's Watch until ctx ends, with a delay after each return.
func (m *Manager) watch(ctx context.Context, events *eventQueue) {
	var b backoff
	for ctx.Err() == nil {
		start := time.Now()
		err := m.store.Watch(ctx, func(s Snapshot) { events.put(event{list: s}) })
		if err == nil {
			err = errors.New("watch ended without an error")
		}
		events.put(event{err: err})
		if time.Since(start) > backoffMax {
			b = backoff{}
		}
		sleep(ctx, b.next())
	}
}

// sleep returns after d or when ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
