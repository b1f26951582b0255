package dataplane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
	"weft/dataplane/tun"
	"weft/dataplane/udp"
)

// Descriptors are the descriptors in which the kernel queues packets for an engine. While another
// process holds copies of them, the device and the port remain, and packets that arrive without an
// engine wait there for the next one.
type Descriptors struct {
	Queues  []int // of the TUN device
	Sockets []int // receiving ones, bound to the outer address
}

// Device returns the name of the TUN device of the queues, "" without queues.
func (d Descriptors) Device() (string, error) {
	if len(d.Queues) == 0 {
		return "", nil
	}
	return tun.NameOf(d.Queues[0])
}

// Close closes all descriptors.
func (d Descriptors) Close() error {
	var errs []error
	for _, fd := range append(d.Queues, d.Sockets...) {
		errs = append(errs, unix.Close(fd))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close inherited descriptors: %w", err)
	}
	return nil
}

// Generation returns a number that grows whenever the descriptors are replaced.
func (e *Engine) Generation() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.deviceGeneration + e.socketGeneration
}

// ShareDescriptors calls share with the descriptors of the engine, which remain the engine's and
// are valid until share returns. Sockets that send from ports of their own are not shared.
func (e *Engine) ShareDescriptors(share func(Descriptors) error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var d Descriptors
	for _, q := range e.queues {
		d.Queues = append(d.Queues, q.FD())
	}
	for _, s := range e.sockets {
		if s != nil && s.FD() == s.SendFD() {
			d.Sockets = append(d.Sockets, s.FD())
		}
	}
	return share(d)
}

// awaitNodes waits until SetNodes has been called, so that packets which arrived before wait in the
// kernel's queues rather than being dropped for want of a node. It waits no longer than
// Config.AwaitNodes.
func (e *Engine) awaitNodes(ctx context.Context) {
	if e.config.AwaitNodes == 0 {
		return
	}
	timeout := time.NewTimer(e.config.AwaitNodes)
	defer timeout.Stop()
	select {
	case <-e.nodesKnown:
	case <-timeout.C:
	case <-ctx.Done():
	}
}

// ErrInherited means that inherited descriptors do not fit the configuration.
var ErrInherited = errors.New("inherited descriptors do not fit")

// adoptTUN returns the device of the inherited queues, nil if there are none. The next call has
// none. The caller holds e.mu.
func (e *Engine) adoptTUN(c tun.Config) (*tun.Device, error) {
	inherited := e.config.Inherited.Queues
	if len(inherited) == 0 {
		return nil, nil
	}
	if e.portableTUN() {
		return nil, fmt.Errorf("%w: device without virtio headers configured", ErrInherited)
	}
	e.config.Inherited.Queues = nil
	d, err := tun.Adopt(c, inherited)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInherited, err)
	}
	return d, nil
}

// portableTUN reports whether the configuration demands a device without virtio headers.
func (e *Engine) portableTUN() bool {
	return e.config.Mode == ModePortable || e.disabled(feature.VnetHeader)
}

// inheritedSockets returns the inherited sockets, nil if there are none. The next call has none.
// The caller holds e.mu.
func (e *Engine) inheritedSockets(c udp.Config) ([]int, error) {
	inherited := e.config.Inherited.Sockets
	if len(inherited) == 0 {
		return nil, nil
	}
	err := c.Inheritable(inherited)
	if e.config.Mode == ModePortable {
		err = errors.New("sockets join datagrams, which the portable engine does not expect")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInherited, err)
	}
	e.config.Inherited.Sockets = nil
	return inherited, nil
}
