package cloud

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// provider is the API of a cloud. One goroutine uses it.
type provider interface {
	// locate finds this instance and the route tables in which its routes belong. It drops
	// credentials and answers that it has kept from earlier.
	locate(ctx context.Context, n Node) (place, error)
	// routes lists the routes of a table to some destinations, or all if none are given; more than
	// those are welcome. Routes that pods cannot have are left out.
	routes(ctx context.Context, table string, dsts []netip.Prefix) ([]route, error)
	// create makes a route to this instance.
	create(ctx context.Context, table string, dst netip.Prefix) error
	// remove removes a route. That there is none is no error.
	remove(ctx context.Context, table string, r route) error
}

// replacer is a provider that can make a route lead to this instance without removing it first.
type replacer interface {
	replace(ctx context.Context, table string, dst netip.Prefix) error
}

// place is the result of provider.locate.
type place struct {
	tables []string
	notes  []string // for the operator
}

// pace holds the times of a Manager.
type pace struct {
	interval   time.Duration // between checks of routes that are in place
	relocate   time.Duration // after which the instance and tables are looked for again
	settle     time.Duration // for which a created route need not be listed
	retry, max time.Duration // after the first error, and at most
}

func defaultPace() pace {
	return pace{
		interval: time.Minute,
		relocate: 10 * time.Minute,
		settle:   30 * time.Second,
		retry:    time.Second, max: time.Minute,
	}
}

// Manager keeps the routes of this node in place. Create it with New.
type Manager struct {
	name     string
	provider provider
	log      *slog.Logger
	pace     pace
	calls    *calls
	wake     chan struct{}

	// fields of the goroutine of Run
	place   place
	located time.Time             // zero: place is not valid
	created map[created]time.Time // routes of which the cloud has accepted the creation
	listed  map[string]bool       // tables that were listed as a whole since the place was found
	lost    map[created]int       // how often a route in place was found to lead to another node

	mu     sync.Mutex
	node   Node
	status Status
}

// created names a route.
type created struct {
	table string
	dst   netip.Prefix
}

// Status is the state of the routes.
type Status struct {
	Provider    string
	RouteTables []string
	InPlace     bool      // all routes were in all tables when they were last read
	Since       time.Time // of InPlace
	Checked     time.Time // last time that all tables could be read
	Err         error     // of the last check
	Notes       []string  // for the operator
	Calls       []Calls   // by name
}

// endpoints overrides the addresses of a cloud's services in tests.
type endpoints struct {
	api, metadata string
}

// New returns a Manager for the provider that the config names. It calls nothing.
func New(c Config, log *slog.Logger) (*Manager, error) {
	return newManager(c, log, endpoints{})
}

func newManager(c Config, log *slog.Logger, e endpoints) (*Manager, error) {
	m := &Manager{
		name: c.Provider, log: log.With("provider", c.Provider), pace: defaultPace(),
		calls: &calls{}, wake: make(chan struct{}, 1), created: map[created]time.Time{},
		lost: map[created]int{},
	}
	var err error
	switch client := newClient(m.calls); c.Provider {
	case AWS:
		m.provider, err = newAWS(c, client, e)
	case GCE:
		m.provider, err = newGCE(c, client, e)
	case Alibaba:
		m.provider, err = newAlibaba(c, client, e)
	case Tencent:
		m.provider, err = newTencent(c, client, e)
	default:
		err = fmt.Errorf("unknown cloud %q", c.Provider)
	}
	return m, err
}

// Set passes the wanted state on. It does not block.
func (m *Manager) Set(n Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.node.Equal(n) {
		return
	}
	m.node = n
	m.status.InPlace, m.status.Since = false, time.Now()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Status returns the current state.
func (m *Manager) Status() Status {
	m.mu.Lock()
	s := m.status
	m.mu.Unlock()
	s.Provider = m.name
	m.calls.mu.Lock()
	defer m.calls.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.calls.byName)) {
		c := *m.calls.byName[name]
		c.Errors = maps.Clone(c.Errors)
		s.Calls = append(s.Calls, c)
	}
	return s
}

// Run keeps the routes in place until ctx is done. The routes stay.
func (m *Manager) Run(ctx context.Context) error {
	attempt := 0
	var node Node
	for {
		m.mu.Lock()
		changed := !m.node.Equal(node)
		node = m.node
		m.mu.Unlock()
		if changed {
			m.located, attempt = time.Time{}, 0
			clear(m.created)
			clear(m.lost)
		}
		delay := m.pace.interval * time.Duration(90+rand.IntN(20)) / 100
		if len(node.Subnets) > 0 {
			inPlace, err := m.check(ctx, node)
			if ctx.Err() != nil {
				return nil
			}
			m.report(node, inPlace, err)
			if err != nil {
				delay = m.delay(attempt, err)
				attempt++
			} else {
				attempt = 0
			}
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-m.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// delay returns the time until the next attempt: it doubles, and half of it is random, so that the
// nodes of a cluster do not come back together.
func (m *Manager) delay(attempt int, err error) time.Duration {
	d := min(m.pace.retry<<min(attempt, 16), m.pace.max)
	d = d/2 + rand.N(d/2+1)
	var e *Error
	if errors.As(err, &e) {
		d = max(d, min(e.RetryAfter, m.pace.max))
	}
	return d
}

// outcome is what a check found out about the routes.
type outcome int

const (
	unknown outcome = iota // the tables could not be read
	absent
	inPlace
)

// check reads the tables and makes the changes that they need.
func (m *Manager) check(ctx context.Context, n Node) (outcome, error) {
	if m.located.IsZero() || time.Since(m.located) > m.pace.relocate {
		p, err := m.provider.locate(ctx, n)
		if err != nil {
			m.located = time.Time{}
			return unknown, err
		}
		m.place, m.located, m.listed = p, time.Now(), map[string]bool{}
	}
	result := inPlace
	var errs []error
	for _, table := range m.place.tables {
		o, err := m.checkTable(ctx, table, n)
		result = min(result, o)
		if err != nil {
			errs = append(errs, err)
		}
	}
	err := errors.Join(errs...)
	if k := kindOf(err); err != nil && k != Throttled && k != Pending {
		m.located = time.Time{} // credentials or the place may have changed
	}
	return result, err
}

// checkTable reads a table, makes its changes and reads it again.
func (m *Manager) checkTable(ctx context.Context, table string, n Node) (outcome, error) {
	have, err := m.read(ctx, table, n)
	if err != nil {
		return unknown, inTable(table, err)
	}
	list := changes(have, n)
	if len(list) == 0 {
		return inPlace, nil
	}
	for _, c := range list {
		if err := m.apply(ctx, table, c); err != nil {
			if slices.ContainsFunc(list, change.adds) {
				return absent, inTable(table, err)
			}
			return inPlace, inTable(table, err)
		}
	}
	if have, err = m.list(ctx, table, nil); err != nil {
		return absent, inTable(table, err)
	}
	if len(changes(have, n)) > 0 {
		return absent, inTable(table, pending("the routes are accepted, but not listed yet"))
	}
	m.listed[table] = true
	return inPlace, nil
}

// read reads the routes that decide on changes. The routes to the subnets of the node do, unless
// one of them is not in place; those of former leases are looked for once per place.
func (m *Manager) read(ctx context.Context, table string, n Node) ([]route, error) {
	if m.listed[table] {
		have, err := m.list(ctx, table, n.Subnets)
		if err != nil || len(changes(have, n)) == 0 {
			return have, err
		}
	}
	have, err := m.list(ctx, table, nil)
	m.listed[table] = err == nil && len(changes(have, n)) == 0
	return have, err
}

// list lists routes, each one once: pages of a list that changes meanwhile may overlap.
func (m *Manager) list(ctx context.Context, table string, dsts []netip.Prefix) ([]route, error) {
	have, err := m.provider.routes(ctx, table, dsts)
	type key struct {
		dst netip.Prefix
		id  string
	}
	seen := map[key]bool{}
	return slices.DeleteFunc(have, func(r route) bool {
		k := key{r.dst, r.id}
		again := seen[k]
		seen[k] = true
		return again
	}), err
}

// inTable adds the table to an error.
func inTable(table string, err error) error {
	return fmt.Errorf("route table %s: %w", table, err)
}

// apply makes a change. It leaves a route alone that the cloud has accepted a moment ago: lists may
// be older than that.
func (m *Manager) apply(ctx context.Context, table string, c change) error {
	if !c.adds() {
		m.log.Info("removing a route", "table", table, "destination", c.old.dst,
			"target", c.old.target)
		return m.provider.remove(ctx, table, *c.old)
	}
	key := created{table, c.dst}
	if at, ok := m.created[key]; ok && time.Since(at) < m.pace.settle {
		return pending("the route to %v is accepted, but not listed yet", c.dst)
	}
	if err := m.put(ctx, key, c.old); err != nil {
		return err
	}
	m.created[key] = time.Now()
	m.log.Info("route created", "table", table, "destination", c.dst)
	return nil
}

// put makes a route lead to this node, in place of old unless that is nil.
func (m *Manager) put(ctx context.Context, key created, old *route) error {
	if old == nil {
		return m.provider.create(ctx, key.table, key.dst)
	}
	m.log.Warn("replacing a route that does not lead to this node", "table", key.table,
		"destination", key.dst, "target", old.target)
	if _, had := m.created[key]; had && old.usable && !old.local {
		m.lost[key]++
	}
	if r, ok := m.provider.(replacer); ok && old.usable {
		return r.replace(ctx, key.table, key.dst)
	}
	if err := m.provider.remove(ctx, key.table, *old); err != nil {
		return err
	}
	return m.provider.create(ctx, key.table, key.dst)
}

// notes returns what the operator should know.
func (m *Manager) notes() []string {
	notes := slices.Clone(m.place.notes)
	for key, times := range m.lost {
		if times > 1 {
			notes = append(notes, fmt.Sprintf("another program takes the route to %v in route table %s: "+
				"does another node have this subnet, in this cluster or another one?", key.dst, key.table))
		}
	}
	slices.Sort(notes)
	return notes
}

// report updates the status and logs changes.
func (m *Manager) report(n Node, o outcome, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.node.Equal(n) {
		return // the next check is due
	}
	s := &m.status
	now := time.Now()
	notes := m.notes()
	for _, note := range notes {
		if !slices.Contains(s.Notes, note) {
			m.log.Warn("note on the cloud's routes", "note", note)
		}
	}
	s.RouteTables, s.Notes = m.place.tables, notes
	switch {
	case err != nil && (s.Err == nil || s.Err.Error() != err.Error()):
		m.log.Warn("cannot check or change the cloud's routes", "err", err)
	case err == nil && (s.Err != nil || s.Checked.IsZero()):
		m.log.Info("routes of this node are in place", "tables", strings.Join(s.RouteTables, " "))
	}
	s.Err = err
	if o == unknown {
		return // as far as is known, they are where they were
	}
	s.Checked = now
	if is := o == inPlace; is != s.InPlace {
		s.InPlace, s.Since = is, now
	}
}
