package ike

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/strongswan/govici/vici"

	"weft/ctrl"
)

const (
	// interval is the time between two comparisons without an event.
	interval = 2 * time.Second
	// Back-off of a charon that ends or cannot be started.
	minRestart = time.Second
	maxRestart = 30 * time.Second
	// Back-off of a negotiation that fails.
	minInitiate = 3 * time.Second
	maxInitiate = time.Minute
	// eventQueue is the number of charon's events that may wait; more are lost, which delays the
	// comparison until interval has passed.
	eventQueue = 1024
)

// Manager runs charon. Set and Status are safe for concurrent use with Run.
type Manager struct {
	log     *slog.Logger
	changed chan struct{}

	mu       sync.Mutex
	settings ctrl.IKE
	wanted   map[string]ctrl.Association // by connection name
	status   Status
}

// New makes a manager. It does nothing before Run. log may be nil.
func New(log *slog.Logger) *Manager {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Manager{log: log, changed: make(chan struct{}, 1),
		status: Status{Peers: map[ctrl.Association]Peer{}, Err: errors.New("not started yet")}}
}

// Set replaces the wanted associations.
func (m *Manager) Set(s ctrl.IKE, all []ctrl.Association) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.settings, m.wanted = s, make(map[string]ctrl.Association, len(all))
	peers := make(map[ctrl.Association]Peer, len(all))
	for _, a := range all {
		m.wanted[connName(a)] = a
		peers[a] = m.status.Peers[a]
	}
	m.status.Peers = peers
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// Status returns the current state.
func (m *Manager) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.status
	s.Peers = maps.Clone(s.Peers)
	return s
}

// Run keeps charon running until ctx ends, and returns its error.
func (m *Manager) Run(ctx context.Context) error {
	backoff := minRestart
	for {
		start := time.Now()
		err := m.runOnce(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		m.fail(err)
		if time.Since(start) > maxRestart {
			backoff = minRestart
		}
		m.log.Error("charon does not run, retrying", "err", err, "in", backoff)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxRestart)
	}
}

// fail records that charon does not run.
func (m *Manager) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.Err, m.status.Version, m.status.PID = err, "", 0
	for a, p := range m.status.Peers {
		p.Established = time.Time{}
		m.status.Peers[a] = p
	}
}

// runOnce runs charon until it ends, a command fails or ctx ends.
func (m *Manager) runOnce(ctx context.Context) (err error) {
	process, err := startCharon(m.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, process.kill()) }()
	c, err := process.connect(ctx)
	if err != nil {
		return err
	}
	defer c.session.Close()
	if err := c.listen(); err != nil {
		return err
	}
	listener, err := process.connect(ctx)
	if err != nil {
		return err
	}
	defer listener.session.Close()
	events := make(chan vici.Event, eventQueue)
	listener.session.NotifyEvents(events)
	if err := listener.session.Subscribe("ike-updown", "child-updown", "child-rekey",
		"log"); err != nil {
		return err
	}
	version, err := c.version(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	if !m.status.Since.IsZero() {
		m.status.Restarts++
	}
	m.status.Charon, m.status.Version, m.status.PID = process.path, version, process.pid
	m.status.Since = time.Now()
	m.mu.Unlock()
	m.log.Info("charon started", "path", process.path, "version", version, "pid", process.pid)
	return m.serve(ctx, process, c, events)
}

// serve keeps the associations.
func (m *Manager) serve(
	ctx context.Context, process *charon, c client, events <-chan vici.Event,
) error {
	k := &keeper{manager: m, client: c, loaded: map[string]ctrl.Association{},
		attempts: map[string]attempt{}}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := k.compare(ctx)
		if ctx.Err() == nil {
			m.mu.Lock()
			m.status.Err = err
			m.mu.Unlock()
		}
		for wait := true; wait; {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-process.ended:
				return process.endError()
			case <-m.changed:
				wait = false
			case <-tick.C:
				wait = false
			case e, open := <-events:
				if !open {
					return errors.New("charon closed the connection")
				}
				wait = !m.onEvent(e)
			}
		}
	}
}

// onEvent handles an event. It reports whether associations may have changed.
func (m *Manager) onEvent(e vici.Event) bool {
	switch e.Name {
	case "log":
		m.onMessage(e)
		return false
	case "child-rekey":
		m.onRekey(e)
	}
	return true
}

// onMessage records why an association cannot be had.
func (m *Manager) onMessage(e vici.Event) {
	name, _ := e.Message.Get("ikesa-name").(string)
	text, _ := e.Message.Get("msg").(string)
	s, ok := explain(text)
	if !ok {
		return
	}
	m.update(name, func(p *Peer) {
		if p.Err != s.reason {
			m.log.Warn("no security association", "connection", name, "reason", s.reason)
		}
		p.Err, p.ErrAt, p.Refused = s.reason, e.Timestamp, s.refused
	})
}

// onRekey counts a replacement of keys. The message has a section with the connection's name.
func (m *Manager) onRekey(e vici.Event) {
	for _, name := range e.Message.Keys() {
		m.update(name, func(p *Peer) { p.Rekeys, p.Rekeyed = p.Rekeys+1, e.Timestamp })
	}
}

// update changes the state of the peer with that connection, if it is wanted.
func (m *Manager) update(name string, change func(*Peer)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.wanted[name]
	if !ok {
		return
	}
	p := m.status.Peers[a]
	change(&p)
	m.status.Peers[a] = p
}

// keeper keeps the associations of one run of charon.
type keeper struct {
	manager *Manager
	client
	settings ctrl.IKE                    // loaded
	loaded   map[string]ctrl.Association // connections
	attempts map[string]attempt          // to establish those that are missing
}

// attempt is the time of the next negotiation and the pause after it.
type attempt struct {
	at    time.Time
	pause time.Duration
}

// compare loads what is missing in charon, removes what is not wanted and starts negotiations.
func (k *keeper) compare(ctx context.Context) error {
	m := k.manager
	m.mu.Lock()
	settings, wanted := m.settings, m.wanted
	m.mu.Unlock()
	if len(wanted) == 0 && len(k.loaded) == 0 {
		return nil
	}
	if settings != k.settings {
		if err := k.loadKey(ctx, settings.PSK); err != nil {
			return err
		}
		k.settings = settings
	}
	for name, a := range k.loaded {
		if _, ok := wanted[name]; ok {
			continue
		}
		if err := k.unload(ctx, a); err != nil {
			return err
		}
		delete(k.loaded, name)
		delete(k.attempts, name)
	}
	for name, a := range wanted {
		if _, ok := k.loaded[name]; ok {
			continue
		}
		if err := k.load(ctx, a, settings); err != nil {
			return err
		}
		k.loaded[name] = a
	}
	return k.establish(ctx, wanted)
}

// establish records the state of the wanted associations, and starts those that are missing.
func (k *keeper) establish(ctx context.Context, wanted map[string]ctrl.Association) error {
	states, err := k.list(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	for name, a := range wanted {
		f := states[name]
		k.manager.update(name, func(p *Peer) {
			p.Established, p.Encap = f.established, f.encap
			if f.installed {
				p.Err, p.ErrAt, p.Refused = "", time.Time{}, false
			}
		})
		if f.installed {
			delete(k.attempts, name)
			continue
		}
		if f.connecting || !k.due(name, a, now) {
			continue
		}
		if err := k.initiate(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// due reports whether to negotiate now. The node with the lower address begins, so that two nodes
// rarely begin at once and end up with two associations; the other one waits before its first
// attempt.
func (k *keeper) due(name string, a ctrl.Association, now time.Time) bool {
	t, known := k.attempts[name]
	if !known {
		t = attempt{at: now, pause: minInitiate}
		if a.Remote.Less(a.Local) {
			t.at = now.Add(minInitiate)
		}
	}
	due := !now.Before(t.at)
	if due {
		t.at = now.Add(t.pause + rand.N(t.pause/2))
		t.pause = min(2*t.pause, maxInitiate)
	}
	k.attempts[name] = t
	return due
}
