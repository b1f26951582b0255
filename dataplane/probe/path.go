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
)

// Path is the state of the path to one address of a node.
type Path struct {
	Addr netip.Addr // that the echoes are sent to
	// Sent and Lost count the last echoes, at most 30.
	Sent, Lost int
	// Last is the last round-trip time, Median that of the last echoes; 0 if there are none.
	Last, Median time.Duration
	// MTU is the largest inner packet that gets through, in bytes; 0 while unknown.
	MTU int
	// MaxMTU is the largest packet that this node's device takes: the MTU of a path without fault.
	MaxMTU int
	// Answered is the time of the last answer; zero if there has never been one.
	Answered time.Time
	// Unreachable is the reason why the node counts as unreachable; empty if it does not.
	Unreachable string
}

// path is a Path with the state of its measurement.
type path struct {
	addr     netip.Addr
	window   window
	failures int // echoes in a row without an answer
	answered time.Time
	err      error // of the last echo, if it could not be sent or a router rejected it
	due      time.Time
	mtu      mtuSearch
}

func newPath(addr netip.Addr, mtu int, now time.Time) *path {
	p := &path{addr: addr, mtu: newMTUSearch(echoSize, mtu, now)}
	p.due = now.Add(settleTime + rand.N(settleTime))
	return p
}

func (p *path) v6() bool { return p.addr.Is6() }

// reachable reports whether the last echo was answered: only then a lost packet of another size
// means anything.
func (p *path) reachable() bool { return p.failures == 0 && !p.answered.IsZero() }

// unreachable reports whether the path counts as broken.
func (p *path) unreachable() bool { return p.failures >= unreachableAfter }

// answer records an answer and schedules the next echo.
func (p *path) answer(rtt time.Duration, now time.Time, interval time.Duration) {
	p.window.add(rtt)
	p.failures, p.answered, p.err = 0, now, nil
	p.due = now.Add(jittered(interval))
}

// lose records a lost echo. The next ones follow at once until the path counts as broken.
func (p *path) lose(now time.Time, interval time.Duration) {
	p.window.add(lost)
	p.failures++
	p.due = now
	if p.unreachable() {
		p.due = now.Add(jittered(interval))
	}
}

// jittered returns a duration within 10 % of d, so that nodes do not probe in step.
func jittered(d time.Duration) time.Duration { return d - d/10 + rand.N(d/5+1) }

// state returns the exported form.
func (p *path) state() *Path {
	s := &Path{Addr: p.addr, Last: p.window.last, MTU: p.mtu.known, MaxMTU: p.mtu.max,
		Answered: p.answered}
	s.Sent, s.Lost, s.Median = p.window.summary()
	if p.unreachable() {
		s.Unreachable = p.reason()
	}
	return s
}

// reason describes a broken path.
func (p *path) reason() string {
	since := "since weftd started"
	if !p.answered.IsZero() {
		since = "since " + p.answered.UTC().Format(time.RFC3339)
	}
	if p.err != nil {
		return fmt.Sprintf("no answer from %s %s: %v", p.addr, since, p.err)
	}
	return fmt.Sprintf("no answer from %s %s: the node is down, or a firewall drops the tunnel's "+
		"packets or ICMP echoes", p.addr, since)
}
