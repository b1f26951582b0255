package report

import (
	"errors"
	"strings"
	"testing"
)

func TestTables(t *testing.T) {
	r := newResult(map[string][]float64{"none": {10, 10, 11}, "vxlan": {5, 5, 5}, "weftd": {6, 5.5, 6.5}},
		map[string][]float64{"vxlan": {40, 40, 40}, "weftd": {20, 20, 30}})
	r.Skipped = []Skip{{wire, "", "ipip", "no\ndriver"}, {wire, "tcp-1", "a|b", "<gone>"}}
	var b strings.Builder
	if err := r.Tables(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| underlay wire, MTU 1500 | none | vxlan | weftd |\n|---|---|---|---|\n",
		"| TCP, 1 stream, Gbit/s | 10.0 (10.0-11.0) **2.00** | 5.00 (5.00-5.00) | 6.00 (5.50-6.50) **1.20** |\n",
		"| round trip, idle p50, µs | - | 40.0 (40.0-40.0) | 20.0 (20.0-30.0) **0.50** |\n",
		"- wire 1500 ipip: no; driver\n",
		"- wire 1500 a\\|b tcp-1: &lt;gone>\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("want %q in:\n%s", want, b.String())
		}
	}
}

// Names in a result file must not break the table.
func TestTablesEscape(t *testing.T) {
	r := newResult(map[string][]float64{"vxlan": {5}}, nil)
	r.Targets[1].Name, r.Series[0].Target = "a|<b>\nc", "a|<b>\nc"
	var b strings.Builder
	if err := r.Tables(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"(a &lt;CPU>)", "ratio to a\\|&lt;b>; c in", "MTU 1500 | a\\|&lt;b>; c |\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("want %q in:\n%s", want, b.String())
		}
	}
}

// If the sender was the limit in most rounds, the rate is a lower bound.
func TestLowerBounds(t *testing.T) {
	r := newResult(nil, nil)
	for target, bound := range map[string][]float64{"vxlan": {0, 1, 0}, "weftd": {1, 0, 1}} {
		s := Series{Underlay: wire, Case: "udp-64-1", Target: target}
		for _, b := range bound {
			s.Samples = append(s.Samples, Sample{"rate": 309e3, "generator_bound": b})
		}
		r.Series = append(r.Series, s)
	}
	var tables, summary, html strings.Builder
	if err := errors.Join(r.Tables(&tables), r.Summary(&summary), r.HTML(&html)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, want string }{
		{tables.String(), " | 309 (309-309) | ≥309 (309-309) **1.00** |\n"},
		{tables.String(), "≥: the sender was the limit"},
		{summary.String(), " | 309 | - | ≥309 | - |\n"},
		{html.String(), `<span class="value">309</span>`},
		{html.String(), `<span class="value">≥309</span>`},
		{html.String(), "“≥” means that the sender was the limit"},
	} {
		if !strings.Contains(c.text, c.want) {
			t.Errorf("want %q in:\n%s", c.want, c.text)
		}
	}
}

// Without VXLAN, ratios are to the first target of the underlay.
func TestReferencePerUnderlay(t *testing.T) {
	r := newResult(map[string][]float64{"none": {10, 10, 10}, "weftd": {6, 6, 6}}, nil)
	off := Underlay{"off", 9000}
	for _, s := range newResult(map[string][]float64{"none": {10, 10, 10}, "vxlan": {8, 8, 8}}, nil).Series {
		s.Underlay = off
		r.Series = append(r.Series, s)
	}
	after := newResult(map[string][]float64{"none": {10, 10, 10}, "weftd": {3, 3, 3}}, nil)
	var tables, html, changes strings.Builder
	if err := errors.Join(r.Tables(&tables), r.HTML(&html), Compare(&changes, r, after)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, want string }{
		{tables.String(), "ratio to none in the same round.\n\n| underlay wire, MTU 1500 | none | weftd |\n"},
		{tables.String(), "ratio to vxlan in the same round.\n\n| underlay off, MTU 9000 | none | vxlan |\n"},
		{html.String(), "Underlay wire, MTU 1500</h2>\n<p>“×” is the median ratio to none in the same round.</p>"},
		{html.String(), "Underlay off, MTU 9000</h2>\n<p>“×” is the median ratio to vxlan in the same round.</p>"},
		{changes.String(), "tcp-1 throughput  0.60 -> 0.30 x none"},
	} {
		if !strings.Contains(c.text, c.want) {
			t.Errorf("want %q in:\n%s", c.want, c.text)
		}
	}
}

func TestSummary(t *testing.T) {
	r := newResult(map[string][]float64{"vxlan": {5, 5, 5}, "weftd": {6, 5.5, 6.5}},
		map[string][]float64{"vxlan": {40, 40, 40}, "weftd": {20, 20, 30}})
	r.add(wire, "tcp-16", "weftd", "throughput", 1e9, []float64{9, 9, 9}) // not part of the summary
	r.add(wire, "rtt-bulk", "flannel", "p50", 1e-6, []float64{300, 300, 300})
	const want = `| underlay wire, MTU 1500 | vxlan | fast | weftd | flannel |
|---|---|---|---|---|
| TCP, 1 stream, Gbit/s | 5.00 | - | 6.00 | - |
| TCP, 4 streams, Gbit/s | - | - | - | - |
| UDP 64 B, 1 flow, kpps | - | - | - | - |
| round trip, idle p50, µs | 40.0 | - | 20.0 | - |
| round trip, 50 per second p50, µs | - | - | - | - |
| round trip under bulk load p50, µs | - | - | - | 300 |
| TCP connections, 1/s | - | - | - | - |
`
	var b strings.Builder
	if err := r.Summary(&b); err != nil || b.String() != want {
		t.Errorf("%v, got:\n%s\nwant:\n%s", err, b.String(), want)
	}
}
