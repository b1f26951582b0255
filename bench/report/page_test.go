package report

import (
	"strings"
	"testing"
)

func TestMarkdownPage(t *testing.T) {
	r := newResult(map[string][]float64{"none": {10, 10, 11}, "vxlan": {5, 5, 5}, "weftd": {4, 3.5, 4.5}},
		map[string][]float64{"vxlan": {40, 40, 40}, "weftd": {20, 20, 30}})
	off := Underlay{"off", 1500}
	r.add(off, "tcp-1", "vxlan", "throughput", 1e9, []float64{10, 10, 10})
	r.add(off, "tcp-1", "weftd", "throughput", 1e9, []float64{12, 12, 12})
	r.add(off, "tcp-1", "fast", "throughput", 1e9, []float64{9, 9, 9})
	r.Skipped = []Skip{{wire, "", "ipip", "no driver"}}
	var b strings.Builder
	if err := r.Markdown(&b); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	// The sections, in order.
	rest := page
	for _, want := range []string{
		"# Benchmarks\n",
		"\n## Host\n",
		"| command | weft bench --quick |\n",
		"| CPU | 2 × a &lt;CPU> |\n",
		"\n## Method\n",
		"each of the 3 rounds", "fewer than 10 rounds",
		"\n## Underlay wire, MTU 1500\n\nBold: median ratio to vxlan in the same round.\n\n| underlay wire, MTU 1500 |",
		"\nround trip, idle: " + idleNote + ".\n",
		"\n## Underlay off, MTU 1500\n",
		"\n## How to read the tables\n",
		"“≥” means that the sender was the limit",
		"| weftd | description of weftd |\n",
		"| TCP, 1 stream | one TCP stream |\n",
		"\n## Where Weft is slower or uses more CPU time than VXLAN\n",
		"\n| ratio of fast to vxlan | wire, MTU 1500 | off, MTU 1500 |\n",
		"| TCP, 1 stream | - | **0.90 (0.90-0.90)** |\n",
		"- TCP, 1 stream: " + joinCost + ".\n",
		"\n| ratio of weftd to vxlan | wire, MTU 1500 | off, MTU 1500 |\n",
		"| TCP, 1 stream | **0.80 (0.70-0.90)** | 1.20 (1.20-1.20) |\n",
		"- TCP, 1 stream: " + copyCost + ".\n",
		"\n## Skipped\n\n- wire 1500 ipip: no driver\n",
	} {
		_, after, found := strings.Cut(rest, want)
		if !found {
			t.Fatalf("want %q after the sections before it in:\n%s", want, page)
		}
		rest = after
	}
	if strings.Contains(rest, idleNote) {
		t.Error("the note on idle round trips stands below a table without them")
	}
	for _, bad := range []string{"round trip, idle p50 |", "TCP, 4 streams", wakeCost} {
		if strings.Contains(page, bad) {
			t.Errorf("the page contains %q:\n%s", bad, page)
		}
	}
}

func TestMarkdownPageWithoutLosses(t *testing.T) {
	for _, c := range []struct {
		name, want string
		tcp        map[string][]float64
	}{
		{"faster", "CPU time than VXLAN\n\nweftd: in no workload of this run.\n",
			map[string][]float64{"vxlan": {5}, "weftd": {6}}},
		{"not compared", "", map[string][]float64{"none": {5}, "weftd": {6}}},
	} {
		var b strings.Builder
		if err := newResult(c.tcp, nil).Markdown(&b); err != nil {
			t.Fatal(err)
		}
		has := strings.Contains(b.String(), "CPU time than VXLAN")
		if has != (c.want != "") || !strings.Contains(b.String(), c.want) {
			t.Errorf("%s: want %q in:\n%s", c.name, c.want, b.String())
		}
	}
}

func TestMarkdownPageEnoughRounds(t *testing.T) {
	r := newResult(map[string][]float64{"vxlan": {5}, "weftd": {6}}, nil)
	r.Rounds = claimRounds
	var b strings.Builder
	if err := r.Markdown(&b); err != nil || strings.Contains(b.String(), "no basis for a claim") {
		t.Errorf("%v:\n%s", err, b.String())
	}
}

// CPU time has rows of its own beside the throughput.
func TestMarkdownPageCPUTime(t *testing.T) {
	r := newResult(nil, nil)
	r.add(wire, "tcp-1", "vxlan", "machine_cpu_per_gb", 1, []float64{2, 2})
	r.add(wire, "tcp-1", "weftd", "machine_cpu_per_gb", 1, []float64{5, 6})
	r.add(wire, "udp-64-1", "vxlan", "machine_cpu_per_mpkt", 1, []float64{8})
	r.add(wire, "udp-64-1", "weftd", "machine_cpu_per_mpkt", 1, []float64{4})
	var b strings.Builder
	if err := r.Markdown(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| TCP, 1 stream CPU per GB, s | 2.00 (2.00-2.00) | 5.50 (5.00-6.00) **2.75** |\n",
		"| UDP 64 B, 1 flow CPU per million packets, s | 8.00 | 4.00 **0.50** |\n",
		"| TCP, 1 stream CPU per GB | **2.75 (2.50-3.00)** |\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("want %q in:\n%s", want, b.String())
		}
	}
}
