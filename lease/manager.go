package lease

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// Options are the settings of a Manager, all of which have defaults.
type Options struct {
	// RenewMargin is how long before its expiry the lease is renewed. Default 60 minutes, flannel's.
	RenewMargin time.Duration
	// PeerGrace is how long peers are kept that are missing from a store whose data was wiped or restored, unless they or
	// others claim their subnets before. Default 24 h, the life of a lease: a flannel claims again no sooner than when
	// it renews. Negative means not at all.
	PeerGrace time.Duration
	// Log is told of every turn, and of each distinct trouble once. Default slog.Default().
	Log *slog.Logger
}

const (
	defaultMargin = time.Hour
	defaultGrace  = 24 * time.Hour
)

// State is all that a Manager knows.
type State struct {
	// Self is our lease. It stays as it was while the lease is lost, until another subnet is ours. It is set from the
	// first time that Held is true.
	Self Lease
	// Held says that Self was ours by the store's last word. It becomes true with the first list and not before, so
	// All is complete then.
	Held bool
	// All is every lease, our own included, ordered by subnet. It stays as it was while the store is away. It is
	// shared and must not be changed.
	All      []Lease
	Revision int64 // of All, in the store
	// Connected says that All is kept up to date.
	Connected bool
	// Err says why the lease is not held or the store not connected; nil if all is well. Its kind is ErrNoSubnet or
	// ErrInUse where the store answered so.
	Err error
}

// Manager holds one lease in a store for as long as Run runs.
type Manager struct {
	store   Store
	options Options
	changed chan struct{} // holds one entry when attributes wait to be published

	mu      sync.Mutex // guards request.Attrs
	request Request
}

// NewManager makes a Manager that will ask store for r.
func NewManager(store Store, r Request, o Options) *Manager {
	if o.RenewMargin <= 0 {
		o.RenewMargin = defaultMargin
	}
	if o.PeerGrace == 0 {
		o.PeerGrace = defaultGrace
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Manager{store: store, request: r, options: o, changed: make(chan struct{}, 1)}
}

// SetAttrs makes the lease say a from now on, for instance because the public IP changed. It returns at once; Run
// publishes it. It may be called from any goroutine.
func (m *Manager) SetAttrs(a Attrs) {
	m.mu.Lock()
	m.request.Attrs = a
	m.mu.Unlock()
	select {
	case m.changed <- struct{}{}:
	default: // one is waiting already, and it will read a
	}
}

func (m *Manager) wanted() Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.request
}

// Run claims the lease, holds it and watches all others until ctx ends; then it returns nil. No trouble with the
// store ends it. report gets the whole state after every change, always from the goroutine that called Run, and
// holds up everything else while it runs.
func (m *Manager) Run(ctx context.Context, report func(State)) error {
	var watcher sync.WaitGroup
	defer watcher.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan event)
	h := newHolder(m, report)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for watching := false; ; {
		h.step(ctx)
		if !watching && h.held {
			watching = true
			watcher.Go(func() { m.watch(ctx, events) })
		}
		timer.Reset(h.pause(time.Now()))
		select {
		case <-ctx.Done():
			return nil
		case <-m.changed:
			h.attrsChanged()
		case e := <-events:
			h.take(e, time.Now())
		case <-timer.C:
		}
	}
}

// event is what the watching goroutine tells Run: a list, or why the watch ended.
type event struct {
	list Snapshot
	err  error
}

// watch keeps a Watch of the store running, with a pause after each that ended.
func (m *Manager) watch(ctx context.Context, events chan<- event) {
	send := func(e event) {
		select {
		case events <- e:
		case <-ctx.Done():
		}
	}
	var b backoff
	for ctx.Err() == nil {
		start := time.Now()
		err := m.store.Watch(ctx, func(s Snapshot) { send(event{list: s}) })
		if err == nil {
			err = errors.New("the watch ended without a word")
		}
		send(event{err: err})
		if time.Since(start) > backoffMax {
			b = backoff{}
		}
		wait(ctx, b.next())
	}
}

// wait sleeps until d has passed or ctx has ended.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
