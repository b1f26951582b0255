package metrics

import (
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Info describes one metric of the daemon.
type Info struct {
	Name, Help string
	Kind       string // "gauge" or "counter"
	Labels     []string
}

// metric is one row of the table of metrics.
type metric struct {
	Info
	// read returns the current samples. A metric without samples is not exported.
	read func(*scrape) []sample
}

// sample is one value of a metric with the values of its labels, in the order of Info.Labels.
type sample struct {
	value  float64
	labels []string
}

// scrape is the input of the rows.
type scrape struct {
	Snapshot
	build Build
	nodes []NodeTraffic // Traffic.Nodes, limited in number
}

// List returns the metrics of the daemon in the order of the documentation.
func List() []Info {
	var all []Info
	for _, m := range table() {
		all = append(all, m.Info)
	}
	return all
}

const (
	gauge   = "gauge"
	counter = "counter"
)

// table returns all metrics: names, help texts, labels and the source of their values.
func table() []metric {
	return slices.Concat(stateMetrics(), probeMetrics(), trafficMetrics(), deviceMetrics(),
		ipsecMetrics(), cloudMetrics())
}

func stateMetrics() []metric {
	return []metric{
		{Info{"weft_build_info",
			"Version, commit and Go version of this binary; the value is always 1.",
			gauge, []string{"version", "commit", "goversion"}},
			func(s *scrape) []sample {
				return []sample{{1, []string{s.build.Version, s.build.Commit, s.build.GoVersion}}}
			}},
		{Info{"weft_ready",
			"Whether the node is ready, as in /readyz (1 yes, 0 no).",
			gauge, nil},
			func(s *scrape) []sample { return flag(s.Ready) }},
		{Info{"weft_condition",
			"Whether a condition of readiness holds (1 yes, 0 no).",
			gauge, []string{"condition"}},
			func(s *scrape) []sample {
				return each(s.Conditions, func(c Condition) sample {
					return sample{number(c.OK), []string{c.Name}}
				})
			}},
		{Info{"weft_store_connected",
			"Whether the lease store answers (1 yes, 0 no).",
			gauge, nil},
			func(s *scrape) []sample { return flag(s.StoreConnected) }},
		{Info{"weft_store_revision",
			"Revision of the node list in use; 0 before the first.",
			gauge, nil},
			func(s *scrape) []sample { return []sample{{value: float64(s.StoreRevision)}} }},
		{Info{"weft_nodes",
			"Other nodes known from the lease store.",
			gauge, nil},
			func(s *scrape) []sample { return []sample{{value: float64(s.Nodes)}} }},
		{Info{"weft_nodes_unreachable",
			"Other nodes that this node cannot reach; /status has the reasons.",
			gauge, nil},
			func(s *scrape) []sample { return []sample{{value: float64(s.Unreachable)}} }},
		{Info{"weft_lease_held",
			"Whether this node holds a lease on its subnet (1 yes, 0 no).",
			gauge, nil},
			func(s *scrape) []sample { return flag(s.Lease.Held) }},
		{Info{"weft_lease_age_seconds",
			"Time since this process acquired its lease; absent without a lease.",
			gauge, nil},
			func(s *scrape) []sample {
				if !s.Lease.Held {
					return nil
				}
				return []sample{{value: s.Lease.Age.Seconds()}}
			}},
		{Info{"weft_lease_expiry_seconds",
			"Time until the lease expires unless renewed; absent for a lease that never expires.",
			gauge, nil},
			func(s *scrape) []sample {
				if !s.Lease.Held || s.Lease.Permanent {
					return nil
				}
				return []sample{{value: s.Lease.ExpiresIn.Seconds()}}
			}},
		{Info{"weft_reconciler_in_sync",
			"Whether links, addresses and routes were as desired when last checked (1 yes, 0 no).",
			gauge, nil},
			func(s *scrape) []sample { return flag(s.ReconcilerInSync) }},
		{Info{"weft_kernel_repairs_total",
			"Links, addresses and routes restored after another program changed them.",
			counter, nil},
			func(s *scrape) []sample { return []sample{{value: float64(s.KernelRepairs)}} }},
		{Info{"weft_rules_in_place",
			"Whether the packet filter rules are as desired (1 yes, 0 no).",
			gauge, nil},
			func(s *scrape) []sample { return flag(s.RulesInPlace) }},
		{Info{"weft_rule_repairs_total",
			"Times the packet filter rules were restored after another program changed them.",
			counter, nil},
			func(s *scrape) []sample { return []sample{{value: float64(s.RuleRepairs)}} }},
	}
}

func trafficMetrics() []metric {
	direction := []string{"direction"}
	return []metric{
		{Info{"weft_packets_total",
			"Inner packets carried; out is from pods to other nodes.",
			counter, direction},
			traffic(func(t *Traffic) []sample {
				return []sample{
					{float64(t.Out.Packets), []string{"out"}},
					{float64(t.In.Packets), []string{"in"}},
				}
			})},
		{Info{"weft_bytes_total",
			"Bytes of the inner packets carried.",
			counter, direction},
			traffic(func(t *Traffic) []sample {
				return []sample{
					{float64(t.Out.Bytes), []string{"out"}},
					{float64(t.In.Bytes), []string{"in"}},
				}
			})},
		{Info{"weft_drops_total",
			"Packets dropped by the daemon, by reason.",
			counter, []string{"reason"}},
			traffic(func(t *Traffic) []sample {
				return each(t.Drops, func(d Drop) sample {
					return sample{float64(d.Packets), []string{d.Reason}}
				})
			})},
		{Info{"weft_queue_overflows_total",
			"Packets dropped by the kernel at full queues; at the socket a GRO train counts once.",
			counter, []string{"queue"}},
			traffic(func(t *Traffic) []sample {
				return each(t.Overflows, func(o Overflow) sample {
					return sample{float64(o.Packets), []string{o.Queue}}
				})
			})},
		{Info{"weft_recreations_total",
			"Recreations of the device or sockets, after a loss or a change of address.",
			counter, []string{"object"}},
			traffic(func(t *Traffic) []sample {
				return each(t.Recreations, func(r Recreation) sample {
					return sample{float64(r.Count), []string{r.Object}}
				})
			})},
		{Info{"weft_icmp_errors_total",
			"ICMP errors to senders in pods: sent, or suppressed by the rate limit.",
			counter, []string{"outcome"}},
			traffic(func(t *Traffic) []sample {
				return []sample{
					{float64(t.ICMPSent), []string{"sent"}},
					{float64(t.ICMPSuppressed), []string{"suppressed"}},
				}
			})},
		{Info{"weft_fast_path_active",
			"Whether the kernel's fast path is in use (1 yes, 0 no); /status has the reason.",
			gauge, nil},
			traffic(func(t *Traffic) []sample { return flag(t.FastPath.Active) })},
		{Info{"weft_fast_path_packets_total",
			"Inner packets carried by the kernel's fast path, which weft_packets_total includes.",
			counter, direction},
			traffic(func(t *Traffic) []sample {
				return []sample{
					{float64(t.FastPath.Out.Packets), []string{"out"}},
					{float64(t.FastPath.In.Packets), []string{"in"}},
				}
			})},
		{Info{"weft_fast_path_bytes_total",
			"Bytes of these packets, which weft_bytes_total includes.",
			counter, direction},
			traffic(func(t *Traffic) []sample {
				return []sample{
					{float64(t.FastPath.Out.Bytes), []string{"out"}},
					{float64(t.FastPath.In.Bytes), []string{"in"}},
				}
			})},
		{Info{"weft_fast_path_passed_total",
			"Frames that the fast path left to the engine, by reason.",
			counter, []string{"reason"}},
			traffic(func(t *Traffic) []sample {
				return each(t.FastPath.Passed, func(d Drop) sample {
					return sample{float64(d.Packets), []string{d.Reason}}
				})
			})},
		{Info{"weft_engine_info",
			"Engine in use; the value is always 1.",
			gauge, []string{"engine"}},
			traffic(func(t *Traffic) []sample { return []sample{{1, []string{t.Engine}}} })},
		{Info{"weft_engine_feature",
			"Whether the engine uses this kernel feature (1 yes, 0 no).",
			gauge, []string{"feature"}},
			traffic(func(t *Traffic) []sample {
				return each(t.Features, func(f Feature) sample {
					return sample{number(f.Used), []string{f.Name}}
				})
			})},
		{Info{"weft_node_packets_total",
			"Inner packets to (out) or from (in) a node; others are summed as node=\"other\".",
			counter, []string{"node", "direction"}},
			func(s *scrape) []sample {
				if s.Traffic == nil {
					return nil // the kernel counts bytes per node, if anything
				}
				return perNode(s, func(n *NodeTraffic) (out, in uint64) {
					return n.Out.Packets, n.In.Packets
				})
			}},
		{Info{"weft_node_bytes_total",
			"Bytes of packets to (out) or from (in) a node; others are summed likewise.",
			counter, []string{"node", "direction"}},
			func(s *scrape) []sample {
				return perNode(s, func(n *NodeTraffic) (out, in uint64) {
					return n.Out.Bytes, n.In.Bytes
				})
			}},
		{Info{"weft_node_fast_path_bytes_total",
			"Bytes that the fast path carried, which weft_node_bytes_total includes.",
			counter, []string{"node", "direction"}},
			func(s *scrape) []sample {
				if s.Traffic == nil || !s.Traffic.FastPath.Used() {
					return nil
				}
				return perNode(s, func(n *NodeTraffic) (out, in uint64) {
					return n.FastPath.Out.Bytes, n.FastPath.In.Bytes
				})
			}},
	}
}

// traffic returns no samples while there is no dataplane.
func traffic(read func(*Traffic) []sample) func(*scrape) []sample {
	return func(s *scrape) []sample {
		if s.Traffic == nil {
			return nil
		}
		return read(s.Traffic)
	}
}

func perNode(s *scrape, amounts func(*NodeTraffic) (out, in uint64)) []sample {
	var samples []sample
	for i := range s.nodes {
		n := &s.nodes[i]
		out, in := amounts(n)
		samples = append(samples,
			sample{float64(out), []string{n.Node, "out"}},
			sample{float64(in), []string{n.Node, "in"}})
	}
	return samples
}

func each[T any](list []T, toSample func(T) sample) []sample {
	samples := make([]sample, 0, len(list))
	for _, v := range list {
		samples = append(samples, toSample(v))
	}
	return samples
}

func flag(b bool) []sample { return []sample{{value: number(b)}} }

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// collector turns a snapshot into Prometheus metrics.
type collector struct {
	build Build
	rows  []row

	// mu guards read and nodes together. If an older snapshot reached the limiter after a newer
	// one, counters would seem to decrease.
	mu    sync.Mutex
	read  func() Snapshot
	nodes *nodeLimiter
}

// row is a metric with its Prometheus descriptor.
type row struct {
	metric
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func newCollector(o Options) *collector {
	limit := o.MaxNodes
	if limit == 0 {
		limit = DefaultMaxNodes
	}
	c := &collector{build: o.Build, read: o.Read, nodes: newNodeLimiter(limit)}
	for _, m := range table() {
		kind := prometheus.GaugeValue
		if m.Kind == counter {
			kind = prometheus.CounterValue
		}
		c.rows = append(c.rows, row{m, prometheus.NewDesc(m.Name, m.Help, m.Labels, nil), kind})
	}
	return c
}

// Describe sends the descriptors of all metrics.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, r := range c.rows {
		out <- r.desc
	}
}

// Collect reads one snapshot and sends its values.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	s := c.scrape()
	for _, r := range c.rows {
		for _, v := range r.read(&s) {
			m, err := prometheus.NewConstMetric(r.desc, r.kind, v.value, v.labels...)
			if err != nil {
				m = prometheus.NewInvalidMetric(r.desc, err)
			}
			out <- m
		}
	}
}

func (c *collector) scrape() scrape {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := scrape{Snapshot: c.read(), build: c.build}
	switch {
	case s.Traffic != nil:
		s.nodes = c.nodes.apply(s.Traffic.Nodes)
	case s.Kernel != nil && len(s.Kernel.Nodes) > 0:
		s.nodes = c.nodes.apply(s.Kernel.Nodes)
	}
	return s
}
