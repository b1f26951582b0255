package bench

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"weft/bench/traffic"
	"weft/deploy/lab"
)

// Figures are what one measurement brought, by the names of [FigureInfos].
type Figures map[string]float64

// Environment is the underlay of a measurement.
type Environment struct {
	Mode lab.Mode `json:"mode"`
	MTU  int      `json:"mtu"`
}

// String is "wire 1500".
func (e Environment) String() string { return fmt.Sprintf("%s %d", e.Mode, e.MTU) }

// FigureInfo explains a figure.
type FigureInfo struct {
	Name, Title string
	Unit        string
	Scale       float64 // divide by this to get Unit
	LowerBetter bool
}

// FigureInfos lists every figure; the first ones are headlines of cases, the rest is the small print.
func FigureInfos() []FigureInfo {
	return []FigureInfo{
		{"throughput", "throughput", "Gbit/s", 1e9, false},
		{"rate", "received at < 0.1 % loss", "kpps", 1e3, false},
		{"p50", "p50", "µs", 1e-6, true},
		{"p99", "p99", "µs", 1e-6, true},
		{"p999", "p99.9", "µs", 1e-6, true},
		{"connections", "connections", "1/s", 1, false},

		{"flood_rate", "received of a flood", "kpps", 1e3, false},
		{"slowest", "slowest stream", "Gbit/s", 1e9, false},
		{"bulk", "bulk beside it", "Gbit/s", 1e9, false},
		{"retransmits", "retransmits", "", 1, true},
		{"reordered", "reordered packets", "", 1, true},
		{"resets", "connections reset by the other end", "", 1, true},
		{"lost", "requests without an answer", "", 1, true},
		{"generator_bound", "the sender was the limit", "", 1, true},
		{"receiver_full", "packets that found the receiver full", "", 1, true},
		{"daemon_cpu_per_gb", "daemons' CPU per GB", "s", 1, true},
		{"machine_cpu_per_gb", "machine's CPU per GB", "s", 1, true},
		{"daemon_cpu_per_mpkt", "daemons' CPU per million packets", "s", 1, true},
		{"machine_cpu_per_mpkt", "machine's CPU per million packets", "s", 1, true},
		{"memory", "daemons' memory, the larger one", "MB", 1e6, true},
		{"daemon_drops", "dropped by daemons", "", 1, true},
		{"socket_drops", "dropped at full UDP sockets", "", 1, true},
		{"packets_per_send", "packets per send", "", 1, false},
		{"packets_per_receive", "packets per receive", "", 1, false},
		{"packets_per_tun_read", "packets per TUN read", "", 1, false},
		{"packets_per_tun_write", "packets per TUN write", "", 1, false},
	}
}

// figureInfo looks a figure up; a name that is not listed explains itself.
func figureInfo(name string) FigureInfo {
	infos := FigureInfos()
	if i := slices.IndexFunc(infos, func(f FigureInfo) bool { return f.Name == name }); i >= 0 {
		return infos[i]
	}
	return FigureInfo{Name: name, Title: name, Scale: 1}
}

// Case is one workload.
type Case struct {
	Name, Title string
	// Headlines are the figures to compare rivals by, the most important one first.
	Headlines []string
	// Nodes that it needs: 2, or a whole fan of them.
	Nodes int
	run   workload
}

// workload measures once; before is what the round before brought.
type workload func(ctx context.Context, o *overlay, s Seconds, before Figures) (Figures, error)

// Seconds is how long measurements last.
type Seconds struct {
	Measure float64 `json:"measure"` // of throughput, round trips, connections
	Probe   float64 `json:"probe"`   // of one rate in the search for the highest
}

func (s Seconds) measure() time.Duration { return time.Duration(s.Measure * float64(time.Second)) }
func (s Seconds) probe() time.Duration   { return time.Duration(s.Probe * float64(time.Second)) }

const (
	fanNodes = 101 // a sender and 100 receivers

	smallUDP, largeUDP = 64, 1400 // bytes of payload
	manyFlows          = 256
	longRun            = 32 // packets of one flow that a program sends at once
	connectWorkers     = 4

	lonePause = 20 * time.Millisecond // long enough for every CPU and daemon to fall asleep
)

// Cases lists the workloads.
func Cases() []Case {
	rtt := []string{"p50", "p99"}
	return []Case{
		{"tcp-1", "TCP, 1 stream", []string{"throughput"}, 2, tcpCase(1)},
		{"tcp-4", "TCP, 4 streams", []string{"throughput"}, 2, tcpCase(4)},
		{"tcp-16", "TCP, 16 streams", []string{"throughput"}, 2, tcpCase(16)},
		{"tcp-busy", "TCP, 1 stream, busy CPUs", []string{"throughput"}, 2, onBusyCPUs(tcpCase(1))},
		{"udp-64-1", "UDP 64 B, 1 flow", []string{"rate"}, 2, udpCase(traffic.UDPLoad{Size: smallUDP, Flows: 1})},
		{"udp-64-256", "UDP 64 B, 256 flows", []string{"rate"}, 2, udpCase(traffic.UDPLoad{Size: smallUDP, Flows: manyFlows})},
		{"udp-64-runs", "UDP 64 B, 256 flows, 32 in a row", []string{"rate"}, 2, udpCase(traffic.UDPLoad{Size: smallUDP, Flows: manyFlows, Run: longRun})},
		{"udp-1400-1", "UDP 1,400 B, 1 flow", []string{"rate"}, 2, udpCase(traffic.UDPLoad{Size: largeUDP, Flows: 1})},
		{"udp-1400-256", "UDP 1,400 B, 256 flows", []string{"rate"}, 2, udpCase(traffic.UDPLoad{Size: largeUDP, Flows: manyFlows})},
		{"rtt-idle", "round trip, idle", rtt, 2, rttCase(0)},
		{"rtt-lone", "round trip, 50 a second", []string{"p50", "daemon_cpu_per_mpkt"}, 2, rttCase(lonePause)},
		{"rtt-bulk", "round trip under bulk load", rtt, 2, rttUnderLoad},
		{"rtt-busy", "round trip, busy CPUs", rtt, 2, onBusyCPUs(rttCase(0))},
		{"connect", "TCP connections", []string{"connections"}, 2, connectCase},
		{"connect-busy", "TCP connections, busy CPUs", []string{"connections"}, 2, onBusyCPUs(connectCase)},
		{"fan-out-64", "UDP 64 B to 100 nodes", []string{"rate"}, fanNodes, fanCase(smallUDP)},
		{"fan-out-1400", "UDP 1,400 B to 100 nodes", []string{"rate"}, fanNodes, fanCase(largeUDP)},
	}
}

// SelectCases returns the cases of the given names; "udp" or "udp-64" stand for all whose names go on from there.
func SelectCases(names []string) ([]Case, error) {
	var chosen []Case
	for _, name := range names {
		found := false
		for _, c := range Cases() {
			if c.Name != name && !strings.HasPrefix(c.Name, name+"-") {
				continue
			}
			found = true
			if !slices.ContainsFunc(chosen, func(x Case) bool { return x.Name == c.Name }) {
				chosen = append(chosen, c)
			}
		}
		if !found {
			var all []string
			for _, c := range Cases() {
				all = append(all, c.Name)
			}
			return nil, fmt.Errorf("no workload is called %q, nor begins so: there are %s", name, strings.Join(all, ", "))
		}
	}
	return chosen, nil
}

// ends are the first pods of the first two nodes.
func (o *overlay) ends() (from, to traffic.End) {
	return traffic.PodEnd(o.lab.Nodes[0].Pods[0]), traffic.PodEnd(o.lab.Nodes[1].Pods[0])
}

// measure takes one sample of a case. When a daemon has ended, that is the result, whatever the generators made of the
// silence.
func (o *overlay) measure(ctx context.Context, c Case, s Seconds, before Figures) (Figures, error) {
	if err := o.alive(); err != nil {
		return nil, err
	}
	f, err := c.run(ctx, o, s, before)
	if dead := o.alive(); dead != nil {
		return nil, dead
	}
	return f, err
}

// spent wraps a measurement with two looks at the counters. measure returns its figures and what the receiver got.
func (o *overlay) spent(measure func() (f Figures, bytes, packets float64, err error)) (Figures, error) {
	var f Figures
	var bytes, packets float64
	before, after, err := o.spend(func() (err error) {
		f, bytes, packets, err = measure()
		return err
	})
	if err != nil {
		return nil, err
	}
	for name, v := range o.figures(before, after, bytes, packets) {
		f[name] = v
	}
	for _, p := range o.daemons {
		m, err := p.RSS()
		if err != nil {
			return nil, err
		}
		f["memory"] = max(f["memory"], float64(m))
	}
	return f, nil
}

func tcpCase(streams int) workload {
	return func(ctx context.Context, o *overlay, s Seconds, _ Figures) (Figures, error) {
		return o.spent(func() (Figures, float64, float64, error) {
			from, to := o.ends()
			r, err := traffic.TCP(ctx, from, to, streams, s.measure())
			f := Figures{"throughput": r.BitsPerSecond, "slowest": r.Slowest, "retransmits": float64(r.Retransmits)}
			return f, float64(r.Bytes), 0, err
		})
	}
}

func udpCase(load traffic.UDPLoad) workload {
	return func(ctx context.Context, o *overlay, s Seconds, before Figures) (Figures, error) {
		from, to := o.ends()
		return o.carried(load, s, before, func(load traffic.UDPLoad) (traffic.UDPResult, error) { return traffic.UDP(ctx, from, to, load) })
	}
}

func fanCase(size int) workload {
	return func(ctx context.Context, o *overlay, s Seconds, before Figures) (Figures, error) {
		from := traffic.PodEnd(o.lab.Nodes[0].Pods[0])
		var to []traffic.End
		for _, n := range o.lab.Nodes[1:] {
			to = append(to, traffic.PodEnd(n.Pods[0]))
		}
		return o.carried(traffic.UDPLoad{Size: size, Flows: len(to)}, s, before, func(load traffic.UDPLoad) (traffic.UDPResult, error) {
			return traffic.Fan(ctx, from, to, load)
		})
	}
}

// carried searches for the highest rate, near that of the round before, and then looks what that rate costs.
func (o *overlay) carried(load traffic.UDPLoad, s Seconds, before Figures, send func(traffic.UDPLoad) (traffic.UDPResult, error)) (Figures, error) {
	load.Duration = s.probe()
	best, err := traffic.Search(before["rate"], func(rate float64) (traffic.UDPResult, error) {
		load.Rate = rate
		return send(load)
	})
	if err != nil {
		return nil, err
	}
	f := Figures{"rate": best.ReceivedRate, "reordered": float64(best.Reordered), "generator_bound": 0, "receiver_full": float64(best.ReceiverFull)}
	if best.GeneratorBound {
		f["generator_bound"] = 1
	}
	if best.FloodRate > 0 {
		f["flood_rate"] = best.FloodRate
	}
	if best.Received == 0 {
		return f, nil // nothing was carried well, which is a result too
	}
	cost, err := o.spent(func() (Figures, float64, float64, error) {
		load.Rate = best.SentRate
		r, err := send(load)
		return Figures{}, 0, float64(r.Arrived), err
	})
	if err != nil {
		return nil, err
	}
	for name, v := range cost {
		f[name] = v
	}
	return f, nil
}

// rttCase measures round trips, with a pause before each.
func rttCase(pause time.Duration) workload {
	return func(ctx context.Context, o *overlay, s Seconds, _ Figures) (Figures, error) {
		return o.spent(func() (Figures, float64, float64, error) {
			from, to := o.ends()
			l, err := traffic.RTT(ctx, from, to, pause, s.measure())
			return latencyFigures(l), 0, l.Packets(), err
		})
	}
}

func rttUnderLoad(ctx context.Context, o *overlay, s Seconds, _ Figures) (Figures, error) {
	return o.spent(func() (Figures, float64, float64, error) {
		from, to := o.ends()
		var l traffic.Latency
		load, err := traffic.TCPDuring(ctx, from, to, 1, func(ctx context.Context) (err error) {
			l, err = traffic.RTT(ctx, from, to, 0, s.measure())
			return err
		})
		f := latencyFigures(l)
		f["bulk"] = load.BitsPerSecond
		return f, 0, 0, err
	})
}

func connectCase(ctx context.Context, o *overlay, s Seconds, _ Figures) (Figures, error) {
	return o.spent(func() (Figures, float64, float64, error) {
		from, to := o.ends()
		c, err := traffic.Connections(ctx, from, to, connectWorkers, s.measure())
		return Figures{"connections": c.PerSecond, "resets": float64(c.Resets)}, 0, 0, err
	})
}

func latencyFigures(l traffic.Latency) Figures {
	return Figures{"p50": l.P50.Seconds(), "p99": l.P99.Seconds(), "p999": l.P999.Seconds(), "lost": float64(l.Lost)}
}

// onBusyCPUs is a workload beside threads that take all the CPU time they get, as other programs on a node do. What
// the whole machine used includes them.
func onBusyCPUs(run workload) workload {
	return func(ctx context.Context, o *overlay, s Seconds, before Figures) (Figures, error) {
		stop := traffic.OccupyCPUs()
		defer stop()
		return run(ctx, o, s, before)
	}
}
