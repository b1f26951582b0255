package dataplane

import (
	"errors"
	"io"
	"slices"

	"weft/dataplane/feature"
	"weft/dataplane/poll"
	"weft/dataplane/tun"
	"weft/dataplane/udp"
	"weft/encap/offload"
)

// FeatureStatus says whether a feature is in use.
type FeatureStatus struct {
	Feature feature.Name
	Used    bool
	Reason  string // why it is not in use
}

// Status returns what is in use of every feature, in the order of feature.All.
func (e *Engine) Status() []FeatureStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []FeatureStatus
	for _, f := range feature.All() {
		s := FeatureStatus{Feature: f, Used: e.features[f] == nil}
		if !s.Used {
			s.Reason = e.features[f].Error()
		}
		all = append(all, s)
	}
	return all
}

// without reports whether the configuration refuses the feature.
func (e *Engine) without(f feature.Name) bool { return slices.Contains(e.config.DisabledFeatures, f) }

// choosePriority sets the priority of the workers that are made next.
func (e *Engine) choosePriority() {
	if e.without(feature.Priority) {
		e.features[feature.Priority] = feature.ErrDisabled
		return
	}
	e.priority, e.features[feature.Priority] = poll.ProbePriority()
}

// losePriority notes why workers do without priority from now on: each finds out for itself, and the first is heard.
func (e *Engine) losePriority(why error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.features[feature.Priority] == nil {
		e.features[feature.Priority] = why
		e.log.Warn("the dataplane goes on without a feature", "feature", feature.Priority, "reason", why)
	}
}

// openDevice makes the device, or attaches to it, and hands each worker its queues. e.mu is held.
func (e *Engine) openDevice() error {
	d, err := e.openTUN(tun.Config{
		Name:   e.device,
		Queues: classes * len(e.workers),
		MTU:    int(e.mtu.Load()),
		NoTSO:  e.without(feature.TSO),
		NoUSO:  e.without(feature.USO),
	})
	if err != nil {
		return err
	}
	for f, lack := range d.Features() {
		e.features[f] = lack
	}
	limits := offload.Limits{TCP: e.features[feature.TSO] == nil, UDP: e.features[feature.USO] == nil}
	var errs []error
	e.device = d.Name()
	e.deviceAge++
	for i, w := range e.workers {
		next := &inner{age: e.deviceAge, limits: limits}
		for c := range next.queues {
			q := d.Queues()[i*classes+c]
			e.open[q] = struct{}{}
			next.queues[c] = q
		}
		if unused := w.nextInner.Swap(next); unused != nil {
			for _, q := range unused.queues {
				errs = append(errs, e.end(q))
			}
		}
		w.wake.Signal()
	}
	return errors.Join(errs...)
}

// openTUN opens the kind of device that the mode asks for. Only a kernel that lacks what the fast kind needs makes it the
// plain one: whatever else fails is tried again.
func (e *Engine) openTUN(c tun.Config) (*tun.Device, error) {
	if e.config.Mode == ModePortable || e.without(feature.VnetHeader) {
		return tun.OpenPortable(c)
	}
	d, err := tun.OpenOffload(c)
	if !errors.Is(err, tun.ErrNoVnetHeader) || e.config.Mode == ModeOffload {
		return d, err
	}
	plain, plainErr := tun.OpenPortable(c)
	if plainErr != nil {
		return nil, errors.Join(err, plainErr)
	}
	e.log.Warn("the TUN device carries one packet a frame", "reason", err)
	return plain, nil
}

// openSockets opens a group of sockets on e.bind and hands each worker its own. e.mu is held.
func (e *Engine) openSockets() error {
	buffer := e.config.Buffer
	if e.without(feature.Buffers) {
		buffer = 0
	}
	group, err := e.openUDP(udp.Config{
		Bind:       e.bind,
		Sockets:    len(e.workers),
		SourcePort: e.config.SourcePort,
		Buffer:     buffer,
		ReadTOS:    e.config.ECN,
		ReusePorts: e.bound == e.bind,
		NoGSO:      e.without(feature.GSO),
		NoGRO:      e.without(feature.GRO),
		NoSteering: e.without(feature.Steering),
	})
	if err != nil {
		return err
	}
	prober, err := udp.NewProber(e.bind.Addr())
	if err != nil {
		return errors.Join(err, closeAll(group))
	}
	var errs []error
	if e.prober != nil {
		errs = append(errs, e.prober.Close())
	}
	for _, n := range e.overflows {
		e.overflowsBefore += n
	}
	e.prober, e.bound = prober, e.bind
	e.sockets, e.overflows = slices.Clone(group), make([]uint64, len(group))
	e.socketAge++
	for i, s := range group {
		e.open[s] = struct{}{}
		next := &outer{outerPort: s, age: e.socketAge}
		if unused := e.workers[i].nextOuter.Swap(next); unused != nil {
			errs = append(errs, e.end(unused.outerPort))
		}
		e.workers[i].wake.Signal()
	}
	return errors.Join(errs...)
}

// openUDP opens the kind of sockets that the mode asks for.
func (e *Engine) openUDP(c udp.Config) ([]outerPort, error) {
	if e.config.Mode == ModePortable {
		return takeGroup(e, func() (*udp.Group[*udp.Portable], error) { return udp.OpenPortable(c) })
	}
	return takeGroup(e, func() (*udp.Group[*udp.Offload], error) { return udp.OpenOffload(c) })
}

// takeGroup opens a group of sockets of either kind and notes its features.
func takeGroup[S outerPort](e *Engine, open func() (*udp.Group[S], error)) ([]outerPort, error) {
	group, err := open()
	if err != nil {
		return nil, err
	}
	for f, lack := range group.Features() {
		e.features[f] = lack
	}
	var all []outerPort
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
