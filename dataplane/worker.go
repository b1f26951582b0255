package dataplane

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/dataplane/poll"
	"weft/dataplane/udp"
	"weft/encap"
	"weft/encap/offload"
)

// datagramIO is the part of a socket that moves datagrams.
type datagramIO interface {
	// Reserve returns n bytes for the next datagram of key, to be filled at once. It returns nil if
	// Flush must be called first.
	Reserve(key udp.TxKey, n int) []byte
	// Flush sends the reserved datagrams and calls the function for each that the kernel rejects.
	// It returns false if the socket is full; the rest is kept.
	Flush(udp.UndeliveredFunc) bool
	// Send sends one datagram at once, in outer fragments if it exceeds the path MTU.
	Send(to *udp.Destination, datagram []byte) error
	// Receive returns the datagrams that have arrived, borrowed until the next Receive.
	Receive() ([]udp.Message, error)
}

// tunPort is a worker's end of a TUN device.
type tunPort struct {
	queues     [numClasses]tunQueue
	generation uint64
	limits     offload.Limits // GSO frames that the device accepts
}

// udpPort is a worker's socket.
type udpPort struct {
	udpSocket
	generation uint64
}

// worker is one goroutine that owns two TUN queues and one socket and moves packets between them.
type worker struct {
	// Used by other goroutines, too.
	counters counters
	unknown  unknownSources
	last     lastDrops
	wake     *poll.EventFD
	stop     atomic.Bool
	nextTUN  atomic.Pointer[tunPort] // replacements, nil if none
	nextUDP  atomic.Pointer[udpPort]

	id      int
	engine  *Engine
	tosMask uint8 // inner TOS bits copied to the outer header
	shards  int   // number of flow shards: the workers, here and most likely at the other end

	tunPort    *tunPort // nil while the device is lost
	udpPort    *udpPort // nil while the socket is lost
	flows      flowClasses
	merger     *offload.Merger
	snapshot   *snapshot // of this round
	taps       *taps     // of this round; nil without captures
	lastSender lastSender
	limiter    icmpLimiter

	now          func() time.Time
	start        time.Time // of the worker's ticks
	probePathMTU func(*peer) (int, error)

	waiter  *poll.Waiter
	pollFDs [numPollFDs]unix.PollFd
	ready   readiness
	blocked bool    // the socket is full: the TUN is not read until it has room
	pending Traffic // reserved since the last complete flush, minus the rejected
	scratch []byte  // for ICMP errors and fragments
	segment []byte  // for a packet that is not built in a send slot

	onUndelivered udp.UndeliveredFunc // undelivered, bound once: a method value allocates
}

// readiness lists the ends to look at in a round.
type readiness struct {
	queues [numClasses]bool
	socket bool
}

// Indices of worker.pollFDs. The TUN queues come first. An absent descriptor is -1, which poll
// ignores.
const (
	pollWake = numClasses + iota
	pollReceive
	pollSend
	numPollFDs
)

// maxShards is the number of values of udp.TxKey's Shard.
const maxShards = 256

func newWorker(id int, e *Engine) (*worker, error) {
	wake, err := poll.NewEventFD()
	if err != nil {
		return nil, err
	}
	waiter, err := poll.NewWaiter(poll.Config{
		BusyPoll:     e.config.Spin,
		Priority:     e.priority,
		PriorityLost: e.priorityLost,
		Handoff:      e.handoff,
	})
	if err != nil {
		return nil, errors.Join(err, wake.Close())
	}
	w := &worker{
		id:           id,
		shards:       min(e.config.Workers, maxShards),
		engine:       e,
		wake:         wake,
		waiter:       waiter,
		now:          time.Now,
		start:        time.Now(),
		probePathMTU: e.probePathMTU,
		scratch:      make([]byte, 0, scratchSize),
		segment:      make([]byte, scratchSize),
	}
	w.onUndelivered = w.undelivered
	w.tosMask = e.tosMask()
	return w, nil
}

// tosMask returns the inner TOS bits that are copied to the outer header.
func (e *Engine) tosMask() (mask uint8) {
	if e.config.ECN {
		mask |= encap.MaskECN
	}
	if e.config.DSCP {
		mask |= encap.MaskDSCP
	}
	return mask
}

// run moves packets until stop is set. It fails only if polling fails or a priority cannot be
// restored.
func (w *worker) run() (err error) {
	for err == nil && !w.stop.Load() {
		w.pickUpReplacements()
		err = w.prepareRound(w.round())
	}
	if err = errors.Join(err, w.waiter.Unpin()); err != nil {
		return fmt.Errorf("worker %d: %w", w.id, err)
	}
	return nil
}

// round moves some packets in both directions and reports whether there may be more.
func (w *worker) round() bool {
	w.snapshot, w.taps = w.engine.snapshot.Load(), w.engine.taps.Load()
	w.flows.now = tickOf(w.now().Sub(w.start))
	more := w.outbound()
	return w.ready.socket && w.inbound() || more
}

// prepareRound selects the ends to look at in the next round: all if there may be more to do, else
// those that become ready.
func (w *worker) prepareRound(more bool) error {
	if !more {
		return w.wait()
	}
	w.ready = readiness{queues: [numClasses]bool{true, true}, socket: true}
	return w.waiter.KeepRunning(w.now())
}

// pickUpReplacements starts to use queues and a socket that the supervisor has left.
func (w *worker) pickUpReplacements() {
	if next := w.nextTUN.Swap(nil); next != nil {
		if w.tunPort != nil {
			w.closeTUN()
		}
		w.tunPort = next
		w.merger = offload.NewMerger(next.limits, w.writeTUN)
	}
	if next := w.nextUDP.Swap(nil); next != nil {
		if w.udpPort != nil {
			w.closeUDP()
		}
		w.udpPort = next
	}
}

// tunLost reports the loss of the device. The worker goes on without one until it is replaced.
func (w *worker) tunLost() {
	storeMax(&w.engine.lostDevice, w.tunPort.generation)
	w.closeTUN()
	w.engine.requestRepair()
}

func (w *worker) closeTUN() {
	for _, q := range w.tunPort.queues {
		w.waiter.Forget(q.FD())
		w.engine.closeReplaced(q)
	}
	w.tunPort = nil
}

// udpLost reports the loss of the socket. The worker goes on without one until it is replaced.
func (w *worker) udpLost() {
	storeMax(&w.engine.lostSocket, w.udpPort.generation)
	w.closeUDP()
	w.engine.requestRepair()
}

// closeUDP closes the socket and drops the packets that wait for room in it. Some of them may have
// been sent already.
func (w *worker) closeUDP() {
	w.counters.drops[DropNoRoom].Add(w.pending.Packets)
	w.blocked, w.pending = false, Traffic{}
	w.waiter.Forget(w.udpPort.FD())
	w.waiter.Forget(w.udpPort.SendFD())
	w.engine.closeReplaced(w.udpPort.udpSocket)
	w.udpPort = nil
}

// wait blocks until an end is ready, and sets w.ready.
func (w *worker) wait() error {
	w.setPollFDs()
	if err := w.waiter.Wait(w.pollFDs[:], w.now); err != nil {
		return err
	}
	if w.pollFDs[pollWake].Revents != 0 {
		w.wake.Clear()
	}
	w.ready.socket = w.pollFDs[pollReceive].Revents != 0
	lost := false
	for c := range w.ready.queues {
		revents := w.pollFDs[c].Revents
		// A queue that was not polled may have frames. Do not take it for empty: see
		// flowClasses.onDrain.
		w.ready.queues[c] = revents != 0 || w.blocked || w.udpPort == nil
		// When its device is deleted, a TUN queue reports POLLERR without POLLIN
		// (drivers/net/tun.c, tun_chr_poll), so reading alone would not detect that.
		lost = lost || revents&(unix.POLLERR|unix.POLLNVAL) != 0
	}
	if lost {
		w.tunLost()
	}
	return nil
}

// setPollFDs sets the descriptors and events to wait for.
func (w *worker) setPollFDs() {
	for i := range w.pollFDs {
		w.pollFDs[i] = unix.PollFd{Fd: -1}
	}
	w.pollFDs[pollWake] = unix.PollFd{Fd: int32(w.wake.FD()), Events: unix.POLLIN}
	if w.tunPort != nil {
		// While nothing can be sent, poll only for the loss of the device, which is always
		// reported.
		events := int16(unix.POLLIN)
		if w.blocked || w.udpPort == nil {
			events = 0
		}
		for c, q := range w.tunPort.queues {
			w.pollFDs[c] = unix.PollFd{Fd: int32(q.FD()), Events: events}
		}
	}
	if w.udpPort != nil {
		w.pollFDs[pollReceive] = unix.PollFd{Fd: int32(w.udpPort.FD()), Events: unix.POLLIN}
		if w.blocked {
			w.pollFDs[pollSend] = unix.PollFd{Fd: int32(w.udpPort.SendFD()), Events: unix.POLLOUT}
		}
	}
}
