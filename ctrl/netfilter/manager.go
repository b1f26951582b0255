package netfilter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrUnsupported says that this host has neither a working iptables nor nftables for rules that are wanted.
var ErrUnsupported = errors.New("no packet filter to set rules with")

// Mode is the mechanism that carries the rules.
type Mode string

// The mechanisms. The zero Mode is none, because nothing was applied yet.
const (
	IPTables Mode = "iptables"
	NFTables Mode = "nftables"
)

// Options tune a Manager; the zero value is ready for use.
type Options struct {
	Log    *slog.Logger  // nil: silent
	Resync time.Duration // how often the rules are compared with what is wanted; 0: 5 s, flannel's default
	// Previous holds the networks and subnets of earlier runs of this daemon, whose rules are
	// removed.
	Previous []netip.Prefix
}

const defaultResync = 5 * time.Second

// Status is how the last comparison of the kernel's rules with the wanted ones ended.
type Status struct {
	InPlace bool      // everything wanted is there, and nothing that is not; false from a Set that changes something
	Since   time.Time // of the last change of InPlace
	Mode    Mode      // what carries the rules
	Err     error     // why the rules are not in place; nil while they are, and before the first Set
	Notes   []string  // what the operator should know although nothing failed; belongs to the reader
	Repairs uint64    // how often rules were set right that had been in place
}

// applier sets rules in one of the two ways.
type applier interface {
	// apply makes the kernel hold exactly the wanted rules among those that are ours.
	apply(ctx context.Context, want map[family]goal) (report, error)
	mode() Mode
}

// host is what this machine offers.
type host interface {
	// open finds a way to set the wanted rules, by nftables if that is asked for.
	open(ctx context.Context, nftables bool, want map[family]goal) (applier, error)
	// sweep removes our rules, not a sibling's, from wherever the chosen applier does not look.
	sweep(ctx context.Context, chosen applier, sibling func(rule) bool) error
}

// Manager keeps the host's rules as the last Desired that was Set. Set and Status are safe for concurrent use with Run.
type Manager struct {
	host   host
	log    *slog.Logger
	resync time.Duration
	poke   chan struct{}

	mu     sync.Mutex
	want   Desired
	set    bool // there was a Set
	news   bool // want was not looked at since
	status Status

	// Of Run alone.
	current Desired
	former  []netip.Prefix // networks and subnets of ours whose rules may be left; another daemon may have them later
	chosen  applier        // nil: to be opened
	mode    Mode           // of the last one that was
	swept   bool           // nothing of ours is left elsewhere
	said    map[string]bool
}

func newManager(h host, o Options) *Manager {
	m := &Manager{host: h, log: o.Log, resync: o.Resync, poke: make(chan struct{}, 1), said: map[string]bool{}}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if m.resync <= 0 {
		m.resync = defaultResync
	}
	for _, p := range o.Previous {
		m.former = append(m.former, p.Masked())
	}
	m.status.Since = time.Now()
	return m
}

// Set replaces the wanted rules; the slices belong to the manager from now on. Setting what is set already does nothing.
func (m *Manager) Set(d Desired) {
	m.mu.Lock()
	same := m.set && m.want.equal(d)
	if !same {
		m.want, m.set, m.news = d, true, true
		m.put(Status{Mode: m.status.Mode, Repairs: m.status.Repairs})
	}
	m.mu.Unlock()
	if same {
		return
	}
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// Status reports the last comparison.
func (m *Manager) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.status
	s.Notes = slices.Clone(s.Notes)
	return s
}

// Run applies the wanted rules until ctx ends, whose error it returns. The rules stay as they are then, and nothing
// happens before the first Set.
func (m *Manager) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-m.poke:
	}
	ticker := time.NewTicker(m.resync)
	defer ticker.Stop()
	for {
		m.once(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.poke:
		case <-ticker.C:
		}
	}
}

// put replaces the status and keeps count of the time. The lock is held.
func (m *Manager) put(s Status) {
	s.Since = m.status.Since
	if s.InPlace != m.status.InPlace {
		s.Since = time.Now()
	}
	m.status = s
}

// once compares and repairs, and puts down how that went.
func (m *Manager) once(ctx context.Context) {
	m.mu.Lock()
	before := m.status
	if m.news {
		m.former = append(m.former, prefixes(m.current.Nets)...)
		m.current, m.news, m.chosen = m.want, false, nil
	}
	m.mu.Unlock()

	r, err := m.apply(ctx)
	if ctx.Err() != nil {
		return // what was cut short says nothing about the host
	}
	now := Status{InPlace: err == nil, Mode: m.mode, Err: err, Notes: r.notes, Repairs: before.Repairs}
	repaired := len(r.changes) > 0 && before.InPlace
	if repaired {
		now.Repairs++
	}
	m.tell(now, r.changes, repaired)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.news {
		now.InPlace = false // that was for what is wanted no more
	}
	m.put(now)
}

// apply makes one attempt. An applier that failed is looked for anew the next time: programs come and go.
func (m *Manager) apply(ctx context.Context) (report, error) {
	if err := m.current.check(); err != nil {
		return report{}, err
	}
	want := m.current.goals(m.former)
	if m.chosen == nil {
		chosen, err := m.host.open(ctx, m.current.NFTables, want)
		if err != nil {
			return report{}, err
		}
		m.chosen, m.mode, m.swept = chosen, chosen.mode(), false
	}
	r, err := m.chosen.apply(ctx, want)
	if err != nil {
		m.chosen = nil
		return r, err
	}
	// Only now, so that the rules of the other way serve until these do.
	if !m.swept {
		if err := m.host.sweep(ctx, m.chosen, want[ipv4].sibling); err != nil {
			r.notes = append(r.notes, fmt.Sprintf("rules of an earlier run may be left: %v", err))
		} else {
			m.swept, m.former = true, nil
		}
	}
	return r, nil
}

// tell logs every change, and each distinct failure and note once for as long as it lasts.
func (m *Manager) tell(now Status, changes []string, repaired bool) {
	if len(changes) > 0 {
		level, message := slog.LevelInfo, "packet filter rules set"
		if repaired {
			level, message = slog.LevelWarn, "packet filter rules repaired"
		}
		m.log.Log(context.Background(), level, message, "mode", now.Mode, "changes", strings.Join(changes, "; "))
	}
	if now.Err != nil && m.isNew(now.Err.Error()) {
		m.log.Error("packet filter rules are not in place", "err", now.Err)
	}
	for _, note := range now.Notes {
		if m.isNew(note) {
			m.log.Warn("packet filter", "note", note)
		}
	}
	if now.InPlace {
		maps.DeleteFunc(m.said, func(text string, _ bool) bool { return !slices.Contains(now.Notes, text) })
	}
}

// isNew tells whether a text was not said yet.
func (m *Manager) isNew(text string) bool {
	defer func() { m.said[text] = true }()
	return !m.said[text]
}
