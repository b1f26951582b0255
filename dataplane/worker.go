package dataplane

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

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
	// Reserve returns memory for the next datagram of a lane, to be filled at once; nil if a Flush must come
	// first.
	Reserve(lane udp.Lane, n int) []byte
	// Flush sends what was reserved and tells of what the kernel refused. False means that the kernel has no
	// room and the rest is kept.
	Flush(udp.Undelivered) bool
	// Send sends one datagram at once.
	Send(to *udp.Destination, datagram []byte) error
	// Receive returns what has arrived, borrowed until the next Receive.
	Receive() ([]udp.Message, error)
}

// inner and outer are a worker's two ends with the age that tells a late report of a loss from a new one.
type inner struct {
	innerPort
	age    uint64
	limits offload.Limits // which super-frames it takes
}

type outer struct {
	outerPort
	age uint64
}

// worker is one goroutine that owns one TUN queue and one socket and moves packets between them, each to
// completion. Only the fields marked so are touched by others.
type worker struct {
	id       int
	tosMask  uint8 // what of the inner TOS goes into the outer header
	shares   int   // into how many shares flows are split: the workers, here and most likely at the other end
	engine   *Engine
	counters counters // others read

	wake      *wakeup               // others signal
	stop      atomic.Bool           // others set
	nextInner atomic.Pointer[inner] // others leave a new queue here
	nextOuter atomic.Pointer[outer] // and a new socket here

	inner   *inner // nil while the device is lost
	outer   *outer // nil while the socket is lost
	merger  *offload.Merger
	view    *view // of this round
	now     func() time.Time
	pathMTU func(*peer) (int, error) // asks the kernel
	limiter limiter

	waiter      waiter
	polls       [4]unix.PollFd
	ready       struct{ inner, outer bool } // which end may have something
	blocked     bool                        // the socket has no room: nothing more is read from the TUN until it has
	refused     udp.Undelivered             // undelivered, bound once: a method value allocates
	sent        Traffic                     // reserved since the last complete flush, less what was refused
	scratch     []byte                      // for ICMP errors and fragments
	segment     []byte                      // for one that is too long for its path
	checkedFrom checkedSender
}

// maxShares is how many shares of the flows udp.Lane can tell apart.
const maxShares = 256

func newWorker(id int, e *Engine) (*worker, error) {
	wake, err := newWakeup()
	if err != nil {
		return nil, err
	}
	sleep, err := newSleeper(e.relay)
	if err != nil {
		return nil, errors.Join(err, wake.Close())
	}
	w := &worker{
		id:      id,
		shares:  min(e.config.Workers, maxShares),
		engine:  e,
		wake:    wake,
		now:     time.Now,
		pathMTU: e.pathMTU,
		scratch: make([]byte, 0, scratchSize),
		segment: make([]byte, scratchSize),
	}
	w.refused = w.undelivered
	w.waiter = waiter{sleep: sleep, spin: e.config.Spin}
	if e.config.ECN {
		w.tosMask |= encap.MaskECN
	}
	if e.config.DSCP {
		w.tosMask |= encap.MaskDSCP
	}
	return w, nil
}

// run moves packets until stop is set. It fails only if the kernel cannot poll.
func (w *worker) run() error {
	for !w.stop.Load() {
		w.adopt()
		w.view = w.engine.view.Load()
		more := w.ready.inner && w.outbound()
		more = w.ready.outer && w.inbound() || more
		if err := w.next(more); err != nil {
			return fmt.Errorf("worker %d: %w", w.id, err)
		}
	}
	return nil
}

// next says which ends to look at in the next round: both if there is more to do, else those that wait finds.
func (w *worker) next(more bool) error {
	if !more {
		return w.wait()
	}
	w.ready.inner, w.ready.outer = true, true
	return w.waiter.sleep.stayAwake()
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
		w.blocked, w.sent = false, Traffic{}
	}
}

// loseInner puts the queue away: the worker goes on without until it gets a new one.
func (w *worker) loseInner() {
	w.engine.lostDevice.Store(w.inner.age)
	w.retireInner()
	w.engine.wakeSupervisor()
}

func (w *worker) retireInner() {
	w.waiter.sleep.forget(w.inner.FD())
	w.engine.retire(w.inner.innerPort)
	w.inner = nil
}

// loseOuter puts the socket away.
func (w *worker) loseOuter() {
	w.engine.lostSocket.Store(w.outer.age)
	w.retireOuter()
	w.engine.wakeSupervisor()
}

func (w *worker) retireOuter() {
	w.waiter.sleep.forget(w.outer.FD())
	w.waiter.sleep.forget(w.outer.SendFD())
	w.engine.retire(w.outer.outerPort)
	w.outer = nil
}

// wait blocks until there is something to do, and notes what.
func (w *worker) wait() error {
	const none = -1 // poll passes over negative descriptors
	w.polls = [4]unix.PollFd{{Fd: int32(w.wake.fd), Events: unix.POLLIN}, {Fd: none}, {Fd: none}, {Fd: none}}
	if w.inner != nil {
		// While the socket is blocked only the loss of the device is of interest, which poll always reports.
		w.polls[1] = unix.PollFd{Fd: int32(w.inner.FD()), Events: unix.POLLIN}
		if w.blocked || w.outer == nil {
			w.polls[1].Events = 0
		}
	}
	if w.outer != nil {
		w.polls[2] = unix.PollFd{Fd: int32(w.outer.FD()), Events: unix.POLLIN}
		if w.blocked {
			w.polls[3] = unix.PollFd{Fd: int32(w.outer.SendFD()), Events: unix.POLLOUT}
		}
	}
	if err := w.waiter.poll(w.polls[:], w.now); err != nil {
		return err
	}
	if w.polls[0].Revents != 0 {
		w.wake.clear()
	}
	// A TUN queue reports POLLERR once its device is deleted (drivers/net/tun.c, tun_chr_poll), and without
	// POLLIN, so that a reader alone would not notice.
	if w.polls[1].Revents&(unix.POLLERR|unix.POLLNVAL) != 0 {
		w.loseInner()
	}
	w.ready.inner = w.polls[1].Revents|w.polls[3].Revents != 0
	w.ready.outer = w.polls[2].Revents != 0
	return nil
}

func (w *worker) drop(d Drop) { w.counters.drops[d].Add(1) }
