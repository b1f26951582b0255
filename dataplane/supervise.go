package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"
)

// How long the supervisor waits between two attempts to make the device or the sockets again: at least the
// first, after a success too, so that a device that is deleted in a loop does not cost a CPU.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// supervise makes the device and the sockets again whenever a worker has lost one, until ctx is done.
func (e *Engine) supervise(ctx context.Context) {
	backoff, last := minBackoff, time.Time{}
	timer := time.NewTimer(0)
	<-timer.C
	defer timer.Stop()
	due := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.kick:
			if !due {
				due = true
				timer.Reset(max(0, backoff-time.Since(last)))
			}
		case <-timer.C:
			last = time.Now()
			err := e.repair()
			if err == nil {
				due, backoff = false, minBackoff
				continue
			}
			if backoff == minBackoff {
				e.log.Warn("could not repair the dataplane, trying on", "error", err)
			}
			backoff = min(2*backoff, maxBackoff)
			timer.Reset(backoff)
		}
	}
}

// repair makes again what is lost.
func (e *Engine) repair() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	if e.lostDevice.Load() == e.deviceAge {
		err := e.openDevice()
		if err == nil {
			e.deviceRecreations++
			e.log.Warn("the TUN device was lost and is made again", "device", e.device)
		}
		errs = append(errs, err)
	}
	if e.lostSocket.Load() == e.socketAge || e.bound != e.bind {
		before := e.bound
		err := e.openSockets()
		if err == nil {
			e.socketRecreations++
			// Where the address is another one, they are not lost: it was not there yet when Rebind wanted it.
			e.log.Warn("the sockets are opened again", "address", e.bound, "before", before)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Rebind moves to another outer address or port. If that fails, the error says why, the old sockets stay in
// use, and Run tries again by itself until it works or Rebind is called with another address.
func (e *Engine) Rebind(bind netip.AddrPort) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bind = bind
	if e.bind == e.bound {
		return nil
	}
	if err := e.openSockets(); err != nil {
		e.wakeSupervisor()
		return fmt.Errorf("rebind: %w", err)
	}
	e.socketRecreations++
	return nil
}

// pathMTU asks the kernel for the MTU of the path to the node, outer headers included.
func (e *Engine) pathMTU(p *peer) (int, error) {
	e.mu.Lock()
	prober := e.prober
	e.mu.Unlock()
	return prober.PathMTU(p.to.Addr)
}

// keepNewest sets age to n unless it is higher: a worker that is slow to notice an old loss does not hide a new one.
func keepNewest(age *atomic.Uint64, n uint64) {
	for now := age.Load(); now < n && !age.CompareAndSwap(now, n); {
		now = age.Load()
	}
}

func (e *Engine) wakeSupervisor() {
	select {
	case e.kick <- struct{}{}:
	default: // it is awake already
	}
}
