package agent

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"

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
		DropsOnly: c.DropsOnly, SnapLen: c.SnapLen, Memory: c.Memory,
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/x-pcapng")
	sink, err := newStream(w, tap.file("weftd "+d.build.Version))
	if err == nil {
		err = tap.run(r.Context(), sink, c.Count)
	}
	d.closeTap(tap)
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

// captureSources returns the devices to record on: those that carry the packets of a backend
// without an engine. With one, only what the fast path carries beside the engine is recorded on a
// device, and only if the capture does not pause the fast path.
func (s *snapshot) captureSources(o capture.Options) ([]capture.Source, error) {
	if s.engine != nil {
		return s.fastPathSources(o), nil
	}
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

// fastPathSources returns the interface that the fast path sends on and receives from.
func (s *snapshot) fastPathSources(o capture.Options) []capture.Source {
	if !o.Partial || s.port == 0 || !s.engine.FastPath().Active {
		return nil
	}
	return []capture.Source{
		{Device: s.iface.Name, FastPath: s.port, Node: s.captureNodes().byInner},
	}
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
