package dataplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"
)

// Delay between two attempts to recreate the device or the sockets. minBackoff applies after a
// success, too, so that a device that is deleted in a loop does not use up a CPU.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// supervise recreates the device and the sockets after a worker has lost one, until ctx is done.
func (e *Engine) supervise(ctx context.Context) {
	backoff, last := minBackoff, time.Time{}
	timer := time.NewTimer(0)
	<-timer.C
	defer timer.Stop()
	var heartbeat <-chan time.Time
	if e.config.FastPath != FastPathOff {
		e.superviseFastPath(time.Now())
		t := time.NewTicker(heartbeatInterval)
		defer t.Stop()
		heartbeat = t.C
	}
	scheduled := false
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-heartbeat:
			e.superviseFastPath(now)
		case <-e.repairRequests:
			if !scheduled {
				scheduled = true
				timer.Reset(max(0, backoff-time.Since(last)))
			}
		case <-timer.C:
			last = time.Now()
			err := e.repair()
			if err == nil {
				scheduled, backoff = false, minBackoff
				continue
			}
			if backoff == minBackoff {
				e.log.Warn("dataplane repair failed, retrying", "err", err)
			}
			backoff = min(2*backoff, maxBackoff)
			timer.Reset(backoff)
		}
	}
}

// Err returns why the engine carries no packets, or nil. It counts a device or sockets that are
// being recreated, and an address that the sockets could not be moved to.
func (e *Engine) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.lostDevice.Load() == e.deviceGeneration:
		return lost("TUN device", e.repairErr)
	case e.lostSocket.Load() == e.socketGeneration:
		return lost("sockets", e.repairErr)
	case e.bound != e.bind:
		return fmt.Errorf("sockets are not on %s yet: %w", e.bind, cmp.Or(e.repairErr, errNotYet))
	}
	return nil
}

var errNotYet = errors.New("being opened")

func lost(object string, repairErr error) error {
	if repairErr == nil {
		return fmt.Errorf("%s lost, being recreated", object)
	}
	return fmt.Errorf("%s lost and not recreated: %w", object, repairErr)
}

// repair recreates the device and the sockets where lost.
func (e *Engine) repair() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	if e.lostDevice.Load() == e.deviceGeneration {
		err := e.openDevice()
		if err == nil {
			e.deviceRecreations++
			e.log.Warn("TUN device recreated", "device", e.device)
		}
		errs = append(errs, err)
	}
	if e.lostSocket.Load() == e.socketGeneration || e.bound != e.bind {
		previous := e.bound
		err := e.openSockets()
		if err == nil {
			e.socketRecreations++
			// With a new address they were not lost: Rebind failed because it did not exist yet.
			e.log.Warn("sockets reopened", "address", e.bound, "previous", previous)
		}
		errs = append(errs, err)
	}
	e.repairErr = errors.Join(errs...)
	return e.repairErr
}

// Rebind moves the sockets to another outer address or port, and the fast path to the interface
// that has it. If that fails, it returns the reason, the old sockets stay in use, and Run retries
// until it succeeds or Rebind is called with another address.
func (e *Engine) Rebind(bind netip.AddrPort, underlay string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bind, e.config.Underlay = bind, underlay
	e.moveFastPath()
	if e.bind == e.bound {
		return nil
	}
	if err := e.openSockets(); err != nil {
		e.repairErr = err
		e.requestRepair()
		return fmt.Errorf("rebind: %w", err)
	}
	e.socketRecreations++
	return nil
}

// probePathMTU asks the kernel for the MTU of the path to a node, including outer headers.
func (e *Engine) probePathMTU(p *peer) (int, error) {
	e.mu.Lock()
	prober := e.prober
	e.mu.Unlock()
	return prober.PathMTU(p.dest.Addr)
}

// storeMax sets v to n unless it is higher: a late report of an old loss must not hide a new one.
func storeMax(v *atomic.Uint64, n uint64) {
	for old := v.Load(); old < n && !v.CompareAndSwap(old, n); {
		old = v.Load()
	}
}

// requestRepair notifies the supervisor.
func (e *Engine) requestRepair() {
	select {
	case e.repairRequests <- struct{}{}:
	default: // one is pending
	}
}
