package dataplane

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/dataplane/fastpath"
	"weft/dataplane/fib"
	"weft/dataplane/tun"
)

// FastPathMode selects whether the kernel carries packets that need no decision (package fastpath).
type FastPathMode uint8

const (
	// FastPathOff leaves all packets to the workers.
	FastPathOff FastPathMode = iota
	// FastPathAuto uses the fast path if this host can have it.
	FastPathAuto
	// FastPathRequire is FastPathAuto, but Open fails if this host cannot have it.
	FastPathRequire
)

// ParseFastPathMode returns the mode named "auto", "off" or "require".
func ParseFastPathMode(s string) (FastPathMode, error) {
	for _, m := range []FastPathMode{FastPathAuto, FastPathOff, FastPathRequire} {
		if m.String() == s {
			return m, nil
		}
	}
	return 0, fmt.Errorf("unknown fast path mode %q: want auto, off or require", s)
}

// String returns the name that ParseFastPathMode accepts.
func (m FastPathMode) String() string {
	switch m {
	case FastPathOff:
		return "off"
	case FastPathAuto:
		return "auto"
	case FastPathRequire:
		return "require"
	}
	return fmt.Sprintf("fast path mode %d", uint8(m))
}

// FastPathStatus is the state of the fast path.
type FastPathStatus struct {
	// Active reports whether this node takes packets of other nodes' fast paths.
	Active bool
	// Reason is why it is not active, or not for all packets; empty if it is.
	Reason string
}

var (
	errFastPathOff  = errors.New("disabled by the configuration")
	errFastPathWait = errors.New("being opened")
	errFastPathGone = errors.New("closed")
)

// Intervals of the supervisor's work for the fast path. A heartbeat may be late by 250 ms before
// the programs think that the daemon has ended.
const (
	heartbeatInterval = 100 * time.Millisecond
	watchInterval     = time.Second
	// drainTime is how long workers go on after the programs have taken over: longer than a packet
	// waits in a queue that a worker reads.
	drainTime = 20 * time.Millisecond
)

// fastPath is the engine's state of the fast path; Engine.mu guards it.
type fastPath struct {
	path    *fastpath.Path // nil if not active
	err     error          // why not
	past    fastpath.Traffic
	passed  map[fastpath.Pass]uint64 // of closed paths
	local   fib.Node
	nodes   bool // SetNodes was called
	partial bool // the path does not have all nodes
	device  *tun.Device
	watched time.Time
	tried   time.Time           // when another owner of a place was last looked for
	pause   string              // why outbound passes every packet; empty if it need not
	avoid   map[netip.Addr]bool // outer addresses that AvoidFastPath has set
	nextMTU int                 // index of the peer whose path MTU is read next
}

// openFastPath attaches the programs to the device and the underlay, and makes the device outlast
// the process if they do. The caller holds e.mu.
func (e *Engine) openFastPath(d *tun.Device) error {
	if e.config.FastPath == FastPathOff {
		e.fast.err = errFastPathOff
		err := fastpath.Remove(e.device)
		return errors.Join(err, d.SetPersistent(false))
	}
	e.fast.device, e.fast.tried = d, time.Now()
	e.fast.err = e.startFastPath()
	if e.fast.err == nil {
		return d.SetPersistent(e.fast.path.Persistent())
	}
	if e.config.FastPath == FastPathRequire {
		return fmt.Errorf("fast path: %w", e.fast.err)
	}
	e.log.Info("fast path not used", "reason", e.fast.err)
	return d.SetPersistent(false)
}

// startFastPath opens the path, or moves the open one to the engine's device and address. The
// caller holds e.mu.
func (e *Engine) startFastPath() error {
	at := fastpath.Place{Device: e.device, Underlay: e.config.Underlay, Local: e.bind}
	if e.fast.path != nil {
		err := e.fast.path.Attach(at)
		if err != nil {
			return errors.Join(err, e.closeFastPath())
		}
		return nil
	}
	c := fastpath.Config{
		Place: at, SourcePort: e.config.SourcePort, Check: fastpath.Check(e.config.SourceCheck),
		TOSMask: e.tosMask(),
	}
	path, err := fastpath.Open(c)
	if err != nil {
		return err
	}
	e.fast.path = path
	if err := path.Avoid(e.fast.avoid); err != nil {
		return errors.Join(err, e.closeFastPath())
	}
	if e.fast.nodes {
		e.updateFastNodes(e.snapshot.Load(), e.replaceFastNodes)
	}
	return nil
}

// moveFastPath follows a change of the underlay. The caller holds e.mu.
func (e *Engine) moveFastPath() {
	if e.config.FastPath == FastPathOff {
		return
	}
	if e.fast.err = e.startFastPath(); e.fast.err != nil {
		e.log.Warn("fast path cannot follow the interface", "err", e.fast.err)
	}
}

// setFastNodes passes the nodes to the path. While a capture is to see every packet, it passes
// none, so that the programs leave all packets to the workers. The caller holds e.mu.
func (e *Engine) setFastNodes() error {
	gone, err := e.replaceFastNodes()
	e.snapshot.Load().keepFastCounts(gone)
	return err
}

// replaceFastNodes is setFastNodes, but returns the counts of the outer addresses that the path has
// dropped.
func (e *Engine) replaceFastNodes() (map[netip.Addr]fastpath.Traffic, error) {
	var others []fib.Node
	if !e.taps.Load().wantAll() {
		others = e.nodes.builder.Nodes()
	}
	return e.fast.path.SetNodes(e.fast.local, others)
}

// keepFastCounts adds the counts of outer addresses that the path has dropped to their nodes.
// Engine.mu is held.
func (s *snapshot) keepFastCounts(gone map[netip.Addr]fastpath.Traffic) {
	for a, t := range gone {
		if p, ok := s.table.ByEndpoint(a); ok {
			p.fast.Add(t)
		}
	}
}

// updateFastNodes passes a change of the nodes to the path, or all of them if the last attempt
// failed. before is the snapshot before the change, which knows the nodes of the addresses that
// were dropped. The supervisor tries again after a failure. The caller holds e.mu.
func (e *Engine) updateFastNodes(
	before *snapshot, change func() (map[netip.Addr]fastpath.Traffic, error),
) {
	if e.fast.path == nil {
		return
	}
	if e.fast.partial || e.taps.Load().wantAll() {
		change = e.replaceFastNodes
	}
	gone, err := change()
	before.keepFastCounts(gone)
	e.fast.partial = err != nil
	if err != nil {
		e.log.Warn("fast path does not have all nodes", "err", err)
	}
}

// closeFastPath closes the path and keeps its counts. The caller holds e.mu.
func (e *Engine) closeFastPath() error {
	if e.fast.path == nil {
		return nil
	}
	s := e.fast.path.Stats()
	e.fast.past.Add(s.Total)
	for _, p := range e.nodes.list {
		p.fast.Add(s.Nodes[p.dest.Addr.Addr()])
		delete(s.Nodes, p.dest.Addr.Addr())
	}
	if e.fast.passed == nil {
		e.fast.passed = make(map[fastpath.Pass]uint64)
	}
	for r, n := range s.Passed {
		e.fast.passed[r] += n
	}
	err := e.fast.path.Close()
	e.fast.path, e.fast.err = nil, errFastPathGone
	return err
}

// superviseFastPath keeps the programs informed that the daemon runs, and reopens a path that was
// lost.
func (e *Engine) superviseFastPath(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.config.FastPath == FastPathOff {
		return
	}
	if e.fast.path != nil {
		if err := e.fast.path.Beat(); err != nil {
			e.log.Warn("fast path heartbeat failed", "err", err)
		}
	}
	if now.Sub(e.fast.watched) < watchInterval {
		return
	}
	e.fast.watched = now
	if e.fast.path == nil {
		e.retryFastPath(now)
		return
	}
	if err := e.fast.path.Watch(e.fast.pause != ""); err != nil {
		e.loseFastPath(err)
		return
	}
	if e.fast.partial {
		e.updateFastNodes(e.snapshot.Load(), e.replaceFastNodes)
	}
	e.updatePathMTUs()
}

// loseFastPath reopens a path that the watch cannot use, or leaves its places to another owner. The
// caller holds e.mu.
func (e *Engine) loseFastPath(reason error) {
	e.log.Warn("fast path lost", "reason", reason)
	err := e.closeFastPath()
	if errors.Is(reason, fastpath.ErrOtherOwner) {
		err = errors.Join(err, fastpath.Remove(e.device))
		e.fast.err, e.fast.tried = reason, time.Now()
	} else {
		e.fast.err = e.startFastPath()
	}
	if err != nil {
		e.log.Warn("close of the lost fast path failed", "err", err)
	}
}

// retryInterval is the time between two attempts to get a place that has another owner. Each loads
// the programs.
const retryInterval = 10 * time.Second

// retryFastPath opens the path if its places had another owner, who may have left. The caller holds
// e.mu.
func (e *Engine) retryFastPath(now time.Time) {
	if !errors.Is(e.fast.err, fastpath.ErrOtherOwner) || now.Sub(e.fast.tried) < retryInterval {
		return
	}
	e.fast.tried = now
	if e.fast.err = e.startFastPath(); e.fast.err != nil {
		return
	}
	e.log.Info("fast path used again: no other program is attached")
	if err := e.fast.device.SetPersistent(e.fast.path.Persistent()); err != nil {
		e.log.Warn("device will not outlast the process", "err", err)
	}
}

// pathsPerWatch bounds the paths whose MTU is read per watchInterval: some microseconds each.
const pathsPerWatch = 256

// updatePathMTUs passes the MTUs of some paths to the programs. Workers learn it when a packet is
// rejected, which does not happen to packets that the kernel carries. The caller holds e.mu.
func (e *Engine) updatePathMTUs() {
	peers := e.nodes.list
	mtus := make(map[netip.Addr]int, pathsPerWatch)
	for range min(pathsPerWatch, len(peers)) {
		e.fast.nextMTU = (e.fast.nextMTU + 1) % len(peers)
		to := peers[e.fast.nextMTU].dest.Addr
		mtu, err := e.prober.PathMTU(to)
		if err != nil {
			e.log.Debug("path MTU unknown to the fast path", "node", to, "err", err)
			continue
		}
		mtus[to.Addr()] = mtu
	}
	if err := e.fast.path.SetPathMTUs(mtus); err != nil {
		e.log.Warn("fast path does not have all path MTUs", "err", err)
	}
}

// PauseFastPath leaves all packets to other nodes to the workers as long as reason is not empty. It
// takes effect within watchInterval.
func (e *Engine) PauseFastPath(reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fast.pause == reason {
		return
	}
	e.fast.pause, e.fast.watched = reason, time.Time{}
}

// AvoidFastPath leaves all packets to the nodes with these outer addresses to the workers, apart
// from probes of the fast path: its packets do not arrive there.
func (e *Engine) AvoidFastPath(addrs map[netip.Addr]bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if maps.Equal(addrs, e.fast.avoid) {
		return
	}
	e.fast.avoid = maps.Clone(addrs)
	if e.fast.path == nil {
		return
	}
	if err := e.fast.path.Avoid(addrs); err != nil {
		e.log.Warn("fast path does not avoid nodes", "err", err)
	}
}

// leaveFastPath lets the programs take every packet that they can, and gives the workers time to
// empty their queues.
func (e *Engine) leaveFastPath() {
	e.mu.Lock()
	path := e.fast.path
	e.mu.Unlock()
	if path == nil {
		return
	}
	if err := path.Leave(); err != nil {
		e.log.Warn("fast path does not take over", "err", err)
		return
	}
	time.Sleep(drainTime)
}

// FastPath returns the state of the fast path.
func (e *Engine) FastPath() FastPathStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.fastPathStatus()
}

// fastPathStatus is FastPath for a caller that holds e.mu.
func (e *Engine) fastPathStatus() FastPathStatus {
	switch {
	case e.fast.path == nil:
		return FastPathStatus{Reason: e.fast.err.Error()}
	case e.taps.Load().wantAll():
		// Not active: the workers would get unfinished checksums from others' fast paths.
		return FastPathStatus{Reason: "paused for weft capture"}
	case e.fast.pause != "":
		return FastPathStatus{Active: true, Reason: "only inbound: " + e.fast.pause}
	case e.fast.path.Paused() != "":
		return FastPathStatus{Active: true, Reason: "paused for " + e.fast.path.Paused()}
	case len(e.fast.avoid) > 0:
		return FastPathStatus{Active: true, Reason: fmt.Sprintf("not to %s: its packets do not arrive "+
			"there; a network may drop UDP without a checksum", someAddrs(e.fast.avoid))}
	case !e.fast.path.Persistent():
		return FastPathStatus{Active: true, Reason: "ends with the daemon: no BPF file system"}
	}
	return FastPathStatus{Active: true}
}

// someAddrs lists addresses, a few of many.
func someAddrs(all map[netip.Addr]bool) string {
	const shown = 3
	var list []string
	for _, a := range slices.SortedFunc(maps.Keys(all), netip.Addr.Compare) {
		if len(list) == shown {
			return fmt.Sprintf("%s and %d more", strings.Join(list, ", "), len(all)-shown)
		}
		list = append(list, a.String())
	}
	return strings.Join(list, ", ")
}

// addFastStats adds the counters of the fast path, and returns those of the outer addresses that
// had packets. The caller holds e.mu.
func (e *Engine) addFastStats(s *Stats) (nodes map[netip.Addr]fastpath.Traffic) {
	total, passed := e.fast.past, maps.Clone(e.fast.passed)
	if e.fast.path != nil {
		now := e.fast.path.Stats()
		total.Add(now.Total)
		if passed == nil {
			passed = make(map[fastpath.Pass]uint64)
		}
		for r, n := range now.Passed {
			passed[r] += n
		}
		nodes = now.Nodes
	}
	s.FastPath = FastPathStats{
		FastPathStatus: e.fastPathStatus(),
		Sent:           Traffic{total.Sent, total.SentBytes},
		Received:       Traffic{total.Received, total.ReceivedBytes},
		Passed:         passed,
	}
	s.Sent.add(s.FastPath.Sent)
	s.Received.add(s.FastPath.Received)
	return nodes
}

// FastPathStats counts the packets of the fast path, which Stats.Sent and Stats.Received include.
type FastPathStats struct {
	FastPathStatus
	Sent, Received Traffic
	Passed         map[fastpath.Pass]uint64 // packets left to the workers
}

// add adds o to the sum.
func (sum *Traffic) add(o Traffic) {
	sum.Packets += o.Packets
	sum.Bytes += o.Bytes
}
