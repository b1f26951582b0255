package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"

	"weft/dataplane/feature"
	"weft/dataplane/fib"
	"weft/dataplane/poll"
	"weft/dataplane/udp"
)

// Engine is the udp backend's dataplane: one TUN device, one group of sockets and the workers between them.
// Its methods may be called from many goroutines. It forwards only while Run runs.
type Engine struct {
	config   Config
	log      *slog.Logger
	workers  []*worker
	view     atomic.Pointer[view]
	priority poll.Priority // of the workers
	mtu      atomic.Int32  // of the TUN, in bytes

	kick       chan struct{} // wakes the supervisor; holds one
	handoff    *poll.Handoff
	lostDevice atomic.Uint64 // the newest deviceAge that a worker found gone
	lostSocket atomic.Uint64 // the newest socketAge that a worker found broken

	mu                sync.Mutex             // guards the rest
	device            string                 // the name the kernel gave
	bind              netip.AddrPort         // what is wanted
	bound             netip.AddrPort         // what the newest group of sockets has
	features          map[feature.Name]error // why each is not in use, nil if it is
	deviceAge         uint64                 // counts the devices made, so that a late report of a loss is told from a new one
	socketAge         uint64                 // counts the groups of sockets
	open              map[io.Closer]struct{} // every descriptor's owner
	sockets           []outerPort            // the newest group, nil for one that is closed already
	prober            *udp.Prober
	overflows         []uint64 // of each in sockets, as last read
	overflowsBefore   uint64   // of the groups before
	tunDrops          uint64   // of the device, as last read
	tunDropsBefore    uint64   // of the devices before
	deviceRecreations uint64
	socketRecreations uint64
	closed            bool
}

// innerPort and outerPort are the two ends as the engine keeps them: what a worker uses and how to end it.
type innerPort interface {
	innerQueue
	FD() int
	io.Closer
}

type outerPort interface {
	outerSocket
	FD() int
	SendFD() int
	Overflows() (uint64, error)
	io.Closer
}

// Open makes the TUN device and the sockets. The device has no address and is down: that is the caller's
// business. A port in use by another process is udp.ErrInUse.
func Open(c Config) (*Engine, error) {
	e, err := newEngine(c)
	if err != nil {
		return nil, fmt.Errorf("open dataplane: %w", err)
	}
	e.mu.Lock()
	err = e.openSockets()
	if err == nil {
		err = e.openDevice()
	}
	e.mu.Unlock()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open dataplane: %w", err), e.Close())
	}
	for _, s := range e.Status() {
		if !s.Used {
			e.log.Info("the dataplane does without a feature", "feature", s.Feature, "reason", s.Reason)
		}
	}
	return e, nil
}

// newEngine makes an engine with workers that have neither queues nor sockets yet.
func newEngine(c Config) (*Engine, error) {
	c, err := c.complete()
	if err != nil {
		return nil, err
	}
	e := &Engine{
		config:   c,
		log:      c.Log,
		kick:     make(chan struct{}, 1),
		handoff:  poll.NewHandoff(),
		device:   c.Device,
		bind:     c.Bind,
		open:     make(map[io.Closer]struct{}),
		features: make(map[feature.Name]error),
	}
	e.mtu.Store(int32(c.MTU))
	e.choosePriority()
	e.view.Store(newView(&view{}, fib.Node{}, nil))
	for i := range c.Workers {
		w, err := newWorker(i, e)
		if err != nil {
			return nil, errors.Join(err, e.Close())
		}
		e.workers = append(e.workers, w)
	}
	return e, nil
}

// end closes c, which nobody uses any more. e.mu is held.
func (e *Engine) end(c io.Closer) error {
	delete(e.open, c)
	for i, s := range e.sockets {
		if s == c {
			e.sockets[i] = nil
		}
	}
	return c.Close()
}

// retire closes what a worker no longer uses.
func (e *Engine) retire(c io.Closer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.end(c); err != nil {
		e.log.Warn("could not close what was replaced", "error", err)
	}
}

// Device returns the name that the kernel gave the TUN device.
func (e *Engine) Device() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.device
}

// SetNodes replaces what the workers know of the overlay: the subnets of this node, and all other nodes. It takes
// effect with each worker's next round.
func (e *Engine) SetNodes(self fib.Node, others []fib.Node) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.view.Store(newView(e.view.Load(), self, others))
}

// SetMTU says which MTU in bytes a device that has to be made again gets. The one in use is left alone: that is
// changed by whoever manages its addresses.
func (e *Engine) SetMTU(mtu int) { e.mtu.Store(int32(mtu)) }

// Run forwards packets until ctx is done, and returns nil then; it returns within 100 ms. It may be called once.
//
// It raises GOMAXPROCS above the number of workers if need be: a worker keeps its P while it waits for packets that come
// soon (see package poll), and everybody else needs some, too.
func (e *Engine) Run(ctx context.Context) error {
	if procs := runtime.GOMAXPROCS(0); procs <= len(e.workers)+1 {
		runtime.GOMAXPROCS(len(e.workers) + 2)
		defer runtime.GOMAXPROCS(procs)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var handoff, all sync.WaitGroup
	handoff.Go(e.handoff.Run)
	defer handoff.Wait()
	defer e.handoff.Stop()
	failed := make(chan error, len(e.workers))
	for _, w := range e.workers {
		all.Go(func() {
			if err := w.run(); err != nil {
				failed <- err
				cancel()
			}
		})
	}
	e.supervise(ctx)
	for _, w := range e.workers {
		w.stop.Store(true)
		w.wake.Signal()
	}
	all.Wait()
	select {
	case err := <-failed:
		return fmt.Errorf("dataplane: %w", err)
	default:
		return nil
	}
}

// Close ends what Run has left: the device disappears and the port is free. Run must have returned or never
// been called.
func (e *Engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	var errs []error
	for c := range e.open {
		errs = append(errs, c.Close())
	}
	if e.prober != nil {
		errs = append(errs, e.prober.Close())
	}
	for _, w := range e.workers {
		errs = append(errs, w.wake.Close(), w.waiter.Close())
	}
	return errors.Join(errs...)
}
