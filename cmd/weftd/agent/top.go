package agent

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"time"

	"weft/cmd/control"
	"weft/dataplane/capture"
	"weft/dataplane/topflows"
	"weft/metrics"
)

const (
	topInterval = time.Second
	topFlows    = 50 // sent per interval
	// topSketch is the number of flows that are counted: enough for topFlows to be right if the
	// flows do not differ much.
	topSketch = 1024
	// topSamples is the number of packets per second that are looked at. Each takes about a
	// microsecond of a CPU.
	topSamples = 20_000
	// topSnapLen is the length of the longest headers that tell flows apart: IPv6 and ports.
	topSnapLen = 64
	// topMemory is enough for the samples of a tenth of a second.
	topMemory = 1 << 20
)

// serveTop streams the traffic of this node, until the client has gone.
func (d *daemon) serveTop(w http.ResponseWriter, r *http.Request) {
	tap, err := d.openTap(capture.Options{SnapLen: topSnapLen, Memory: topMemory, Partial: true})
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	sink := &topSink{
		daemon: d, tap: tap, client: http.NewResponseController(w),
		json: json.NewEncoder(w), sketch: topflows.NewSketch(topSketch),
		nodes: map[string]*control.TopNode{}, begin: time.Now(), sample: 1,
	}
	err = sink.send(sink.begin)
	if err == nil {
		err = tap.run(r.Context(), sink, 0)
	}
	d.closeTap(tap)
	if err != nil && r.Context().Err() == nil {
		d.log.Info("top ended early", "err", err)
	}
}

// topSink counts records, and sends the counts once per interval.
type topSink struct {
	daemon  *daemon
	tap     *tap
	client  *http.ResponseController
	json    *json.Encoder
	sketch  *topflows.Sketch
	begin   time.Time // of the interval
	packets int       // of the interval, estimated
	sample  int

	// Sums since the request, estimated.
	out, in metrics.Volume
	nodes   map[string]*control.TopNode
}

// Write counts a record.
func (s *topSink) Write(r *capture.Record) error {
	weight := uint64(r.Sample)
	bytes := weight * uint64(r.Length)
	s.packets += r.Sample
	n := s.nodes[r.Node]
	if n == nil {
		n = &control.TopNode{Name: r.Node}
		s.nodes[r.Node] = n
	}
	total, perNode := &s.in, &n.In
	if r.Outbound {
		total, perNode = &s.out, &n.Out
	}
	for _, v := range []*metrics.Volume{total, perNode} {
		v.Packets += weight
		v.Bytes += bytes
	}
	key, ok := topflows.KeyOf(r.Bytes)
	if !ok {
		return nil
	}
	f := topflows.Flow{Key: key, Node: r.Node, Outbound: r.Outbound, Packets: weight, Bytes: bytes,
		Drop: r.Drop}
	if r.Worker < 0 {
		f.KernelPackets, f.KernelBytes = weight, bytes
	}
	if r.Drop != "" {
		f.Dropped = weight
	}
	s.sketch.Add(f)
	return nil
}

// Flush sends the counts if the interval is over.
func (s *topSink) Flush() error {
	now := time.Now()
	if now.Sub(s.begin) < topInterval {
		return nil
	}
	if err := s.send(now); err != nil {
		return err
	}
	s.sample = 1 + int(float64(s.packets)/now.Sub(s.begin).Seconds())/topSamples
	s.tap.setSample(s.sample)
	s.sketch.Reset()
	s.begin, s.packets = now, 0
	return nil
}

func (s *topSink) send(now time.Time) error {
	if err := s.json.Encode(s.top(now)); err != nil {
		return err
	}
	return s.client.Flush()
}

// top returns the counts of the interval, and of the engine if there is one.
func (s *topSink) top(now time.Time) control.Top {
	status := s.daemon.status()
	t := control.Top{
		Time: now, Interval: now.Sub(s.begin).Seconds(), Node: status.Node,
		Backend: status.Backend, Drops: []metrics.Drop{}, Nodes: []control.TopNode{},
		Flows: []control.TopFlow{}, Sample: s.sample, Missed: s.tap.missedAt(capture.Inner),
	}
	for _, f := range s.sketch.Top(topFlows) {
		t.Flows = append(t.Flows, control.TopFlow{
			Src:   netip.AddrPortFrom(f.Src, f.SrcPort),
			Dst:   netip.AddrPortFrom(f.Dst, f.DstPort),
			Proto: f.Proto, Outbound: f.Outbound, Node: f.Node,
			Packets: f.Packets, Bytes: f.Bytes,
			Kernel: metrics.Volume{Packets: f.KernelPackets, Bytes: f.KernelBytes},
			Drop:   f.Drop, Dropped: f.Dropped,
		})
	}
	volumes := s.nodes
	if status.Traffic != nil {
		volumes = s.addEngine(&t, &status)
	} else {
		t.Estimated, t.Out, t.In = true, s.out, s.in
	}
	for _, n := range status.Nodes {
		node := control.TopNode{Name: n.Name}
		if v := volumes[n.Name]; v != nil {
			node = *v
		}
		if p := n.Path; p != nil && p.Sent > 0 {
			node.RTT, node.Loss = p.RTTMedian, float64(p.Lost)/float64(p.Sent)
		}
		t.Nodes = append(t.Nodes, node)
	}
	return t
}

// addEngine adds the counters of the engine, and returns those per node.
func (s *topSink) addEngine(t *control.Top, status *control.Status) map[string]*control.TopNode {
	t.Out, t.In = status.Traffic.Out, status.Traffic.In
	if status.HasFastPath() {
		f := &status.Traffic.FastPath
		t.FastPath = &metrics.NodeFastPath{Out: f.Out, In: f.In}
	}
	for _, d := range status.Traffic.Drops {
		if d.Packets > 0 {
			t.Drops = append(t.Drops, d)
		}
	}
	if snapshot := s.daemon.snapshot.Load(); snapshot != nil && snapshot.engine != nil {
		stats := snapshot.engine.Stats()
		t.FramesOut, t.FramesIn = stats.FramesRead, stats.FramesWritten
	}
	volumes := make(map[string]*control.TopNode)
	for name, n := range status.TrafficByNode() {
		volumes[name] = &control.TopNode{Name: name, Out: n.Out, In: n.In, FastPath: n.FastPath}
	}
	return volumes
}
