package agent

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/dataplane"
	"weft/dataplane/capture"
)

// tap is a capture of this node's packets, whichever backend carries them. When the engine or a
// device is replaced, it goes on with the new one.
type tap struct {
	daemon  *daemon
	options capture.Options
	current *recording
	missed  [2]uint64 // by earlier recordings, by point
}

// recording is a tap of one engine, or of one set of devices.
type recording struct {
	place     place
	session   *capture.Session
	listeners []*capture.Listener
	stop      func()
}

// place is where packets are recorded.
type place struct {
	engine  *dataplane.Engine // nil if the kernel carries the packets
	devices []int             // indices of the sources' devices
}

func (p place) equal(o place) bool {
	return p.engine == o.engine && slices.Equal(p.devices, o.devices)
}

// openTap starts a capture.
func (d *daemon) openTap(o capture.Options) (*tap, error) {
	r, err := d.record(o)
	if err != nil {
		return nil, err
	}
	return &tap{daemon: d, options: o, current: r}, nil
}

// recorded returns the place of packets now, and the devices to listen on.
func (d *daemon) recorded(o capture.Options) (place, []capture.Source, error) {
	s := d.snapshot.Load()
	if s == nil || s.reconciler == nil {
		return place{}, nil, errNotSetUp
	}
	sources, err := s.captureSources(o)
	if err != nil {
		return place{}, nil, err
	}
	p := place{engine: s.engine}
	for _, source := range sources {
		device, err := net.InterfaceByName(source.Device)
		if err != nil {
			return place{}, nil, err
		}
		p.devices = append(p.devices, device.Index)
	}
	return p, sources, nil
}

// record starts to record in the engine if it carries packets, and on devices.
func (d *daemon) record(o capture.Options) (*recording, error) {
	p, sources, err := d.recorded(o)
	if err != nil {
		return nil, err
	}
	return startRecording(p, sources, o)
}

func startRecording(p place, sources []capture.Source, o capture.Options) (r *recording, err error) {
	o.Listeners = len(sources)
	r = &recording{place: p, stop: func() {}}
	if p.engine != nil {
		r.session, r.stop, err = p.engine.Capture(o)
	} else {
		r.session, err = capture.NewSession(0, o)
	}
	if err != nil {
		return nil, err
	}
	for i, source := range sources {
		l, err := r.session.Listen(i, source)
		if err != nil {
			return nil, errors.Join(err, r.close())
		}
		r.listeners = append(r.listeners, l)
	}
	return r, nil
}

func (r *recording) close() error {
	r.stop()
	var errs []error
	for _, l := range r.listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// run passes records to the sink until ctx is done, count records have passed, or the sink fails.
func (r *recording) run(ctx context.Context, sink capture.Sink, count int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range r.listeners {
		group.Go(func() error { return l.Run(ctx) })
	}
	group.Go(func() error {
		defer cancel()
		return r.session.Run(ctx, sink, count)
	})
	return group.Wait()
}

// tapInterval is the time between two looks at a capture's place.
const tapInterval = 250 * time.Millisecond

// run passes records to the sink, as [capture.Session.Run] does, until ctx is done.
func (t *tap) run(ctx context.Context, sink capture.Sink, count int) error {
	counted := &countingSink{Sink: sink}
	for {
		rest := 0
		if count > 0 {
			if rest = count - counted.records; rest == 0 {
				return nil
			}
		}
		moved, stop := context.WithCancel(ctx)
		watch := make(chan struct{})
		go func() {
			defer close(watch)
			t.awaitMove(moved)
			stop()
		}()
		err := t.current.run(moved, counted, rest)
		gone := ctx.Err() != nil || moved.Err() == nil // ended by the client, the sink or the count
		stop()
		<-watch
		if err != nil || gone {
			return err
		}
		if err := t.move(ctx); err != nil {
			return err
		}
	}
}

// awaitMove waits until packets are to be recorded elsewhere, or ctx is done.
func (t *tap) awaitMove(ctx context.Context) {
	tick := time.NewTicker(tapInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// Without a place, such as while a device is recreated, the next one is awaited.
		if p, _, err := t.daemon.recorded(t.options); err == nil && !p.equal(t.current.place) {
			return
		}
	}
}

// move records at the new place.
func (t *tap) move(ctx context.Context) error {
	for p := range t.missed {
		t.missed[p] = t.missedAt(capture.Point(p))
	}
	err := t.current.close()
	t.current = &recording{stop: func() {}}
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		r, err := t.daemon.record(t.options)
		if err == nil {
			t.current = r
			return nil
		}
		select { // it has been replaced again
		case <-ctx.Done():
		case <-time.After(tapInterval):
		}
	}
	return nil
}

// missedAt returns the number of packets of a point that were not recorded.
func (t *tap) missedAt(p capture.Point) uint64 {
	n := t.missed[p]
	if t.current.session != nil {
		n += t.current.session.Missed(p)
	}
	return n
}

// setSample sets the sample of the current session, see [capture.Session.SetSample].
func (t *tap) setSample(n int) { t.current.session.SetSample(n) }

// file describes a file for the records.
func (t *tap) file(application string) capture.File {
	f := t.current.session.File(application)
	f.Missed = t.missedAt
	return f
}

// closeTap ends the capture, whose run must have returned or never been called.
func (d *daemon) closeTap(t *tap) {
	if err := t.current.close(); err != nil {
		d.log.Warn("cannot close a packet socket", "err", err)
	}
}

// countingSink counts records.
type countingSink struct {
	capture.Sink
	records int
}

// Write passes a record on.
func (s *countingSink) Write(r *capture.Record) error {
	s.records++
	return s.Sink.Write(r)
}
