package report

import (
	"slices"
	"strings"
	"testing"
)

func TestChanges(t *testing.T) {
	before := newResult(map[string][]float64{"none": {10, 10, 11}, "vxlan": {5, 5, 5.1}, "weftd": {6, 5.9, 6.1}},
		map[string][]float64{"vxlan": {40, 41, 42}, "weftd": {50, 51, 52}})
	tcp := func(vxlan, weftd []float64) *Result {
		return newResult(map[string][]float64{"vxlan": vxlan, "weftd": weftd}, nil)
	}
	steady := []float64{5, 5, 5}
	for _, c := range []struct {
		name            string
		after           *Result
		target, metric  string
		changed, better bool
		reference       string
	}{
		{"the same", before, "weftd", "throughput", false, false, "vxlan"},
		{"machine twice as fast", tcp([]float64{10, 10, 10.2}, []float64{12, 11.8, 12.2}), "weftd", "throughput", false,
			false, "vxlan"},
		{"all rounds better", tcp(steady, []float64{7, 7.2, 7.1}), "weftd", "throughput", true, true, "vxlan"},
		{"all rounds worse", tcp(steady, []float64{4, 4.2, 4.1}), "weftd", "throughput", true, false, "vxlan"},
		{"ranges overlap", tcp(steady, []float64{7, 5.9, 7}), "weftd", "throughput", false, false, "vxlan"},
		{"lower is better", newResult(nil, map[string][]float64{"vxlan": {40, 41, 42}, "weftd": {30, 31, 32}}),
			"weftd", "p50", true, true, "vxlan"},
		{"the reference itself", tcp([]float64{9, 9, 9}, nil), "vxlan", "throughput", true, true, ""},
		{"other reference", newResult(map[string][]float64{"none": {10, 10, 11}, "weftd": {9, 9, 9}}, nil),
			"weftd", "throughput", true, true, "none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, change := range Changes(before, c.after) {
				if change.Target != c.target || change.Metric != c.metric {
					continue
				}
				changed := change.Changed()
				if changed != c.changed || changed && change.Better() != c.better || change.Reference != c.reference {
					t.Errorf("%+v: changed %v, better %v", change, changed, change.Better())
				}
				return
			}
			t.Error("not compared")
		})
	}
}

// The kernel's VXLAN has no CPU time of daemons, so the metric has no ratio.
func TestChangeWithoutRatio(t *testing.T) {
	sparse := func(cpu float64) *Result {
		r := newResult(nil, nil)
		for _, s := range []Series{
			{Target: "vxlan", Samples: slices.Repeat([]Sample{{"p50": 1}}, 3)},
			{Target: "weftd", Samples: slices.Repeat([]Sample{{"p50": 1, "daemon_cpu_per_mpkt": cpu}}, 3)},
		} {
			s.Underlay, s.Case = wire, "rtt-sparse"
			r.Series = append(r.Series, s)
		}
		return r
	}
	for _, change := range Changes(sparse(80), sparse(40)) {
		if change.Target == "weftd" && change.Metric == "daemon_cpu_per_mpkt" {
			if change.Reference != "" || !change.Changed() || !change.Better() || change.Factor() != 0.5 {
				t.Errorf("factor %.1f, reference %q, want 0.5 and none", change.Factor(), change.Reference)
			}
			return
		}
	}
	t.Error("not compared")
}

func TestCompare(t *testing.T) {
	before := newResult(map[string][]float64{"none": {9}, "vxlan": {5, 5, 5}, "weftd": {6, 6, 6}}, nil)
	after := newResult(map[string][]float64{"vxlan": {5, 5, 5}, "weftd": {3, 3, 3}}, map[string][]float64{"vxlan": {1}})
	after.Host.Kernel = "6.12"
	var b strings.Builder
	if err := Compare(&b, before, after); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"differs: kernel: 6.1, then 6.12\n",
		"only in the first result: 1 of 3 series\n",
		"only in the second result: 1 of 3 series\n",
		"worse  wire 1500  weftd  tcp-1 throughput  1.20 -> 0.60 x vxlan", "-50 %",
		"1 of 2 metrics changed: all rounds are outside the other result's range\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("want %q in:\n%s", want, b.String())
		}
	}
}

func TestCompareConditions(t *testing.T) {
	before := newResult(map[string][]float64{"weftd": {5}}, nil)
	after := newResult(map[string][]float64{"weftd": {5}}, nil)
	before.Features = []Features{{wire, "weftd", []string{"udp-gro", "udp-gso"}, nil}}
	after.Features = []Features{{wire, "weftd", []string{"tun-uso", "udp-gso"}, nil}}
	after.Rounds, after.Seconds = 5, Seconds{2, 0.5}
	after.Host.Congestion, after.Host.Governor, after.Host.Hypervisor, after.Host.Privileges = "bbr", "powersave", true, "root"
	after.Host.Offloads = map[string][]string{"wire": {"rx-gro", "tx-gso"}, "off": {"rx-gro"}}
	var b strings.Builder
	if err := Compare(&b, before, after); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"TCP congestion control: unknown, then bbr", "governor: unknown, then powersave", "virtual: false, then true",
		"privileges: unknown, then root", "rounds: 3, then 5",
		"seconds per measurement and probe: 0 and 0, then 2 and 0.5", "underlay wire: only the second has tx-gso",
		"kernel features of weftd, wire 1500: only the first has udp-gro; only the second has tun-uso",
	} {
		if !strings.Contains(b.String(), "differs: "+want+"\n") {
			t.Errorf("want %q in:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "underlay off") {
		t.Errorf("compares an underlay that the first result does not have:\n%s", b.String())
	}
	if got := differences(before, before); len(got) > 0 {
		t.Errorf("a result differs from itself: %v", got)
	}
}

func TestCompareZeros(t *testing.T) {
	for _, c := range []struct {
		before, after []float64
		want          string
	}{
		{[]float64{0, 0, 0}, []float64{4, 5, 6}, "better  wire 1500  weftd  tcp-1 throughput  0.00 -> 5.00 Gbit/s" +
			"  (0.00 to 0.00 -> 4.00 to 6.00)  from 0\n"},
		{[]float64{4, 5, 6}, []float64{0, 0, 0}, "worse  wire 1500  weftd  tcp-1 throughput  5.00 -> 0.00 Gbit/s" +
			"  (4.00 to 6.00 -> 0.00 to 0.00)  -100 %\n"},
		{[]float64{0, 0, 0}, []float64{0, 0, 0}, "0 of 1 metrics changed"},
	} {
		var b strings.Builder
		before, after := map[string][]float64{"weftd": c.before}, map[string][]float64{"weftd": c.after}
		if err := Compare(&b, newResult(before, nil), newResult(after, nil)); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), c.want) {
			t.Errorf("want %q in:\n%s", c.want, b.String())
		}
	}
}
