package report

import (
	"slices"
	"strconv"
)

// Sample is the result of one measurement, by metric name (see [Metrics]).
type Sample map[string]float64

// Metric describes a measured value.
type Metric struct {
	Name, Title string
	Unit        string
	Scale       float64 // divide a sample's value by this to get Unit
	LowerBetter bool
}

// Metrics lists all metrics: first those that are headlines of cases, then the details.
func Metrics() []Metric {
	return []Metric{
		{"throughput", "throughput", "Gbit/s", 1e9, false},
		{"rate", "received at < 0.1 % loss", "kpps", 1e3, false},
		{"p50", "p50", "µs", 1e-6, true},
		{"p99", "p99", "µs", 1e-6, true},
		{"p999", "p99.9", "µs", 1e-6, true},
		{"connections", "connections", "1/s", 1, false},

		{"flood_rate", "received from a flood", "kpps", 1e3, false},
		{"slowest", "slowest stream", "Gbit/s", 1e9, false},
		{"bulk", "throughput of the bulk stream", "Gbit/s", 1e9, false},
		{"retransmits", "retransmits", "", 1, true},
		{"reordered", "reordered packets", "", 1, true},
		{"resets", "connections reset by the peer", "", 1, true},
		{"lost", "requests without an answer", "", 1, true},
		{"generator_bound", "the sender was the limit", "", 1, true},
		{"receiver_full", "packets dropped at the full receiving socket", "", 1, true},
		{"daemon_cpu_per_gb", "daemons' CPU per GB", "s", 1, true},
		{"machine_cpu_per_gb", "CPU per GB", "s", 1, true},
		{"daemon_cpu_per_mpkt", "daemons' CPU per million packets", "s", 1, true},
		{"machine_cpu_per_mpkt", "CPU per million packets", "s", 1, true},
		{"memory", "memory of the largest daemon", "MB", 1e6, true},
		{"daemon_drops", "dropped by daemons", "", 1, true},
		{"socket_drops", "dropped at full UDP sockets", "", 1, true},
		{"packets_per_send", "packets per send", "", 1, false},
		{"packets_per_receive", "packets per receive", "", 1, false},
		{"packets_per_tun_read", "packets per TUN read", "", 1, false},
		{"packets_per_tun_write", "packets per TUN write", "", 1, false},
	}
}

// MetricByName returns the metric of that name. For an unknown name, it returns one with the name
// as its title.
func MetricByName(name string) Metric {
	metrics := Metrics()
	if i := slices.IndexFunc(metrics, func(m Metric) bool { return m.Name == name }); i >= 0 {
		return metrics[i]
	}
	return Metric{Name: name, Title: name, Scale: 1}
}

// Format returns v in the metric's unit, without the unit.
func (m Metric) Format(v float64) string { return number(v / m.Scale) }

// number returns v with three significant digits.
func number(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case v >= 0.1 || v == 0:
		return strconv.FormatFloat(v, 'f', 2, 64)
	default:
		return strconv.FormatFloat(v, 'g', 2, 64)
	}
}
