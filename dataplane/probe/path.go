package probe

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"
)

const (
	// echoSize is the size in bytes of an echo that measures loss and round-trip time: that of the
	// ping program over IPv4.
	echoSize = 84
	// unreachableAfter is the number of echoes in a row without an answer after which a path counts
	// as broken.
	unreachableAfter = 3
	// settleTime is the time before the first echo to a new node, which has to learn of this node
	// first.
	settleTime = 2 * time.Second
	// maxSilence is the longest interval of a path that stays silent, in intervals.
	maxSilence = 3
)

// Path is the state of the path to one address of a node.
type Path struct {
	Addr netip.Addr // that the echoes are sent to
	// Sent and Lost count the last echoes, at most 30 per way.
	Sent, Lost int
	// Workers and Fast are the parts of the two ways; nil if there is only one.
	Workers, Fast *Loss
	// Last is the last round-trip time, Median that of the last echoes; 0 if there are none.
	Last, Median time.Duration
	// MTU is the largest inner packet that gets through, in bytes; 0 while unknown.
	MTU int
	// MaxMTU is the largest packet that this node's device takes: the MTU of a path without fault.
	MaxMTU int
	// Answered is the time of the last answer; zero if there has never been one.
	Answered time.Time
	// Unreachable is the reason why the node counts as unreachable, or why the packets that workers
	// carry do not reach it; empty if all do.
	Unreachable string
}

// Loss counts the last echoes of one way, at most 30.
type Loss struct{ Sent, Lost int }

// path is a Path with the state of its measurement.
type path struct {
	addr netip.Addr
	ways [numWays]wayState
	fast bool // packets take one of two ways
	turn way  // of the next echo
	due  time.Time
	mtu  mtuSearch
}

// way is a way of packets to a node.
type way int

const (
	byWorkers way = iota // of the packet engine; of a path with one way, whichever it is
	byFast               // the fast path of the kernel
	// byWorkersBack is that of the workers in both directions. It is tried while the other two are
	// broken: if answers by the other node's fast path are lost, it tells why.
	byWorkersBack
	numWays
)

// Socket priorities of echoes that the fast path is to leave to the workers, or to take even if it
// leaves other packets to them (bpf/fastpath.c). No qdisc has a class of this number. A mark would
// also change routes and match packet filter rules.
const (
	WorkerPriority = 0x57454654
	fastPriority   = WorkerPriority + 1
)

// workerTOS is the TOS field of echoes whose answers, too, are left to the workers: the kernel
// answers with the TOS of the request. Its DSCP is for local use (RFC 2474 section 6).
const workerTOS = 0xfc

// wayState is the state of one way.
type wayState struct {
	window   window
	failures int // echoes in a row without an answer
	answered time.Time
	err      error // of the last echo, if it could not be sent or a router rejected it
}

// broken reports whether the way counts as broken.
func (w *wayState) broken() bool { return w.failures >= unreachableAfter }

// works reports whether the last echo was answered.
func (w *wayState) works() bool { return w.failures == 0 && !w.answered.IsZero() }

func newPath(addr netip.Addr, mtu int, now time.Time) *path {
	p := &path{addr: addr, mtu: newMTUSearch(echoSize, mtu, now)}
	p.due = now.Add(settleTime + rand.N(settleTime))
	return p
}

func (p *path) v6() bool { return p.addr.Is6() }

// setFast sets whether packets take one of two ways.
func (p *path) setFast(fast bool) {
	if p.fast != fast {
		p.fast, p.turn, p.ways[byFast], p.ways[byWorkersBack] = fast, byWorkers, wayState{}, wayState{}
	}
}

// usual is the way of most packets, such as those that test the path MTU.
func (p *path) usual() *wayState {
	if p.fast {
		return &p.ways[byFast]
	}
	return &p.ways[byWorkers]
}

// reachable reports whether the last echo was answered: only then a lost packet of another size
// means anything.
func (p *path) reachable() bool { return p.usual().works() }

// unreachable reports whether the path counts as broken, on all ways.
func (p *path) unreachable() bool {
	return p.ways[byWorkers].broken() && p.usual().broken()
}

// losesBulk reports whether only the way of the workers is broken, and avoidsFast whether only the
// other one is.
func (p *path) losesBulk() bool { return p.fast && p.ways[byWorkers].broken() && p.usual().works() }
func (p *path) avoidsFast() bool {
	return p.fast && p.ways[byFast].broken() &&
		(p.ways[byWorkers].works() || p.ways[byWorkersBack].works())
}

// answer records an answer and schedules the next echo.
func (p *path) answer(by way, rtt time.Duration, now time.Time, interval time.Duration) {
	w := &p.ways[by]
	w.window.add(rtt)
	w.failures, w.answered, w.err = 0, now, nil
	p.next(by, now.Add(jittered(interval)))
}

// lose records a lost echo. The next ones follow at once until the way counts as broken, and then
// one on the next way; less and less often while the whole path is broken.
func (p *path) lose(by way, now time.Time, interval time.Duration) {
	w := &p.ways[by]
	w.window.add(lost)
	w.failures++
	if w.failures < unreachableAfter {
		p.due, p.turn = now, by
		return
	}
	if p.unreachable() {
		interval *= time.Duration(min(w.failures-unreachableAfter+1, maxSilence))
	}
	due := now.Add(jittered(interval))
	if p.fast && w.failures == unreachableAfter {
		due = now
	}
	p.next(by, due)
}

// next schedules the echo after one that took a way.
func (p *path) next(last way, due time.Time) {
	p.due, p.turn = due, byWorkers
	switch {
	case p.fast && last == byWorkers:
		p.turn = byFast
	case p.fast && last == byFast && p.unreachable():
		p.turn = byWorkersBack
	}
	if !p.unreachable() {
		p.ways[byWorkersBack] = wayState{}
	}
}

// options are the socket options of an echo on a way.
func (p *path) options(by way) options {
	switch {
	case !p.fast:
		return options{}
	case by == byFast:
		return options{priority: fastPriority}
	case by == byWorkersBack:
		return options{priority: WorkerPriority, tos: workerTOS}
	}
	return options{priority: WorkerPriority}
}

// jittered returns a duration within 10 % of d, so that nodes do not probe in step.
func jittered(d time.Duration) time.Duration { return d - d/10 + rand.N(d/5+1) }

// state returns the exported form.
func (p *path) state() *Path {
	s := &Path{Addr: p.addr, MTU: p.mtu.known, MaxMTU: p.mtu.max}
	var losses [byWorkersBack]Loss
	for i, w := range p.ways[:byWorkersBack] {
		sent, missing, median := w.window.summary()
		losses[i] = Loss{sent, missing}
		s.Sent, s.Lost = s.Sent+sent, s.Lost+missing
		if median > 0 {
			s.Last, s.Median = w.window.last, median
		}
	}
	s.Answered = p.answered()
	if p.fast {
		s.Workers, s.Fast = &losses[byWorkers], &losses[byFast]
	}
	if p.unreachable() || p.losesBulk() {
		s.Unreachable = p.reason()
	}
	return s
}

// answered is the time of the last answer on any way.
func (p *path) answered() time.Time {
	last := p.ways[byWorkers].answered
	if t := p.usual().answered; t.After(last) {
		last = t
	}
	return last
}

// reason describes a broken path.
func (p *path) reason() string {
	if p.losesBulk() {
		return fmt.Sprintf("bulk flows are lost: no answer from %s to packets of the workers %s, but to "+
			"those of the fast path: a packet filter drops the tunnel's port, whose rules do not see the "+
			"fast path", p.addr, since(p.ways[byWorkers].answered))
	}
	since := since(p.answered())
	if err := p.usual().err; err != nil {
		return fmt.Sprintf("no answer from %s %s: %v", p.addr, since, err)
	}
	return fmt.Sprintf("no answer from %s %s: the node is down, or a firewall drops the tunnel's "+
		"packets or ICMP echoes", p.addr, since)
}

// since describes how long there has been no answer.
func since(answered time.Time) string {
	if answered.IsZero() {
		return "since the probes of it began"
	}
	return "since " + answered.UTC().Format(time.RFC3339)
}
