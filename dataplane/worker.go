package dataplane

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/dataplane/poll"
	"weft/dataplane/tun"
	"weft/dataplane/udp"
	"weft/encap"
	"weft/encap/offload"
)

// innerQueue is a worker's end of the TUN.
type innerQueue interface {
	// Read returns the next frame, borrowed until the next Read; one without a packet if there is none.
	Read() (tun.Frame, error)
	// Write hands a frame to the kernel and keeps nothing of it.
	Write(tun.Frame) error
}

// outerSocket is a worker's end of the underlay.
type outerSocket interface {
	// Reserve returns memory for the next datagram of a key, to be filled at once; nil if a Flush must come
	// first.
	Reserve(key udp.TxKey, n int) []byte
	// Flush sends what was reserved and tells of what the kernel refused. False means that the kernel has no
	// room and the rest is kept.
	Flush(udp.UndeliveredFunc) bool
	// Send sends one datagram at once, in outer fragments if the path carries no more.
	Send(to *udp.Destination, datagram []byte) error
	// Receive returns what has arrived, borrowed until the next Receive.
	Receive() ([]udp.Message, error)
}

// inner and outer are a worker's two ends with the age that tells a late report of a loss from a new one.
type inner struct {
	queues [classes]innerPort
	age    uint64
	limits offload.Limits // which super-frames it takes
}

type outer struct {
	outerPort
	age uint64
}

// worker is one goroutine that owns two TUN queues and one socket and moves packets between them, each to
// completion. Only the fields marked so are touched by others.
type worker struct {
	id       int
	tosMask  uint8 // what of the inner TOS goes into the outer header
	shares   int   // into how many shares flows are split: the workers, here and most likely at the other end
	engine   *Engine
	counters counters // others read

	wake      *poll.EventFD         // others signal
	stop      atomic.Bool           // others set
	nextInner atomic.Pointer[inner] // others leave a new queue here
	nextOuter atomic.Pointer[outer] // and a new socket here

	inner   *inner // nil while the device is lost
	outer   *outer // nil while the socket is lost
	flows   flowClasses
	merger  *offload.Merger
	view    *view // of this round
	now     func() time.Time
	start   time.Time                // the beginning of ticks
	pathMTU func(*peer) (int, error) // asks the kernel
	limiter limiter

	waiter      *poll.Waiter
	polls       [polled]unix.PollFd
	ready       ready
	blocked     bool                // the socket has no room: nothing more is read from the TUN until it has
	refused     udp.UndeliveredFunc // undelivered, bound once: a method value allocates
	sent        Traffic             // reserved since the last complete flush, less what was refused
	scratch     []byte              // for ICMP errors and fragments
	segment     []byte              // for one that is too long for its path
	checkedFrom checkedSender
}

// ready says which ends may have something.
type ready struct {
	queues [classes]bool
	outer  bool
}

// Indices of worker.polls; what is absent has a negative descriptor, which poll passes over. The TUN queues come first.
const (
	pollWake = classes + iota
	pollReceive
	pollSend
	polled
)

// maxShares is how many shares of the flows udp.TxKey can tell apart.
const maxShares = 256

func newWorker(id int, e *Engine) (*worker, error) {
	wake, err := poll.NewEventFD()
	if err != nil {
		return nil, err
	}
	waiter, err := poll.NewWaiter(poll.Config{
		BusyPoll:     e.config.Spin,
		Priority:     e.priority,
		PriorityLost: e.losePriority,
		Handoff:      e.handoff,
	})
	if err != nil {
		return nil, errors.Join(err, wake.Close())
	}
	w := &worker{
		id:      id,
		shares:  min(e.config.Workers, maxShares),
		engine:  e,
		wake:    wake,
		waiter:  waiter,
		now:     time.Now,
		start:   time.Now(),
		pathMTU: e.pathMTU,
		scratch: make([]byte, 0, scratchSize),
		segment: make([]byte, scratchSize),
	}
	w.refused = w.undelivered
	if e.config.ECN {
		w.tosMask |= encap.MaskECN
	}
	if e.config.DSCP {
		w.tosMask |= encap.MaskDSCP
	}
	return w, nil
}

// run moves packets until stop is set. It fails only if the kernel cannot poll, or not take a priority back.
func (w *worker) run() (err error) {
	for err == nil && !w.stop.Load() {
		w.adopt()
		err = w.next(w.round())
	}
	if err = errors.Join(err, w.waiter.Unpin()); err != nil {
		return fmt.Errorf("worker %d: %w", w.id, err)
	}
	return nil
}

// round moves some packets in both directions and reports whether there may be more.
func (w *worker) round() bool {
	w.view = w.engine.view.Load()
	w.flows.now = tickOf(w.now().Sub(w.start))
	more := w.outbound()
	return w.ready.outer && w.inbound() || more
}

// next says which ends to look at in the next round: both if there is more to do, else those that wait finds.
func (w *worker) next(more bool) error {
	if !more {
		return w.wait()
	}
	w.ready = ready{queues: [classes]bool{true, true}, outer: true}
	return w.waiter.KeepRunning(w.now())
}

// adopt takes over the queue and the socket that the supervisor may have left.
func (w *worker) adopt() {
	if next := w.nextInner.Swap(nil); next != nil {
		if w.inner != nil {
			w.retireInner()
		}
		w.inner = next
		w.merger = offload.NewMerger(next.limits, w.write)
	}
	if next := w.nextOuter.Swap(nil); next != nil {
		if w.outer != nil {
			w.retireOuter()
		}
		w.outer = next
	}
}

// loseInner puts the queue away: the worker goes on without until it gets a new one.
func (w *worker) loseInner() {
	keepNewest(&w.engine.lostDevice, w.inner.age)
	w.retireInner()
	w.engine.wakeSupervisor()
}

func (w *worker) retireInner() {
	for _, q := range w.inner.queues {
		w.waiter.Forget(q.FD())
		w.engine.retire(q)
	}
	w.inner = nil
}

// loseOuter puts the socket away.
func (w *worker) loseOuter() {
	keepNewest(&w.engine.lostSocket, w.outer.age)
	w.retireOuter()
	w.engine.wakeSupervisor()
}

// retireOuter closes the socket, and with it goes what waits for room in it: some of that may have left already.
func (w *worker) retireOuter() {
	w.counters.drops[DropNoRoom].Add(w.sent.Packets)
	w.blocked, w.sent = false, Traffic{}
	w.waiter.Forget(w.outer.FD())
	w.waiter.Forget(w.outer.SendFD())
	w.engine.retire(w.outer.outerPort)
	w.outer = nil
}

// wait blocks until there is something to do, and notes what.
func (w *worker) wait() error {
	w.setPolls()
	if err := w.waiter.Wait(w.polls[:], w.now); err != nil {
		return err
	}
	if w.polls[pollWake].Revents != 0 {
		w.wake.Clear()
	}
	w.ready.outer = w.polls[pollReceive].Revents != 0
	gone := false
	for c := range w.ready.queues {
		revents := w.polls[c].Revents
		// One that was not polled may have something: that it is empty must not be concluded, see flowClasses.drained.
		w.ready.queues[c] = revents != 0 || w.blocked || w.outer == nil
		// A TUN queue reports POLLERR once its device is deleted (drivers/net/tun.c, tun_chr_poll), and without
		// POLLIN, so that a reader alone would not notice.
		gone = gone || revents&(unix.POLLERR|unix.POLLNVAL) != 0
	}
	if gone {
		w.loseInner()
	}
	return nil
}

// setPolls says what wait has to wait for.
func (w *worker) setPolls() {
	for i := range w.polls {
		w.polls[i] = unix.PollFd{Fd: -1}
	}
	w.polls[pollWake] = unix.PollFd{Fd: int32(w.wake.FD()), Events: unix.POLLIN}
	if w.inner != nil {
		// While the socket is blocked only the loss of the device is of interest, which poll always reports.
		events := int16(unix.POLLIN)
		if w.blocked || w.outer == nil {
			events = 0
		}
		for c, q := range w.inner.queues {
			w.polls[c] = unix.PollFd{Fd: int32(q.FD()), Events: events}
		}
	}
	if w.outer != nil {
		w.polls[pollReceive] = unix.PollFd{Fd: int32(w.outer.FD()), Events: unix.POLLIN}
		if w.blocked {
			w.polls[pollSend] = unix.PollFd{Fd: int32(w.outer.SendFD()), Events: unix.POLLOUT}
		}
	}
}

func (w *worker) drop(d Drop) { w.counters.drops[d].Add(1) }
