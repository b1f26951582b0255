package dataplane

import (
	"errors"
	"io"
	"slices"

	"weft/dataplane/feature"
	"weft/dataplane/tun"
	"weft/dataplane/udp"
	"weft/encap/offload"
)

// openDevice creates the TUN device, or attaches to it, and assigns each worker its queues. The
// caller holds e.mu.
func (e *Engine) openDevice() error {
	d, err := e.openTUN(tun.Config{
		Name:   e.device,
		Queues: numClasses * len(e.workers),
		MTU:    int(e.mtu.Load()),
		NoTSO:  e.disabled(feature.TSO),
		NoUSO:  e.disabled(feature.USO),
	})
	if err != nil {
		return err
	}
	for f, reason := range d.Features() {
		e.features[f] = reason
	}
	e.device, e.queues = d.Name(), d.Queues()
	e.deviceGeneration++
	return errors.Join(e.assignQueues(d.Queues()), e.openFastPath(d))
}

// assignQueues leaves the next numClasses queues for each worker. The caller holds e.mu.
func (e *Engine) assignQueues(queues []*tun.Queue) error {
	var errs []error
	limits := offload.Limits{
		TCP: e.features[feature.TSO] == nil,
		UDP: e.features[feature.USO] == nil,
	}
	for i, w := range e.workers {
		next := &tunPort{generation: e.deviceGeneration, limits: limits}
		for c := range next.queues {
			q := queues[i*numClasses+c]
			e.closers[q] = struct{}{}
			next.queues[c] = q
		}
		if unused := w.nextTUN.Swap(next); unused != nil {
			for _, q := range unused.queues {
				errs = append(errs, e.closeUnused(q))
			}
		}
		w.wake.Signal()
	}
	return errors.Join(errs...)
}

// openTUN opens the kind of device that the mode selects. It falls back to the portable device only
// if the kernel lacks vnet headers; other errors are returned, so that the caller retries.
func (e *Engine) openTUN(c tun.Config) (*tun.Device, error) {
	if d, err := e.adoptTUN(c); d != nil || err != nil {
		return d, err
	}
	if e.portableTUN() {
		return tun.OpenPortable(c)
	}
	d, err := tun.OpenOffload(c)
	if !errors.Is(err, tun.ErrNoVnetHeader) || e.config.Mode == ModeOffload {
		return d, err
	}
	portable, portableErr := tun.OpenPortable(c)
	if portableErr != nil {
		return nil, errors.Join(err, portableErr)
	}
	e.log.Warn("TUN device carries one packet per frame", "reason", err)
	return portable, nil
}

// openSockets opens a group of sockets on e.bind and assigns each worker its socket. The caller
// holds e.mu.
func (e *Engine) openSockets() error {
	buffer := e.config.Buffer
	if e.disabled(feature.Buffers) {
		buffer = 0
	}
	c := udp.Config{
		Bind:       e.bind,
		Sockets:    len(e.workers),
		SourcePort: e.config.SourcePort,
		Buffer:     buffer,
		ReadTOS:    e.config.ECN,
		ReusePorts: e.bound == e.bind,
		NoGSO:      e.disabled(feature.GSO),
		NoGRO:      e.disabled(feature.GRO),
		NoSteering: e.disabled(feature.Steering),
	}
	var err error
	if c.Inherited, err = e.inheritedSockets(c); err != nil {
		return err
	}
	group, err := e.openUDP(c)
	if err != nil {
		return err
	}
	prober, err := udp.NewProber(e.bind.Addr())
	if err != nil {
		return errors.Join(err, closeAll(group))
	}
	var closeErr error
	if e.prober != nil {
		closeErr = e.prober.Close()
	}
	e.prober, e.bound = prober, e.bind
	if current := e.taps.Load(); current != nil {
		e.taps.Store(&taps{sessions: current.sessions, local: e.bound})
	}
	e.socketGeneration++
	return errors.Join(closeErr, e.assignSockets(group))
}

// assignSockets leaves a socket for each worker. The caller holds e.mu.
func (e *Engine) assignSockets(group []udpSocket) error {
	for _, n := range e.overflows {
		e.pastOverflows += n
	}
	e.sockets, e.overflows = slices.Clone(group), make([]uint64, len(group))
	var errs []error
	for i, s := range group {
		e.closers[s] = struct{}{}
		next := &udpPort{udpSocket: s, generation: e.socketGeneration}
		if unused := e.workers[i].nextUDP.Swap(next); unused != nil {
			errs = append(errs, e.closeUnused(unused.udpSocket))
		}
		e.workers[i].wake.Signal()
	}
	return errors.Join(errs...)
}

// openUDP opens the kind of sockets that the mode selects.
func (e *Engine) openUDP(c udp.Config) ([]udpSocket, error) {
	if e.config.Mode == ModePortable {
		return openGroup(e, func() (*udp.Group[*udp.Portable], error) {
			return udp.OpenPortable(c)
		})
	}
	return openGroup(e, func() (*udp.Group[*udp.Offload], error) {
		return udp.OpenOffload(c)
	})
}

// openGroup opens a group of sockets of either kind and records its features.
func openGroup[S udpSocket](e *Engine, open func() (*udp.Group[S], error)) ([]udpSocket, error) {
	group, err := open()
	if err != nil {
		return nil, err
	}
	for f, reason := range group.Features() {
		e.features[f] = reason
	}
	var all []udpSocket
	for _, s := range group.Sockets {
		all = append(all, s)
	}
	return all, nil
}

func closeAll[C io.Closer](all []C) error {
	var errs []error
	for _, c := range all {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
