package probe

import (
	"context"
	"errors"
	"hash/maphash"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MaxNodes is the number of nodes that a prober probes; of more, it takes a sample.
	MaxNodes = 200
	// tick is the resolution of the schedule and the time that a reply may take.
	tick = time.Second
	// perPath bounds the CPU time: each echo, with its answer, takes up to 30 µs in the workers and
	// here. Ten per second are enough for all paths; more paths have a longer interval.
	perPath = 100 * time.Millisecond
)

// Target is another node.
type Target struct {
	// ID identifies the node in the results: one of its subnets.
	ID netip.Prefix
	// Addr and Addr6 are the addresses to probe; an invalid one is left out.
	Addr, Addr6 netip.Addr
	// Fast means that both the fast path of the kernel and the packet engine carry packets to the
	// node: then each way has its own echoes.
	Fast bool
}

// Source is this node's end of the paths.
type Source struct {
	// Addr and Addr6 are the source addresses of the echoes; if invalid, the kernel chooses them.
	Addr, Addr6 netip.Addr
	// MTU is the size in bytes of the largest packet to try.
	MTU int
}

// Result is the state of the paths to a node; nil for an address that the target does not have.
type Result struct {
	Path, Path6 *Path
}

// Stats counts the echoes that measure loss and round-trip time, over all nodes.
type Stats struct {
	Answered, Lost uint64
}

// Prober sends echoes to other nodes and keeps the results. All methods are safe for concurrent
// use.
type Prober struct {
	shortest time.Duration // interval of few paths
	nonce    nonce
	seed     maphash.Seed
	start    time.Time     // of the ticks
	changed  chan struct{} // Set was called

	mu       sync.Mutex    // guards the following fields
	interval time.Duration // between two echoes on a path that answers
	source   Source
	nodes    map[netip.Prefix]node
	sockets  map[bool]*socket // by family, true for IPv6
	err      error            // why a family cannot be probed
	number   uint64           // of the last echo
	underway map[uint64]echo
	stats    Stats
}

// node holds the paths to a target.
type node struct {
	target Target
	paths  []*path // one per valid address
}

// echo is an echo under way.
type echo struct {
	path *path
	by   way
	size int       // 0 unless it tests the path MTU
	at   time.Time // when it was sent
}

// New returns a prober that sends an echo per interval to each node, fewer to each of many nodes.
// It is idle before Run and Set.
func New(interval time.Duration) *Prober {
	return &Prober{
		shortest: interval,
		interval: interval,
		nonce:    nonce(rand.Uint64()),
		seed:     maphash.MakeSeed(),
		start:    time.Now(),
		changed:  make(chan struct{}, 1),
		nodes:    map[netip.Prefix]node{},
		sockets:  map[bool]*socket{},
		underway: map[uint64]echo{},
	}
}

// Set replaces the nodes to probe. Results of nodes that stay are kept.
func (p *Prober) Set(source Source, targets iter.Seq[Target]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if source != p.source {
		p.closeSockets() // bound to the former address
	}
	sameMTU := source.MTU == p.source.MTU
	p.source = source
	previous, now := p.nodes, time.Now()
	p.nodes = make(map[netip.Prefix]node, len(previous))
	paths := 0
	for _, t := range sample(targets, MaxNodes, p.seed) {
		n, known := previous[t.ID]
		if !known || n.target.Addr != t.Addr || n.target.Addr6 != t.Addr6 || !sameMTU {
			n = newNode(t, source.MTU, now)
		}
		for _, path := range n.paths {
			path.setFast(t.Fast)
		}
		p.nodes[t.ID] = n
		paths += len(n.paths)
	}
	p.interval = max(p.shortest, time.Duration(paths)*perPath)
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

func newNode(t Target, mtu int, now time.Time) node {
	n := node{target: t}
	for _, a := range []netip.Addr{t.Addr, t.Addr6} {
		if a.IsValid() {
			n.paths = append(n.paths, newPath(a, mtu, now))
		}
	}
	return n
}

// Run probes until ctx is done.
func (p *Prober) Run(ctx context.Context) {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.closeSockets()
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(p.untilNext(time.Now()))
		select {
		case <-ctx.Done():
			return
		case <-p.changed:
			continue
		case <-timer.C:
		}
		p.tick(time.Now())
	}
}

// untilNext returns the time until the next tick with work to do.
func (p *Prober) untilNext(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := now.Add(p.interval)
	if len(p.underway) > 0 {
		next = now
	}
	for _, n := range p.nodes {
		for _, path := range n.paths {
			if path.due.Before(next) {
				next = path.due
			}
			if path.reachable() && path.mtu.next.Before(next) {
				next = path.mtu.next
			}
		}
	}
	if next.Before(now) {
		next = now
	}
	ticks := next.Sub(p.start)/tick + 1 // the first tick after next
	return p.start.Add(ticks * tick).Sub(now)
}

// tick handles everything that arrived since the last one and sends the echoes that are due.
func (p *Prober) tick(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sockets {
		s.failures(func(f failure) { p.fail(f, now) })
		s.replies(func(number uint64, at time.Time) { p.answer(number, at, now) })
	}
	for number, e := range p.underway {
		delete(p.underway, number)
		p.lose(e, now)
	}
	p.err = nil
	for _, n := range p.nodes {
		for _, path := range n.paths {
			p.probe(path, now)
		}
	}
}

func (p *Prober) answer(number uint64, at, now time.Time) {
	e, ok := p.underway[number]
	if !ok {
		return // late, doubled, or to a node that is gone
	}
	delete(p.underway, number)
	if e.size != 0 {
		e.path.mtu.passed(e.size, now)
		return
	}
	p.stats.Answered++
	// The wall clock may have been set between the two times.
	rtt := min(max(at.Sub(e.at.Round(0)), 0), now.Sub(e.at))
	e.path.answer(e.by, rtt, now, p.interval)
}

func (p *Prober) lose(e echo, now time.Time) {
	if e.size != 0 {
		if e.path.reachable() {
			e.path.mtu.lost(e.size, now)
		}
		return
	}
	p.stats.Lost++
	e.path.lose(e.by, now, p.interval)
}

// fail handles the error message of a router or host.
func (p *Prober) fail(f failure, now time.Time) {
	e, ok := p.underway[f.number]
	if !ok {
		return
	}
	if e.size != 0 && f.mtu != 0 {
		delete(p.underway, f.number)
		e.path.mtu.tooBig(e.size, f.mtu, now)
		return
	}
	e.path.ways[e.by].err = f.err // the echo counts as lost if no answer follows
}

// probe sends the echoes of a path that are due.
func (p *Prober) probe(path *path, now time.Time) {
	checkMTU := path.reachable() && !path.mtu.next.After(now)
	if path.due.After(now) && !checkMTU {
		return
	}
	s, err := p.socket(path.v6())
	if err != nil {
		p.err = err
		path.due, path.mtu.next = later(path.due, now, tick), later(path.mtu.next, now, tick)
		return
	}
	if !path.due.After(now) {
		p.send(s, echo{path: path, by: path.turn})
	}
	if checkMTU {
		p.send(s, echo{path: path, size: path.mtu.size})
	}
}

// later returns t, but at least d after now.
func later(t, now time.Time, d time.Duration) time.Time {
	if earliest := now.Add(d); t.Before(earliest) {
		return earliest
	}
	return t
}

// send sends an echo. One that the kernel refuses counts as lost in the next tick.
func (p *Prober) send(s *socket, e echo) {
	p.number++
	e.at = time.Now()
	p.underway[p.number] = e
	o := options{}
	if e.size == 0 {
		o = e.path.options(e.by)
	}
	if err := s.setOptions(o); err != nil {
		e.path.ways[e.by].err = err
		return
	}
	err := s.sendEcho(e.path.addr, p.number, max(e.size, echoSize))
	if err != nil && !errors.Is(err, unix.EMSGSIZE) {
		// It may be the error of an earlier echo, which the kernel reports with the next call.
		err = s.sendEcho(e.path.addr, p.number, max(e.size, echoSize))
	}
	switch {
	case err == nil:
	case errors.Is(err, unix.EMSGSIZE) && e.size != 0:
		mtu := 0
		s.failures(func(f failure) { mtu = max(mtu, f.mtu) })
		delete(p.underway, p.number)
		e.path.mtu.limited(e.size, mtu, e.at)
	default:
		e.path.ways[e.by].err = err
	}
}

// socket returns the socket of a family, opening it if there is none.
func (p *Prober) socket(v6 bool) (*socket, error) {
	if s := p.sockets[v6]; s != nil {
		return s, nil
	}
	source := p.source.Addr
	if v6 {
		source = p.source.Addr6
	}
	s, err := openSocket(v6, source, p.nonce)
	if err == nil {
		p.sockets[v6] = s
	}
	return s, err
}

func (p *Prober) closeSockets() {
	for family, s := range p.sockets {
		// Nothing was written that could be lost.
		_ = s.close()
		delete(p.sockets, family)
	}
}

// Results returns the state of the paths to the probed nodes by [Target.ID].
func (p *Prober) Results() map[netip.Prefix]Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[netip.Prefix]Result, len(p.nodes))
	for id, n := range p.nodes {
		var r Result
		for _, path := range n.paths {
			if path.v6() {
				r.Path6 = path.state()
			} else {
				r.Path = path.state()
			}
		}
		all[id] = r
	}
	return all
}

// Unreachable returns the number of probed nodes with a path that is broken.
func (p *Prober) Unreachable() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	count := 0
	for _, n := range p.nodes {
		for _, path := range n.paths {
			if path.unreachable() || path.losesBulk() {
				count++
				break
			}
		}
	}
	return count
}

// AvoidsFast calls yield with the ID of each probed node that the fast path does not reach, but the
// packet engine does.
func (p *Prober) AvoidsFast(yield func(netip.Prefix) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, n := range p.nodes {
		if slices.ContainsFunc(n.paths, (*path).avoidsFast) && !yield(id) {
			return
		}
	}
}

// Interval returns the time between two echoes to a node that answers.
func (p *Prober) Interval() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.interval
}

// Stats returns the counters.
func (p *Prober) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// Err returns the reason why echoes cannot be sent, or nil.
func (p *Prober) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}
