package lease

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Options are the settings of a Manager that have defaults.
type Options struct {
	// Margin is how long before its expiry the lease is renewed. Default 60 minutes, as flannel.
	Margin time.Duration
	// Grace is how long peers are kept that are missing from a store whose data was wiped or restored, so that they
	// can claim again. Default 60 s; negative means not at all.
	Grace time.Duration
	// Log tells of what goes on, each distinct message once. Default slog.Default().
	Log *slog.Logger
}

// State is all that a Manager knows.
type State struct {
	// Self is our lease, the last one if it is lost at the moment. It is meaningful once Held was true.
	Self Lease
	// Held says that the store's last word was that Self is ours. It becomes true with the first full list, so All
	// is never empty for want of news when Held is true.
	Held bool
	// All is every lease, our own included. It stays as it was while the store is away. Never modify it.
	All      []Lease
	Revision int64
	// Connected says that All is being kept up to date.
	Connected bool
	// Err says why the lease is not held or the store not connected; nil if all is well.
	Err error
}

// Manager holds one lease in a store.
type Manager struct {
	store   Store
	options Options
	mu      sync.Mutex // guards request.Attrs
	request Request
	changed chan struct{} // one entry: attributes to be published
}

// NewManager makes a Manager that will ask the store for r. Run does the work.
func NewManager(store Store, r Request, o Options) *Manager {
	return &Manager{store: store, request: r, options: o, changed: make(chan struct{}, 1)}
}

// SetAttrs makes the lease say a from now on. It returns at once; Run publishes.
func (m *Manager) SetAttrs(a Attrs) {
	m.mu.Lock()
	m.request.Attrs = a
	m.mu.Unlock()
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// Run claims, holds and watches until ctx ends, then returns nil. report is called from one goroutine.
func (m *Manager) Run(ctx context.Context, report func(State)) error {
	<-ctx.Done()
	return nil
}
