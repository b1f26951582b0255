package report

import "time"

// wire is the underlay of newResult.
var wire = Underlay{"wire", 1500}

// newResult returns a result with one sample per value: throughput in Gbit/s of tcp-1, p50 in µs of
// rtt-idle, by target.
func newResult(tcp, rtt map[string][]float64) *Result {
	r := &Result{Schema: Schema, Rounds: 3, Host: Host{Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Kernel: "6.1",
		CPUs: 2, CPU: "a <CPU>", Arch: "amd64", Version: "v1", Commit: "abc", Args: []string{"bench", "--quick"},
		Offloads: map[string][]string{"wire": {"rx-gro"}}}}
	for _, name := range []string{"none", "vxlan", "weftd"} {
		r.Targets = append(r.Targets, Target{Name: name, Description: "description of " + name})
		r.add(wire, "tcp-1", name, "throughput", 1e9, tcp[name])
		r.add(wire, "rtt-idle", name, "p50", 1e-6, rtt[name])
	}
	return r
}

// add adds a series of one metric, with one sample per value. It adds nothing without values.
func (r *Result) add(u Underlay, name, target, metric string, scale float64, values []float64) {
	if len(values) == 0 {
		return
	}
	s := Series{Underlay: u, Case: name, Target: target}
	for _, v := range values {
		s.Samples = append(s.Samples, Sample{metric: v * scale, "retransmits": 7})
	}
	r.Series = append(r.Series, s)
}
