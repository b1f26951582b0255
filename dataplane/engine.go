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
	"weft/dataplane/tun"
	"weft/dataplane/udp"
)

// Engine is the dataplane of the udp backend: one TUN device, one group of sockets, and the workers
// between them. It forwards only while Run runs. Its methods may be called concurrently.
type Engine struct {
	config   Config
	log      *slog.Logger
	workers  []*worker
	handoff  *poll.Handoff // shared by the workers
	priority poll.Priority // of the workers
	snapshot atomic.Pointer[snapshot]
	taps     atomic.Pointer[taps] // nil without captures
	mtu      atomic.Int32         // of a device that is created, in bytes

	repairRequests chan struct{} // notifies the supervisor; holds one
	nodesKnown     chan struct{} // closed by the first SetNodes
	lostDevice     atomic.Uint64 // newest deviceGeneration that a worker found deleted
	lostSocket     atomic.Uint64 // newest socketGeneration that a worker found broken

	mu       sync.Mutex             // guards the rest
	closers  map[io.Closer]struct{} // all open queues and sockets
	closed   bool
	nodes    nodes
	features map[feature.Name]error // why each is not in use, nil if it is

	repairErr error // why the last repair failed; nil if it succeeded

	device            string // name that the kernel assigned
	queues            []*tun.Queue
	deviceGeneration  uint64 // number of devices created
	deviceRecreations uint64
	tunDrops          uint64 // of the current device, as last read
	pastTUNDrops      uint64 // of earlier devices

	bind              netip.AddrPort // configured
	bound             netip.AddrPort // of the newest socket group
	sockets           []udpSocket    // the newest group; nil for a closed one
	socketGeneration  uint64         // number of groups opened
	socketRecreations uint64
	prober            *udp.Prober
	fast              fastPath
	overflows         []uint64 // per socket, as last read
	pastOverflows     uint64   // of earlier groups
}

// tunQueue is a TUN queue.
type tunQueue interface {
	// Read returns the next frame, borrowed until the next Read. Without one, the packet is nil.
	Read() (tun.Frame, error)
	// Write passes a frame to the kernel and does not retain it.
	Write(tun.Frame) error
	FD() int
	io.Closer
}

// udpSocket is a socket of the underlay.
type udpSocket interface {
	datagramIO
	FD() int
	SendFD() int
	Overflows() (uint64, error)
	io.Closer
}

// Open creates the TUN device and the sockets. The device has no address and is down; configuring
// it is up to the caller. If another process uses the port, the error is udp.ErrInUse. If inherited
// descriptors cannot be used, it is ErrInherited.
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
		return nil, errors.Join(fmt.Errorf("open dataplane: %w", err), e.Close(),
			e.config.Inherited.Close())
	}
	for _, s := range e.Status() {
		if !s.Used {
			e.log.Info("feature not used", "feature", s.Feature, "reason", s.Reason)
		}
	}
	return e, nil
}

// newEngine returns an engine whose workers have neither queues nor sockets yet.
func newEngine(c Config) (*Engine, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	e := &Engine{
		config:         c,
		log:            c.Log,
		handoff:        poll.NewHandoff(),
		repairRequests: make(chan struct{}, 1),
		nodesKnown:     make(chan struct{}),
		device:         c.Device,
		bind:           c.Bind,
		closers:        make(map[io.Closer]struct{}),
		features:       make(map[feature.Name]error),
	}
	e.mtu.Store(int32(c.MTU))
	e.probePriority()
	e.shortenSlices()
	e.fast.err = errFastPathWait
	e.store(fib.Node{}, e.nodes.change(nil, nil, nil).Table)
	for i := range c.Workers {
		w, err := newWorker(i, e)
		if err != nil {
			return nil, errors.Join(err, e.Close())
		}
		e.workers = append(e.workers, w)
	}
	return e, nil
}

// closeUnused closes c, which no worker uses. The caller holds e.mu.
func (e *Engine) closeUnused(c io.Closer) error {
	delete(e.closers, c)
	for i, s := range e.sockets {
		if s == c {
			e.sockets[i] = nil
		}
	}
	return c.Close()
}

// closeReplaced closes a queue or socket that a worker no longer uses.
func (e *Engine) closeReplaced(c io.Closer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.closeUnused(c); err != nil {
		e.log.Warn("close of replaced descriptor failed", "err", err)
	}
}

// Device returns the name that the kernel assigned to the TUN device.
func (e *Engine) Device() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.device
}

// SetMTU sets the MTU in bytes of a device that is recreated later. The current device is left
// alone: its MTU belongs to the code that manages its addresses.
func (e *Engine) SetMTU(mtu int) { e.mtu.Store(int32(mtu)) }

// Run forwards packets until ctx is done, then returns nil within 100 ms. It may be called once.
//
// If necessary it raises GOMAXPROCS above the number of workers: a worker keeps its P while it
// waits for packets that arrive soon (see package poll), and other goroutines need some, too.
func (e *Engine) Run(ctx context.Context) error {
	if procs := runtime.GOMAXPROCS(0); procs <= len(e.workers)+1 {
		runtime.GOMAXPROCS(len(e.workers) + 2)
		defer runtime.GOMAXPROCS(procs)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var handoff, workers sync.WaitGroup
	handoff.Go(e.handoff.Run)
	defer handoff.Wait()
	defer e.handoff.Stop()
	e.awaitNodes(ctx)
	failed := make(chan error, len(e.workers))
	for _, w := range e.workers {
		workers.Go(func() {
			if err := w.run(); err != nil {
				failed <- err
				cancel()
			}
		})
	}
	e.supervise(ctx)
	e.leaveFastPath()
	for _, w := range e.workers {
		w.stop.Store(true)
		w.wake.Signal()
	}
	workers.Wait()
	select {
	case err := <-failed:
		return fmt.Errorf("dataplane: %w", err)
	default:
		return nil
	}
}

// Close releases the device and the port. A device with a fast path stays, with the packets that
// the kernel carries. Run must have returned or never been called.
func (e *Engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	errs := []error{e.closeFastPath()}
	for c := range e.closers {
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
