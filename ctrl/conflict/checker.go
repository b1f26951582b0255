package conflict

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"weft/ctrl"
)

// Peer is another node in one address family of the overlay.
type Peer struct {
	Name   string
	Public netip.Addr   // on the underlay
	Subnet netip.Prefix // of its pods
}

// Query holds the addresses to check. The Checker owns its slices.
type Query struct {
	Subnets []netip.Prefix // of this node's pods
	Sources []netip.Addr   // this node's addresses on the underlay and the overlay
	Devices []string       // overlay devices of this node
	Targets []Target       // outside the overlay, besides the peers
	// Peers returns the other nodes; nil means none. It is called once per check, by the Checker's
	// goroutine.
	Peers func() []Peer
}

// Result is the outcome of a check of all addresses.
type Result struct {
	// Taken lists the targets and peers that this node cannot send to, because one of its own
	// routes takes the packets.
	Taken []string
	// Cut maps the subnets of the peers among them to the reasons.
	Cut map[netip.Prefix]string
	// Diverted maps the subnets of peers to which another route leads to the reasons.
	Diverted map[netip.Prefix]string
}

// Checker checks a Query whenever it changes, when the kernel's routes change, and every
// checkInterval, less often with many peers. Set and Result are safe for concurrent use with Run.
type Checker struct {
	log     *slog.Logger
	changed chan struct{}
	result  atomic.Pointer[Result]

	mu    sync.Mutex
	query Query
}

// NewChecker makes a Checker. It does nothing before Run and the first Set.
func NewChecker(log *slog.Logger) *Checker {
	c := &Checker{log: log, changed: make(chan struct{}, 1)}
	c.result.Store(&Result{})
	return c
}

const (
	// checkInterval is the period of checks without a notification. The kernel's notifications of
	// policy rules and of tables other than the main one are not used.
	checkInterval = 10 * time.Second
	// checkPause times the duration of the last check is the pause before the next one without a
	// notification: with 10,000 peers a check takes a minute and 0.1 s of CPU time.
	checkPause = 8
	// settle is the pause after a notification, in which the reconciler repairs its own routes.
	settle = 500 * time.Millisecond
	// peersPerStep and stepInterval bound the CPU time of a check: two lookups per peer, each
	// about 4 µs, are about a thousandth of a CPU.
	peersPerStep = 160
	stepInterval = time.Second
)

// Set replaces the query.
func (c *Checker) Set(q Query) {
	c.mu.Lock()
	c.query = q
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Result returns the result of the last check, which must not be modified. The pointer changes with
// each result that differs.
func (c *Checker) Result() *Result { return c.result.Load() }

// relevant reports whether an event may change the route of a pod or a node.
func relevant(e ctrl.Event) bool { return e.Kind == ctrl.RouteEvent || e.Kind == ctrl.AddrEvent }

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// store keeps a result that differs from the last one.
func (c *Checker) store(r *Result) {
	if !r.equal(c.result.Load()) {
		c.result.Store(r)
	}
}

// check checks all addresses of the query, in steps. Each step has a new matcher, because devices
// may have been added.
func (c *Checker) check(
	ctx context.Context, newMatcher func() (matcher, error),
) (*Result, error) {
	c.mu.Lock()
	q := c.query
	c.mu.Unlock()
	r := newRound(q)
	var peers []Peer
	if q.Peers != nil {
		peers = q.Peers()
	}
	for n := 0; n == 0 || n < len(peers); n += peersPerStep {
		if n > 0 {
			if err := sleep(ctx, stepInterval); err != nil {
				return nil, err
			}
		}
		m, err := newMatcher()
		if err != nil {
			return nil, fmt.Errorf("look up routes: %w", err)
		}
		r.match = m
		if n == 0 {
			r.targets()
		}
		r.peers(peers[n:min(n+peersPerStep, len(peers))])
	}
	return &r.Result, nil
}
