package bench

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"weft/bench/report"
	"weft/bench/traffic"
)

// Case is a workload: its description and how to measure it.
type Case struct {
	report.Case
	// Nodes is the number of nodes that it needs.
	Nodes int
	run   workload
}

// workload takes one sample. previous holds the medians of earlier rounds that help to measure.
type workload func(ctx context.Context, o *overlay, s report.Seconds,
	previous report.Sample) (report.Sample, error)

// seconds converts a number of seconds.
func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

const (
	pairNodes = 2
	fanNodes  = 101 // a sender and 100 receivers

	smallUDP, largeUDP = 64, 1400 // bytes of payload
	manyFlows          = 256
	longRun            = 32 // packets of one flow that a program sends at once
	connectWorkers     = 4

	// idleGap is longer than the CPUs and daemons stay awake.
	idleGap = 20 * time.Millisecond
)

// workloads returns the workload of each case by its name.
func workloads() map[string]workload {
	return map[string]workload{
		"tcp-1":           tcpCase(1),
		"tcp-4":           tcpCase(4),
		"tcp-16":          tcpCase(16),
		"tcp-busy":        onBusyCPUs(tcpCase(1)),
		"udp-64-1":        udpCase(traffic.UDPLoad{Size: smallUDP, Flows: 1}),
		"udp-64-256":      udpCase(traffic.UDPLoad{Size: smallUDP, Flows: manyFlows}),
		"udp-64-runs":     udpCase(traffic.UDPLoad{Size: smallUDP, Flows: manyFlows, Run: longRun}),
		"udp-1400-1":      udpCase(traffic.UDPLoad{Size: largeUDP, Flows: 1}),
		"udp-1400-256":    udpCase(traffic.UDPLoad{Size: largeUDP, Flows: manyFlows}),
		"rtt-idle":        rttCase(0),
		"rtt-sparse":      rttCase(idleGap),
		"rtt-sparse-busy": onBusyCPUs(rttCase(idleGap)),
		"rtt-bulk":        rttUnderLoad,
		"rtt-busy":        onBusyCPUs(rttCase(0)),
		"connect":         connectCase,
		"connect-busy":    onBusyCPUs(connectCase),
		"fan-out-64":      fanCase(smallUDP),
		"fan-out-1400":    fanCase(largeUDP),
	}
}

// Cases lists the workloads in the order of [report.Cases].
func Cases() []Case {
	all := workloads()
	var list []Case
	for _, c := range report.Cases() {
		nodes := pairNodes
		if strings.HasPrefix(c.Name, "fan-out-") {
			nodes = fanNodes
		}
		list = append(list, Case{c, nodes, all[c.Name]})
	}
	return list
}

// SelectCases returns the cases of the given names. A prefix such as "udp" or "udp-64" selects all
// names that continue it after a dash.
func SelectCases(names []string) ([]Case, error) {
	var selected []Case
	for _, name := range names {
		found := false
		for _, c := range Cases() {
			if c.Name != name && !strings.HasPrefix(c.Name, name+"-") {
				continue
			}
			found = true
			if !slices.ContainsFunc(selected, func(x Case) bool { return x.Name == c.Name }) {
				selected = append(selected, c)
			}
		}
		if !found {
			var all []string
			for _, c := range Cases() {
				all = append(all, c.Name)
			}
			return nil, fmt.Errorf("no workload %q: want names or prefixes of %s", name,
				strings.Join(all, ", "))
		}
	}
	return selected, nil
}

// pods returns the first pods of the first two nodes.
func (o *overlay) pods() (from, to traffic.End) {
	return traffic.PodEnd(o.lab.Nodes[0].Pods[0]), traffic.PodEnd(o.lab.Nodes[1].Pods[0])
}

// measure takes one sample of a case. If a daemon has exited, that is the error instead of the
// one of the generators.
func (o *overlay) measure(ctx context.Context, c Case, s report.Seconds,
	previous report.Sample) (report.Sample, error) {
	if err := o.checkDaemons(); err != nil {
		return nil, err
	}
	sample, err := c.run(ctx, o, s, previous)
	if exited := o.checkDaemons(); exited != nil {
		return nil, exited
	}
	return sample, err
}

// delivered is the payload that a measurement delivered to the receiver; 0 means that it was not
// counted.
type delivered struct{ bytes, packets float64 }

// withUsage adds CPU time, memory, drops and batch sizes to the sample that measure takes.
func (o *overlay) withUsage(
	measure func() (report.Sample, delivered, error)) (report.Sample, error) {
	var sample report.Sample
	var d delivered
	before, after, err := o.usageDuring(func() (err error) {
		sample, d, err = measure()
		return err
	})
	if err != nil {
		return nil, err
	}
	maps.Copy(sample, o.usageMetrics(before, after, d))
	for _, p := range o.daemons {
		rss, err := p.RSS()
		if err != nil {
			return nil, err
		}
		sample["memory"] = max(sample["memory"], float64(rss))
	}
	return sample, nil
}

func tcpCase(streams int) workload {
	return func(ctx context.Context, o *overlay, s report.Seconds,
		_ report.Sample) (report.Sample, error) {
		return o.withUsage(func() (report.Sample, delivered, error) {
			from, to := o.pods()
			r, err := traffic.TCP(ctx, from, to, streams, seconds(s.Measure))
			sample := report.Sample{"throughput": r.BitsPerSecond, "slowest": r.Slowest,
				"retransmits": float64(r.Retransmits)}
			return sample, delivered{bytes: float64(r.Bytes)}, err
		})
	}
}

func udpCase(load traffic.UDPLoad) workload {
	return func(ctx context.Context, o *overlay, s report.Seconds,
		previous report.Sample) (report.Sample, error) {
		from, to := o.pods()
		return o.maxRate(load, s, previous, func(load traffic.UDPLoad) (traffic.UDPResult, error) {
			return traffic.UDP(ctx, from, to, load)
		})
	}
}

func fanCase(size int) workload {
	return func(ctx context.Context, o *overlay, s report.Seconds,
		previous report.Sample) (report.Sample, error) {
		from := traffic.PodEnd(o.lab.Nodes[0].Pods[0])
		var to []traffic.End
		for _, n := range o.lab.Nodes[1:] {
			to = append(to, traffic.PodEnd(n.Pods[0]))
		}
		load := traffic.UDPLoad{Size: size, Flows: len(to)}
		return o.maxRate(load, s, previous, func(load traffic.UDPLoad) (traffic.UDPResult, error) {
			return traffic.Fan(ctx, from, to, load)
		})
	}
}

// maxRate searches for the highest rate, starting at the previous one, and then measures the usage
// at that rate.
func (o *overlay) maxRate(load traffic.UDPLoad, s report.Seconds, previous report.Sample,
	send func(traffic.UDPLoad) (traffic.UDPResult, error)) (report.Sample, error) {
	load.Duration = seconds(s.Probe)
	best, err := traffic.Search(previous["rate"], func(rate float64) (traffic.UDPResult, error) {
		load.Rate = rate
		return send(load)
	})
	if err != nil {
		return nil, err
	}
	sample := report.Sample{"rate": best.ReceivedRate, "reordered": float64(best.Reordered),
		"generator_bound": 0, "receiver_full": float64(best.ReceiverFull)}
	if best.GeneratorBound {
		sample["generator_bound"] = 1
	}
	if best.FloodRate > 0 {
		sample["flood_rate"] = best.FloodRate
	}
	if best.Received == 0 {
		return sample, nil // no rate had a loss below the limit: a rate of 0 is the result
	}
	usage, err := o.withUsage(func() (report.Sample, delivered, error) {
		load.Rate = best.SentRate
		r, err := send(load)
		return report.Sample{}, delivered{packets: float64(r.Arrived)}, err
	})
	if err != nil {
		return nil, err
	}
	maps.Copy(sample, usage)
	return sample, nil
}

// rttCase measures round trips, with a gap before each.
func rttCase(gap time.Duration) workload {
	return func(ctx context.Context, o *overlay, s report.Seconds,
		_ report.Sample) (report.Sample, error) {
		return o.withUsage(func() (report.Sample, delivered, error) {
			from, to := o.pods()
			l, err := traffic.RTT(ctx, from, to, gap, seconds(s.Measure))
			return latencySample(l), delivered{packets: l.Packets()}, err
		})
	}
}

func latencySample(l traffic.Latency) report.Sample {
	return report.Sample{"p50": l.P50.Seconds(), "p99": l.P99.Seconds(), "p999": l.P999.Seconds(),
		"lost": float64(l.Lost)}
}

func rttUnderLoad(ctx context.Context, o *overlay, s report.Seconds,
	_ report.Sample) (report.Sample, error) {
	return o.withUsage(func() (report.Sample, delivered, error) {
		from, to := o.pods()
		var l traffic.Latency
		bulk, err := traffic.TCPDuring(ctx, from, to, 1, func(ctx context.Context) (err error) {
			l, err = traffic.RTT(ctx, from, to, 0, seconds(s.Measure))
			return err
		})
		sample := latencySample(l)
		sample["bulk"] = bulk.BitsPerSecond
		return sample, delivered{bytes: float64(bulk.Bytes)}, err
	})
}

func connectCase(ctx context.Context, o *overlay, s report.Seconds,
	_ report.Sample) (report.Sample, error) {
	return o.withUsage(func() (report.Sample, delivered, error) {
		from, to := o.pods()
		r, err := traffic.Connections(ctx, from, to, connectWorkers, seconds(s.Measure))
		return report.Sample{"connections": r.PerSecond,
			"resets": float64(r.Resets)}, delivered{}, err
	})
}

// onBusyCPUs runs a workload beside threads that use all the CPU time they get, as other programs
// on a node do. The machine's CPU time includes them.
func onBusyCPUs(run workload) workload {
	return func(ctx context.Context, o *overlay, s report.Seconds,
		previous report.Sample) (report.Sample, error) {
		stop := traffic.OccupyCPUs()
		defer stop()
		return run(ctx, o, s, previous)
	}
}
