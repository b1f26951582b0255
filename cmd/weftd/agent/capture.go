package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"weft/cmd/control"
	"weft/dataplane/capture"
	"weft/dataplane/capture/filter"
	"weft/dataplane/fib"
)

// errNotSetUp means that there are no packets to look at yet.
var errNotSetUp = errors.New("the network is not set up yet: see the status")

// serveCapture streams the packets of this node as pcapng until the client has gone or the wanted
// number has been sent.
func (d *daemon) serveCapture(w http.ResponseWriter, r *http.Request) {
	c, err := control.ParseCapture(r.URL.Query())
	var f *filter.Filter
	if err == nil {
		f, err = filter.Parse(c.Filter)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	tap, err := d.openTap(capture.Options{
		Inner: c.Inner, Outer: c.Outer, Filter: f, Node: c.Node,
		DropsOnly: c.DropsOnly, SnapLen: c.SnapLen,
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	defer d.closeTap(tap)
	w.Header().Set("Content-Type", "application/x-pcapng")
	sink, err := newStream(w, tap.session.File("weftd "+d.build.Version))
	if err == nil {
		err = tap.run(r.Context(), sink, c.Count)
	}
	if err == nil && r.Context().Err() == nil {
		err = sink.Close()
	}
	if err != nil && r.Context().Err() == nil {
		d.log.Info("capture ended early", "err", err)
	}
}

// stream is a sink that writes pcapng to a client.
type stream struct {
	*capture.Writer
	client *http.ResponseController
}

// newStream writes the beginning of the file, so that the client knows that the capture runs.
func newStream(w http.ResponseWriter, f capture.File) (*stream, error) {
	writer, err := capture.NewWriter(w, f)
	if err != nil {
		return nil, err
	}
	s := &stream{writer, http.NewResponseController(w)}
	return s, s.client.Flush()
}

// Flush passes all records on to the client.
func (s *stream) Flush() error {
	if err := s.Writer.Flush(); err != nil {
		return err
	}
	return s.client.Flush()
}

// tap is a capture of this node's packets, whichever backend carries them.
type tap struct {
	session   *capture.Session
	listeners []*capture.Listener // without an engine
	stop      func()
}

// openTap starts a capture: in the engine if it carries the packets, else on the devices of the
// backend.
func (d *daemon) openTap(o capture.Options) (*tap, error) {
	s := d.snapshot.Load()
	if s == nil || s.reconciler == nil {
		return nil, errNotSetUp
	}
	if s.engine != nil {
		session, stop, err := s.engine.Capture(o)
		return &tap{session: session, stop: stop}, err
	}
	sources, err := s.captureSources(o)
	if err != nil {
		return nil, err
	}
	session, err := capture.NewSession(len(sources), o)
	if err != nil {
		return nil, err
	}
	t := &tap{session: session, stop: func() {}}
	for i, source := range sources {
		l, err := session.Listen(i, source)
		if err != nil {
			return nil, errors.Join(err, t.close())
		}
		t.listeners = append(t.listeners, l)
	}
	return t, nil
}

func (d *daemon) closeTap(t *tap) {
	if err := t.close(); err != nil {
		d.log.Warn("cannot close a packet socket", "err", err)
	}
}

func (t *tap) close() error {
	t.stop()
	var errs []error
	for _, l := range t.listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// run passes records to the sink, as [capture.Session.Run] does.
func (t *tap) run(ctx context.Context, sink capture.Sink, count int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range t.listeners {
		group.Go(func() error { return l.Run(ctx) })
	}
	group.Go(func() error {
		defer cancel()
		return t.session.Run(ctx, sink, count)
	})
	return group.Wait()
}

// captureSources returns the devices that carry the packets of a backend without an engine.
func (s *snapshot) captureSources(o capture.Options) ([]capture.Source, error) {
	if o.DropsOnly {
		return nil, fmt.Errorf("backend %s: the kernel does not tell which packets it drops",
			s.adv.Type)
	}
	nodes := s.captureNodes()
	var sources []capture.Source
	if o.Inner || !o.Outer {
		for _, device := range s.adv.Devices {
			sources = append(sources, capture.Source{Device: device, Node: nodes.byInner})
		}
		if len(s.adv.Devices) == 0 { // routes without a device
			only, err := podFilter(podNetworks(s.network))
			if err != nil {
				return nil, err
			}
			sources = append(sources,
				capture.Source{Device: s.iface.Name, Only: only, Node: nodes.byInner})
		}
	}
	if o.Outer {
		if len(s.adv.Devices) == 0 {
			return nil, fmt.Errorf("backend %s has no outer packets: capture the inner ones",
				s.adv.Type)
		}
		// UDP, IP in IP, and IPv6 in IP.
		only, err := filter.Parse("udp or proto 4 or proto 41")
		if err != nil {
			return nil, err
		}
		sources = append(sources, capture.Source{
			Device: s.iface.Name, Point: capture.Outer, Only: only, Node: nodes.byOuter})
	}
	return sources, nil
}

// podFilter returns a filter for the packets of pods.
func podFilter(networks []netip.Prefix) (*filter.Filter, error) {
	text := ""
	for i, n := range networks {
		if i > 0 {
			text += " or "
		}
		text += "net " + n.Masked().String()
	}
	return filter.Parse(text)
}

// nodeTable finds the names of nodes by address.
type nodeTable struct{ table *fib.Table[string] }

// captureNodes returns the nodes as of now.
func (s *snapshot) captureNodes() *nodeTable {
	var nodes []fib.Entry[string]
	if s.view != nil {
		all := &peerView{leases: s.view.leases, self: s.view.self} // also unreachable ones
		for _, n := range all.engineNodes() {
			nodes = append(nodes, fib.Entry[string]{Node: n, Value: n.Name})
		}
	}
	var b fib.Builder[string]
	return &nodeTable{b.Change(nil, nodes).Table}
}

// byInner returns the name of the node that has an inner address, or "".
func (t *nodeTable) byInner(a netip.Addr) string {
	name, _ := t.table.Lookup(a)
	return name
}

// byOuter returns the name of the node with an outer address, or "".
func (t *nodeTable) byOuter(a netip.Addr) string {
	name, _ := t.table.ByEndpoint(a)
	return name
}
