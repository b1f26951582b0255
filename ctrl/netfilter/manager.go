package netfilter

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Options configures a Manager. The zero value is ready for use.
type Options struct {
	Log    *slog.Logger  // nil discards all messages
	Resync time.Duration // period of the comparison with the kernel; 0 means 5 s, flannel's default
	// Previous holds the networks and subnets of earlier runs of this daemon, whose rules are
	// removed.
	Previous []netip.Prefix
}

const (
	defaultResync = 5 * time.Second
	// settleTime is the time from a report of a change to the comparison. A change of several rules
	// arrives as several reports.
	settleTime = 20 * time.Millisecond
	// burst is the number of comparisons that reports may cause at once; then they may cause one
	// per second. That bounds the load on hosts where another program undoes each repair.
	burst = 10
)

// Status is the result of the last comparison of the kernel's rules with the wanted ones.
type Status struct {
	InPlace bool      // exactly the wanted rules exist; false from a changing Set until applied
	Since   time.Time // time of the last change of InPlace
	Mode    Mode      // mechanism that carries the rules
	Err     error     // why the rules are not in place; nil if they are, and before the first Set
	Notes   []string  // conditions that the operator should know, not errors; owned by the caller
	// Blocked describes other programs' chains that drop forwarded packets of pods although the
	// rules are in place, with the remedy.
	Blocked []string
	Repairs uint64 // number of times that rules in place were found changed and repaired
}

// errorsDropped ends the note about a chain that drops ICMP errors in state INVALID.
const errorsDropped = " would drop ICMP errors about untracked packets, " +
	"which path MTU discovery needs"

// DropsErrors returns the note about a chain that drops ICMP errors about untracked packets, or ""
// if there is none.
func (s Status) DropsErrors() string {
	for _, note := range s.Notes {
		if strings.HasSuffix(note, errorsDropped) {
			return note
		}
	}
	return ""
}

// applier sets rules with one mechanism, iptables or nftables.
type applier interface {
	// apply makes the kernel hold exactly the wanted rules among this daemon's.
	apply(ctx context.Context, want map[family]ruleset) (report, error)
	mode() Mode
}

// host gives access to the packet filters of the machine.
type host interface {
	// open returns an applier for the wanted rules; nftables requests the one for nftables.
	open(ctx context.Context, nftables bool, want map[family]ruleset) (applier, error)
	// removeElsewhere removes this daemon's rules from all places that current does not manage.
	// Other daemons' rules stay.
	removeElsewhere(ctx context.Context, current applier, otherDaemon func(rule) bool) error
	// watch calls changed after each change that may concern the rules, until ctx ends. It misses
	// the changes that the kernel does not report.
	watch(ctx context.Context, changed func()) error
}

// report is the result of applying rules.
type report struct {
	changes []string // descriptions of the changes made; empty if all rules were in place
	notes   []string // see Status.Notes
	blocked []string // see Status.Blocked
}

// add appends more to r. Both families may report the same note, which is kept once.
func (r *report) add(more report) {
	r.changes = append(r.changes, more.changes...)
	r.blocked = append(r.blocked, more.blocked...)
	for _, note := range more.notes {
		if !slices.Contains(r.notes, note) {
			r.notes = append(r.notes, note)
		}
	}
}

// optionalTables holds the reasons why rules of optional tables are not supported.
type optionalTables map[string]error

// isOptional reports whether a host works without the rules of a table.
func isOptional(table string) bool { return table == tableRaw || table == tableMangle }

// notes returns the consequences for the operator.
func (o optionalTables) notes() (notes []string) {
	if err := o[tableRaw]; err != nil {
		notes = append(notes, fmt.Sprintf("tunnel packets stay in connection tracking: %v", err))
	}
	if err := o[tableMangle]; err != nil {
		notes = append(notes, fmt.Sprintf("pods can send to the tunnel ports of nodes: %v", err))
	}
	return notes
}

// Manager keeps the host's rules equal to the Desired of the last Set. Set and Status may be called
// concurrently with Run.
type Manager struct {
	host   host
	log    *slog.Logger
	resync time.Duration
	notify chan struct{} // wakes Run after a Set
	events chan struct{} // wakes Run after a change that the kernel reports

	mu      sync.Mutex
	want    Desired
	set     bool // Set was called
	changed bool // want differs from current
	status  Status

	// The fields below belong to Run.

	current Desired
	// previous holds this daemon's earlier networks and subnets whose rules may remain. It is
	// cleared once they are removed, because another daemon may use those networks later.
	previous  []netip.Prefix
	applier   applier         // nil until opened
	mode      Mode            // mode of the last applier
	cleanedUp bool            // this daemon has no rules outside of applier
	logged    map[string]bool // messages logged since they first occurred; see logOnce
}

func newManager(h host, o Options) *Manager {
	m := &Manager{host: h, log: o.Log, resync: o.Resync, notify: make(chan struct{}, 1),
		events: make(chan struct{}, 1), logged: map[string]bool{}}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if m.resync <= 0 {
		m.resync = defaultResync
	}
	for _, p := range o.Previous {
		m.previous = append(m.previous, p.Masked())
	}
	m.status.Since = time.Now()
	return m
}

// Set replaces the wanted rules. The manager takes ownership of the slices in d. Setting the same
// value again has no effect.
func (m *Manager) Set(d Desired) {
	m.mu.Lock()
	same := m.set && m.want.equal(d)
	if !same {
		m.want, m.set, m.changed = d, true, true
		m.setStatus(Status{Mode: m.status.Mode, Repairs: m.status.Repairs})
	}
	m.mu.Unlock()
	if same {
		return
	}
	wake(m.notify)
}

func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Status returns the result of the last comparison.
func (m *Manager) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.status
	s.Notes, s.Blocked = slices.Clone(s.Notes), slices.Clone(s.Blocked)
	return s
}

// Run applies the wanted rules until ctx ends, and returns ctx's error. It compares them with the
// kernel's after each change that the kernel reports, and at intervals for others. It does nothing
// before the first Set, and leaves the rules in place when it returns.
func (m *Manager) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-m.notify:
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		m.watch(ctx)
	}()
	defer func() { <-watched }()
	ticker := time.NewTicker(m.resync)
	defer ticker.Stop()
	limit := rate.NewLimiter(1, burst)
	for {
		m.reconcileOnce(ctx)
		if !m.await(ctx, ticker.C, limit) {
			return ctx.Err()
		}
	}
}

// watch wakes Run after changes that the kernel reports.
func (m *Manager) watch(ctx context.Context) {
	err := m.host.watch(ctx, func() { wake(m.events) })
	if ctx.Err() == nil {
		m.log.Warn("packet filter rules are compared at intervals only",
			"interval", m.resync, "err", err)
	}
}

// await waits until the rules should be compared again. It reports false if ctx ends first.
func (m *Manager) await(ctx context.Context, tick <-chan time.Time, limit *rate.Limiter) bool {
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return false
		case <-m.notify:
			return true
		case <-tick:
			return true
		case <-settled:
			return true
		case <-m.events:
			if settled == nil && limit.Allow() {
				settled = time.After(settleTime)
			}
		}
	}
}

// setStatus replaces the status and updates Since. The caller holds mu.
func (m *Manager) setStatus(s Status) {
	s.Since = m.status.Since
	if s.InPlace != m.status.InPlace {
		s.Since = time.Now()
	}
	m.status = s
}

// reconcileOnce compares and repairs the rules once, and records the result in the status.
func (m *Manager) reconcileOnce(ctx context.Context) {
	m.mu.Lock()
	before := m.status
	if m.changed {
		m.previous = append(m.previous, prefixes(m.current.Nets)...)
		m.current, m.changed, m.applier = m.want, false, nil
	}
	m.mu.Unlock()

	r, err := m.apply(ctx)
	if ctx.Err() != nil {
		return // an interrupted attempt says nothing about the host
	}
	now := Status{
		InPlace: err == nil, Mode: m.mode, Err: err, Notes: r.notes, Blocked: r.blocked,
		Repairs: before.Repairs,
	}
	repaired := len(r.changes) > 0 && before.InPlace
	if repaired {
		now.Repairs++
	}
	m.logResult(now, r.changes, repaired)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.changed {
		now.InPlace = false // the result is for an outdated Desired
	}
	m.setStatus(now)
}

// apply makes one attempt. After a failure the next attempt opens a new applier, because programs
// may have been installed or removed.
func (m *Manager) apply(ctx context.Context) (report, error) {
	if err := m.current.validate(); err != nil {
		return report{}, err
	}
	want := m.current.rulesets(m.previous)
	if m.applier == nil {
		a, err := m.host.open(ctx, m.current.NFTables, want)
		if err != nil {
			return report{}, err
		}
		m.applier, m.mode, m.cleanedUp = a, a.mode(), false
	}
	r, err := m.applier.apply(ctx, want)
	if err != nil {
		m.applier = nil
		return r, err
	}
	// Remove the rules of the other mechanism last: they serve until these are in place.
	if !m.cleanedUp {
		err := m.host.removeElsewhere(ctx, m.applier, want[ipv4].otherDaemon)
		if err != nil {
			r.notes = append(r.notes, fmt.Sprintf("rules of an earlier run may remain: %v", err))
		} else {
			m.cleanedUp, m.previous = true, nil
		}
	}
	if len(r.blocked) > 0 {
		m.applier = nil // the host may use another variant of iptables now
	}
	return r, nil
}

// logResult logs every change, and each distinct error and note once while it lasts.
func (m *Manager) logResult(now Status, changes []string, repaired bool) {
	if len(changes) > 0 {
		level, message := slog.LevelInfo, "packet filter rules set"
		if repaired {
			level, message = slog.LevelWarn, "packet filter rules repaired"
		}
		m.log.Log(context.Background(), level, message,
			"mode", now.Mode, "changes", strings.Join(changes, "; "))
	}
	if now.Err != nil {
		m.logOnce(slog.LevelError, "packet filter rules not in place", "err", now.Err.Error())
	}
	for _, reason := range now.Blocked {
		m.logOnce(slog.LevelError, "another program drops pod packets", "reason", reason)
	}
	for _, note := range now.Notes {
		m.logOnce(slog.LevelWarn, "packet filter note", "note", note)
	}
	if now.InPlace {
		maps.DeleteFunc(m.logged, func(text string, _ bool) bool {
			return !slices.Contains(now.Notes, text) && !slices.Contains(now.Blocked, text)
		})
	}
}

// logOnce logs a message unless value was logged before and still lasts.
func (m *Manager) logOnce(level slog.Level, message, key, value string) {
	if m.logged[value] {
		return
	}
	m.logged[value] = true
	m.log.Log(context.Background(), level, message, key, value)
}
