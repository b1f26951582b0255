package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"weft/cmd/control"
	"weft/dataplane/capture"
	"weft/dataplane/capture/filter"
)

const (
	// watchTime limits the time for which a request makes this node look for packets.
	watchTime = 8 * time.Second
	// watchSnapLen is enough for the headers and the mark of a packet of a trace.
	watchSnapLen = 512
	watchMemory  = 1 << 20
)

// outerHeaders are the lengths of the headers before an inner packet: none, IP in IP, UDP and
// VXLAN, each over IPv4 and IPv6.
var outerHeaders = []int{0, 20, 40, 28, 48, 50, 70}

// watchForNodes is watchPackets for clients on this node and for other nodes. Pods of this node and
// other hosts have no use for it, and it costs the workers a look at each packet.
func (d *daemon) watchForNodes(w http.ResponseWriter, r *http.Request) {
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if !isLocal(r) && (err != nil || !isNode(d.status(), remote.Addr().Unmap())) {
		answer(w, http.StatusForbidden, r.URL.Path+" is for nodes of the cluster\n")
		return
	}
	d.watchPackets(w, r)
}

// isNode reports whether an address is that of another node, or of its device in the overlay.
func isNode(s control.Status, a netip.Addr) bool {
	return slices.ContainsFunc(s.Nodes, func(n control.Node) bool {
		return a == n.Public || a == tunnelAddr(n.Subnet) || a == tunnelAddr(n.Subnet6)
	})
}

// watchPackets looks for the packets of a trace until the client has gone or watchTime has passed.
// It serves one request at a time, as each costs a few filters on the node's devices.
func (d *daemon) watchPackets(w http.ResponseWriter, r *http.Request) {
	watch, err := control.ParseWatch(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !d.watching.TryLock() {
		http.Error(w, "another trace is running on this node, try again", http.StatusTooManyRequests)
		return
	}
	defer d.watching.Unlock()
	recording, unwatched, err := d.watch(watch)
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	sink := &watchSink{
		watch: watch, client: http.NewResponseController(w), json: json.NewEncoder(w),
		places: recording.places,
		sightings: control.Sightings{
			Node: d.nodeName, Seen: []control.Sighting{}, Unwatched: unwatched,
		},
	}
	ctx, cancel := context.WithTimeout(r.Context(), watchTime)
	defer cancel()
	err = sink.send()
	if err == nil {
		err = recording.run(ctx, sink, 0)
	}
	if closeErr := recording.close(); closeErr != nil {
		d.log.Warn("cannot close a packet socket", "err", closeErr)
	}
	if err != nil && r.Context().Err() == nil {
		d.log.Info("trace ended early", "err", err)
	}
}

// watching is a recording whose devices are places on the way of a packet.
type watching struct {
	*recording
	places map[string]control.Place // by device
}

// watch begins to look for packets. unwatched lists places that cannot be looked at.
func (d *daemon) watch(w control.Watch) (_ *watching, unwatched []string, err error) {
	s := d.snapshot.Load()
	if s == nil || s.reconciler == nil {
		return nil, nil, errNotSetUp
	}
	// The kernel selects the lengths on devices; this is for the engine.
	only, err := filter.Parse(fmt.Sprintf("less %d", slices.Max(w.Lengths)+slices.Max(outerHeaders)))
	if err != nil {
		return nil, nil, err
	}
	sources, places, unwatched := s.watchSources(w)
	r, err := startRecording(place{engine: s.engine}, sources, capture.Options{
		Filter: only, SnapLen: watchSnapLen, Memory: watchMemory, Partial: true,
	})
	return &watching{r, places}, unwatched, err
}

// watchSources returns the devices to look at, and what they are.
func (s *snapshot) watchSources(
	w control.Watch,
) (sources []capture.Source, places map[string]control.Place, unwatched []string) {
	var outer []int
	for _, n := range w.Lengths {
		for _, header := range outerHeaders {
			outer = append(outer, n+header)
		}
	}
	places = map[string]control.Place{}
	family := netip.IPv4Unspecified()
	if w.IPv6 {
		family = netip.IPv6Unspecified()
	}
	add := func(place control.Place, source capture.Source) {
		source.Node = func(netip.Addr) string { return "" }
		places[source.Device] = place
		sources = append(sources, source)
	}
	for _, device := range s.bridges() {
		add(control.PlaceBridge, capture.Source{Device: device, Lengths: w.Lengths})
	}
	for _, device := range s.adv.Devices {
		source := capture.Source{Device: device, Lengths: w.Lengths}
		if s.engine != nil {
			source.Received = family // the engine shows what is sent
		}
		add(control.PlaceOverlay, source)
	}
	if s.adv.Type == "wireguard" {
		unwatched = append(unwatched, s.iface.Name+": packets are encrypted")
	} else {
		add(control.PlaceUnderlay, capture.Source{Device: s.iface.Name, Lengths: outer})
	}
	return sources, places, unwatched
}

// bridges returns the devices of this node with an address of its subnet, apart from the overlay's.
func (s *snapshot) bridges() []string {
	all, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var names []string
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil || slices.Contains(s.adv.Devices, i.Name) || i.Name == s.iface.Name {
			continue
		}
		if slices.ContainsFunc(addrs, func(a net.Addr) bool {
			p, err := netip.ParsePrefix(a.String())
			return err == nil && (s.self.Subnet.Contains(p.Addr()) || s.self.Subnet6.Contains(p.Addr()))
		}) {
			names = append(names, i.Name)
		}
	}
	return names
}

// watchSink counts packets that hold the mark.
type watchSink struct {
	watch     control.Watch
	client    *http.ResponseController
	json      *json.Encoder
	places    map[string]control.Place
	sightings control.Sightings
	changed   bool
}

// Write counts a record.
func (s *watchSink) Write(r *capture.Record) error {
	holds := func(mark []byte) bool { return bytes.Contains(r.Bytes, mark) }
	if !slices.ContainsFunc(s.watch.Marks, holds) {
		return nil
	}
	seen := control.Sighting{Place: control.PlaceEngine, Device: r.Device, Outbound: r.Outbound, Drop: r.Drop}
	if r.Device != "" {
		seen.Place = s.places[r.Device]
	}
	s.changed = true
	i := slices.IndexFunc(s.sightings.Seen, func(o control.Sighting) bool {
		o.Packets = 0
		return o == seen
	})
	if i < 0 {
		i = len(s.sightings.Seen)
		s.sightings.Seen = append(s.sightings.Seen, seen)
	}
	s.sightings.Seen[i].Packets++
	return nil
}

// Flush sends the sightings if they have changed.
func (s *watchSink) Flush() error {
	if !s.changed {
		return nil
	}
	s.changed = false
	return s.send()
}

func (s *watchSink) send() error {
	if err := s.json.Encode(s.sightings); err != nil {
		return err
	}
	return s.client.Flush()
}
