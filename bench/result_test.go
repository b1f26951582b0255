package bench

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/deploy/lab"
)

// wire is the environment of the made-up results.
var wire = Environment{lab.ModeWire, 1500}

// made is a result with one figure for each round: throughput in Gbit/s for TCP, p50 in us for round trips.
func made(tcp, rtt map[string][]float64) *Result {
	r := &Result{Schema: schema, Rounds: 3, Facts: Facts{Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Kernel: "6.1", CPUs: 2,
		CPU: "a <CPU>", Arch: "amd64", Version: "v1", Commit: "abc", Underlay: map[string][]string{"wire": {"rx-gro"}}}}
	for _, name := range []string{"none", "vxlan", "weftd"} {
		r.Rivals = append(r.Rivals, Rival{Name: name, What: "what " + name + " is"})
		for _, c := range []struct {
			name, figure string
			scale        float64
			values       []float64
		}{{"tcp-1", "throughput", 1e9, tcp[name]}, {"rtt-idle", "p50", 1e-6, rtt[name]}} {
			if c.values == nil {
				continue
			}
			s := Series{Environment: wire, Case: c.name, Rival: name}
			for _, v := range c.values {
				s.Samples = append(s.Samples, Figures{c.figure: v * c.scale, "retransmits": 7})
			}
			r.Series = append(r.Series, s)
		}
	}
	return r
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   Spread
	}{
		{nil, Spread{}},
		{[]float64{3}, Spread{3, 3, 3, 1}},
		{[]float64{5, 1, 3}, Spread{3, 1, 5, 3}},
		{[]float64{4, 1, 2, 9}, Spread{3, 1, 9, 4}},
	} {
		if got := spreadOf(c.values); got != c.want {
			t.Errorf("%v: %+v, want %+v", c.values, got, c.want)
		}
	}
}

// A ratio is taken round by round: here the machine was half as fast in the second round, for both.
func TestRatioIsWithinTheRound(t *testing.T) {
	r := made(map[string][]float64{"vxlan": {4, 2, 4}, "weftd": {8, 4, 6}}, nil)
	got := r.find(wire, "tcp-1", "weftd").ratio(r.find(wire, "tcp-1", "vxlan"), "throughput")
	if want := (Spread{2, 1.5, 2, 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0.00", 0.0123: "0.012", 0.5: "0.50", 3.14159: "3.14", 31.4159: "31.4", 314.159: "314"} {
		if got := number(v); got != want {
			t.Errorf("%v is written %s, want %s", v, got, want)
		}
	}
}

func TestMarkdown(t *testing.T) {
	r := made(map[string][]float64{"none": {10, 10, 11}, "vxlan": {5, 5, 5}, "weftd": {6, 5.5, 6.5}},
		map[string][]float64{"vxlan": {40, 40, 40}, "weftd": {20, 20, 30}})
	r.Skipped = []Skip{{"wire 1500", "", "ipip", "no\ndriver"}, {"wire 1500", "tcp-1", "a|b", "<gone>"}}
	var b strings.Builder
	if err := r.Markdown(&b); err != nil {
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

// A result of a run that ended early says so wherever it is shown.
func TestIncomplete(t *testing.T) {
	r := made(map[string][]float64{"vxlan": {5}}, nil)
	r.Incomplete = "interrupted"
	var file bytes.Buffer
	if err := r.Write(&file); err != nil {
		t.Fatal(err)
	}
	r, err := ReadResult(&file)
	if err != nil {
		t.Fatal(err)
	}
	var markdown, page, changes strings.Builder
	if err := errors.Join(r.Markdown(&markdown), r.HTML(&page), Compare(&changes, made(map[string][]float64{"vxlan": {5}}, nil), r)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, want string }{
		{markdown.String(), "The run ended early: interrupted\n"}, {page.String(), "The run ended early: interrupted<"},
		{changes.String(), "the second run ended early: interrupted\n"},
	} {
		if !strings.Contains(c.text, c.want) {
			t.Errorf("want %q in:\n%s", c.want, c.text)
		}
	}
}

// Names in a file from elsewhere do not break the table.
func TestMarkdownEscapes(t *testing.T) {
	r := made(map[string][]float64{"vxlan": {5}}, nil)
	r.Rivals[1].Name, r.Series[0].Rival = "a|<b>\nc", "a|<b>\nc"
	var b strings.Builder
	if err := r.Markdown(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"(a &lt;CPU>)", "In bold the ratio to a\\|&lt;b>; c in", "MTU 1500 | a\\|&lt;b>; c |\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("want %q in:\n%s", want, b.String())
		}
	}
}

// Where the sender was the limit in most rounds, the rate is a lower bound and says so.
func TestLowerBounds(t *testing.T) {
	r := made(nil, nil)
	for rival, bound := range map[string][]float64{"vxlan": {0, 1, 0}, "weftd": {1, 0, 1}} {
		s := Series{Environment: wire, Case: "udp-64-1", Rival: rival}
		for _, b := range bound {
			s.Samples = append(s.Samples, Figures{"rate": 309e3, "generator_bound": b})
		}
		r.Series = append(r.Series, s)
	}
	var markdown, page strings.Builder
	if err := errors.Join(r.Markdown(&markdown), r.HTML(&page)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" | 309 (309-309) | ≥309 (309-309) **1.00** |\n", "≥ where the sender was the limit"} {
		if !strings.Contains(markdown.String(), want) {
			t.Errorf("want %q in:\n%s", want, markdown.String())
		}
	}
	for _, want := range []string{`<span class="value">309</span>`, `<span class="value">≥309</span>`, "“≥” says that the sender was the limit"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

// Where nobody measured VXLAN, ratios are to another rival, whose name stands beside them; each environment has its own.
func TestReferenceIsNamed(t *testing.T) {
	r := made(map[string][]float64{"none": {10, 10, 10}, "weftd": {6, 6, 6}}, nil)
	other := Environment{lab.ModeOff, 9000}
	for _, s := range made(map[string][]float64{"none": {10, 10, 10}, "vxlan": {8, 8, 8}}, nil).Series {
		s.Environment = other
		r.Series = append(r.Series, s)
	}
	var markdown, page, changes strings.Builder
	now := made(map[string][]float64{"none": {10, 10, 10}, "weftd": {3, 3, 3}}, nil)
	if err := errors.Join(r.Markdown(&markdown), r.HTML(&page), Compare(&changes, r, now)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, want string }{
		{markdown.String(), "In bold the ratio to none in the same round, median.\n\n| underlay wire, MTU 1500 | none | weftd |\n"},
		{markdown.String(), "In bold the ratio to vxlan in the same round, median.\n\n| underlay off, MTU 9000 | none | vxlan |\n"},
		{page.String(), "Underlay wire, MTU 1500</h2>\n<p>“×” is the median ratio to none in the same round.</p>"},
		{page.String(), "Underlay off, MTU 9000</h2>\n<p>“×” is the median ratio to vxlan in the same round.</p>"},
		{changes.String(), "tcp-1 throughput  0.60 -> 0.30 x none"},
	} {
		if !strings.Contains(c.text, c.want) {
			t.Errorf("want %q in:\n%s", c.want, c.text)
		}
	}
}

// A rival that only one result has is no reference for both.
func TestReferenceIsInBothResults(t *testing.T) {
	old := made(map[string][]float64{"none": {10, 10, 10}, "weftd": {6, 6, 6}}, nil)
	now := made(map[string][]float64{"none": {20, 20, 20}, "vxlan": {10, 10, 10}, "weftd": {12, 12, 12}}, nil)
	for _, change := range Changes(old, now) {
		if change.Rival == "weftd" && (change.Reference != "none" || change.Real()) {
			t.Errorf("%+v, want the same ratio to none", change)
		}
	}
}

func TestHTML(t *testing.T) {
	r := made(map[string][]float64{"none": {10, 10, 11}, "vxlan": {5, 5, 5}, "weftd": {6, 5.5, 6.5}}, nil)
	r.Abilities = []Abilities{{wire, "weftd", []string{"udp-gso"}, []string{"tun-uso"}}}
	r.Skipped = []Skip{{"wire 1500", "", "ipip", "no\ndriver"}}
	var b bytes.Buffer
	if err := r.HTML(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, want := range []string{"a &lt;CPU&gt;", "width:54.55%", "left:50.00%;width:9.09%", "× 1.20", "prefers-color-scheme: dark",
		`class="bar ours"`, `class="bar reference"`, "retransmits", "udp-gso", "not: tun-uso", "what weftd is", "rx-gro",
		"<li>wire 1500 ipip: no; driver</li>", ".bars span, p, dt, dd, li, td, th { overflow-wrap: anywhere; }"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	// Nothing is fetched from elsewhere, nothing was refused by the template's checks.
	for _, bad := range []string{"http:", "https:", "src=", "@import", "ZgotmplZ", "<script"} {
		if strings.Contains(text, bad) {
			t.Errorf("the page holds %q", bad)
		}
	}
	// Every element that is opened is closed.
	d := xml.NewDecoder(strings.NewReader(text))
	d.Entity = xml.HTMLEntity
	for {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestResultSurvivesItsFile(t *testing.T) {
	r := made(map[string][]float64{"vxlan": {5, 6, 7}}, nil)
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	again, err := ReadResult(&b)
	if err != nil {
		t.Fatal(err)
	}
	if got := again.find(wire, "tcp-1", "vxlan").spread("throughput"); got != (Spread{6e9, 5e9, 7e9, 3}) || again.Facts.CPU != r.Facts.CPU {
		t.Errorf("read back %+v, %+v", got, again.Facts)
	}
}

// A file that is not a whole result is refused with what is wrong in it.
func TestReadResultChecks(t *testing.T) {
	const rivals, sample = `{"schema":1,"rivals":[{"name":"none"}],"series":[`, `"samples":[{"throughput":1}]`
	for _, c := range []struct{ text, want string }{
		{rivals + `{"mode":"wire","mtu":1500,"case":"tcp-1","rival":"none",` + sample + "}]}\n", ""},
		{"", "the file is empty"},
		{"{}", "schema 0, want 1"},
		{`{"schema":1}`, "nothing was measured"},
		{`{"schema":99,"series":[{}]}`, "schema 99, want 1"},
		{rivals + `{}]}`, `no workload is called ""`},
		{rivals + `{"mode":"wire","mtu":1500,"case":"tcp-1","rival":"none",` + sample + "}]} x", "more follows the result"},
		{rivals + `{"mode":"wire","mtu":1500,"case":"tcp-1","rival":"none",` + sample + "}]}{}", "more follows the result"},
		{rivals + `{"mode":"wire","mtu":1500,"case":"tcp","rival":"none",` + sample + "}]}", `no workload is called "tcp"`},
		{rivals + `{"mode":"wire","mtu":1500,"case":"tcp-1","rival":"vxlan",` + sample + "}]}", `rival "vxlan" is not among the result's rivals`},
		{rivals + `{"mode":"wire","mtu":1500,"case":"tcp-1","rival":"",` + sample + "}]}", `rival "" is not among the result's rivals`},
		{rivals + `{"mode":"wire","mtu":0,"case":"tcp-1","rival":"none",` + sample + "}]}", "MTU 0"},
		{rivals + `{"mode":"","mtu":1500,"case":"tcp-1","rival":"none",` + sample + "}]}", `mode ""`},
		{rivals + `{"mode":"wire","mtu":1500,"case":"tcp-1","rival":"none","samples":[]}]}`, "no samples"},
		{rivals + `{"mode":"wire","mtu":1500,"case":"tcp-1","rival":"none",` + sample + `},{"mode":"wire","mtu":1500,"case":"tcp-1","rival":"none",` + sample + "}]}",
			"twice"},
		{`{"schema":1,"rivals":[{"name":"none"},{"name":"none"}],"series":[{"mode":"wire","mtu":1500,"case":"tcp-1","rival":"none",` + sample + "}]}",
			`two rivals are called "none"`},
		{`{"schema":1,"rivals":[{"name":""}],"series":[{"mode":"wire","mtu":1500,"case":"tcp-1","rival":"",` + sample + "}]}", "no name"},
	} {
		_, err := ReadResult(strings.NewReader(c.text))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.text, err, c.want)
		}
	}
}

func TestChanges(t *testing.T) {
	old := made(map[string][]float64{"none": {10, 10, 11}, "vxlan": {5, 5, 5.1}, "weftd": {6, 5.9, 6.1}},
		map[string][]float64{"vxlan": {40, 41, 42}, "weftd": {50, 51, 52}})
	for _, c := range []struct {
		name          string
		now           *Result
		rival, figure string
		real, better  bool
		reference     string
	}{
		{"the same", old, "weftd", "throughput", false, false, "vxlan"},
		{"a machine twice as fast", made(map[string][]float64{"vxlan": {10, 10, 10.2}, "weftd": {12, 11.8, 12.2}}, nil), "weftd", "throughput", false, false, "vxlan"},
		{"better in all rounds", made(map[string][]float64{"vxlan": {5, 5, 5}, "weftd": {7, 7.2, 7.1}}, nil), "weftd", "throughput", true, true, "vxlan"},
		{"worse in all rounds", made(map[string][]float64{"vxlan": {5, 5, 5}, "weftd": {4, 4.2, 4.1}}, nil), "weftd", "throughput", true, false, "vxlan"},
		{"ranges overlap", made(map[string][]float64{"vxlan": {5, 5, 5}, "weftd": {7, 5.9, 7}}, nil), "weftd", "throughput", false, false, "vxlan"},
		{"less time is better", made(nil, map[string][]float64{"vxlan": {40, 41, 42}, "weftd": {30, 31, 32}}), "weftd", "p50", true, true, "vxlan"},
		{"the reference itself", made(map[string][]float64{"vxlan": {9, 9, 9}}, nil), "vxlan", "throughput", true, true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, change := range Changes(old, c.now) {
				if change.Rival != c.rival || change.Figure != c.figure {
					continue
				}
				if change.Real() != c.real || change.Real() && change.Better() != c.better || change.Reference != c.reference {
					t.Errorf("%+v: real %v, better %v", change, change.Real(), change.Better())
				}
				return
			}
			t.Error("not compared")
		})
	}
}

// A figure that the reference lacks, as the kernel's VXLAN lacks daemons' processor time, is compared by itself.
func TestFigureThatTheReferenceLacks(t *testing.T) {
	lone := func(cpu float64) *Result {
		r := made(nil, nil)
		for _, s := range []Series{{Rival: "vxlan", Samples: []Figures{{"p50": 1}, {"p50": 1}, {"p50": 1}}},
			{Rival: "weftd", Samples: slices.Repeat([]Figures{{"p50": 1, "daemon_cpu_per_mpkt": cpu}}, 3)}} {
			s.Environment, s.Case = wire, "rtt-lone"
			r.Series = append(r.Series, s)
		}
		return r
	}
	for _, change := range Changes(lone(80), lone(40)) {
		if change.Rival == "weftd" && change.Figure == "daemon_cpu_per_mpkt" {
			if change.Reference != "" || !change.Real() || !change.Better() || change.Factor() != 0.5 {
				t.Errorf("%.1f times as much, to %q", change.Factor(), change.Reference)
			}
			return
		}
	}
	t.Error("not compared")
}

func TestCompare(t *testing.T) {
	old := made(map[string][]float64{"vxlan": {5, 5, 5}, "weftd": {6, 6, 6}}, nil)
	now := made(map[string][]float64{"vxlan": {5, 5, 5}, "weftd": {3, 3, 3}}, nil)
	now.Facts.Kernel = "6.12"
	var b strings.Builder
	if err := Compare(&b, old, now); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"not the same: kernel: 6.1, then 6.12\n", "worse  wire 1500  weftd  tcp-1 throughput  1.20 -> 0.60 x vxlan", "-50 %",
		"1 of 2 figures are the same"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("want %q in:\n%s", want, b.String())
		}
	}
}

func TestCompareNamesOtherConditions(t *testing.T) {
	old, now := made(map[string][]float64{"weftd": {5}}, nil), made(map[string][]float64{"weftd": {5}}, nil)
	old.Abilities = []Abilities{{wire, "weftd", []string{"udp-gro", "udp-gso"}, nil}}
	now.Abilities = []Abilities{{wire, "weftd", []string{"tun-uso", "udp-gso"}, nil}}
	now.Rounds, now.Seconds = 5, Seconds{2, 0.5}
	now.Facts.Congestion, now.Facts.Governor, now.Facts.Hypervisor, now.Facts.Rights = "bbr", "powersave", true, "root"
	now.Facts.Underlay = map[string][]string{"wire": {"rx-gro", "tx-gso"}, "off": {"rx-gro"}}
	var b strings.Builder
	if err := Compare(&b, old, now); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"TCP's congestion control: unknown, then bbr", "governor: unknown, then powersave", "virtual: false, then true",
		"rights: unknown, then root", "rounds: 3, then 5", "seconds of a measurement and of a probe: 0 and 0, then 2 and 0.5",
		"underlay wire: only the second has tx-gso", "abilities of weftd, wire 1500: only the first has udp-gro; only the second has tun-uso"} {
		if !strings.Contains(b.String(), "not the same: "+want+"\n") {
			t.Errorf("want %q in:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "underlay off") {
		t.Errorf("compares an underlay that the first result does not have:\n%s", b.String())
	}
	if got := differences(old, old); len(got) > 0 {
		t.Errorf("a result differs from itself: %v", got)
	}
}

// One or two rounds cannot tell a change from noise, and of many figures some look changed by chance.
func TestCompareSaysWhatChanceDoes(t *testing.T) {
	for _, c := range []struct {
		old, now []float64
		want     string
	}{
		{[]float64{5}, []float64{9}, "1 of 1 figures have fewer than 3 rounds in one of the results, too few to tell a change from noise\n"},
		{[]float64{5, 5, 5}, []float64{9, 9}, "1 of 1 figures have fewer than 3 rounds in one of the results, too few to tell a change from noise\n"},
		{[]float64{5, 5, 5}, []float64{9, 9, 9}, "chance alone makes about 0.10 of 1 figures look changed\n"},
		{[]float64{5, 5, 5, 5, 5}, []float64{5, 5, 5, 5, 5}, "chance alone makes about 0.0079 of 1 figures look changed\n"},
		{[]float64{5, 5, 5, 5}, []float64{5, 5, 5}, "chance alone makes about 0.057 of 1 figures look changed\n"},
	} {
		var b strings.Builder
		if err := Compare(&b, made(map[string][]float64{"weftd": c.old}, nil), made(map[string][]float64{"weftd": c.now}, nil)); err != nil {
			t.Fatal(err)
		}
		few := min(len(c.old), len(c.now)) < 3
		if !strings.Contains(b.String(), c.want) || strings.Contains(b.String(), "chance alone") == few || few && strings.Contains(b.String(), "better") {
			t.Errorf("%v, then %v: want %q in:\n%s", c.old, c.now, c.want, b.String())
		}
	}
}

// What only one result has is named, with the reason that the other gives.
func TestCompareNamesWhatIsMissing(t *testing.T) {
	old := made(map[string][]float64{"none": {9, 9, 9}, "vxlan": {5, 5, 5}}, map[string][]float64{"none": {20, 20, 20}, "vxlan": {40, 40, 40}})
	now := made(map[string][]float64{"vxlan": {5, 5, 5}, "weftd": {6, 6, 6}}, nil)
	now.Skipped = []Skip{{"wire 1500", "", "none", "no\nroute"}, {"off 1500", "", "none", "elsewhere"}, {"wire 1500", "rtt-idle", "vxlan", "too slow"}}
	var b strings.Builder
	if err := Compare(&b, old, now); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"only in the first result: wire 1500 none: tcp-1, rtt-idle (the other left it out: no; route)\n",
		"only in the first result: wire 1500 vxlan: rtt-idle (the other left it out: too slow)\n",
		"only in the second result: wire 1500 weftd: tcp-1\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("want %q in:\n%s", want, b.String())
		}
	}
}

// A rate that was 0 has no percentage, but it is no secret that it is more now.
func TestCompareFromNothing(t *testing.T) {
	for _, c := range []struct {
		old, now []float64
		want     string
	}{
		{[]float64{0, 0, 0}, []float64{4, 5, 6}, "better  wire 1500  weftd  tcp-1 throughput  0.00 -> 5.00 Gbit/s  (0.00 to 0.00 -> 4.00 to 6.00)  from nothing\n"},
		{[]float64{4, 5, 6}, []float64{0, 0, 0}, "worse  wire 1500  weftd  tcp-1 throughput  5.00 -> 0.00 Gbit/s  (4.00 to 6.00 -> 0.00 to 0.00)  -100 %\n"},
		{[]float64{0, 0, 0}, []float64{0, 0, 0}, "1 of 1 figures are the same"},
	} {
		var b strings.Builder
		if err := Compare(&b, made(map[string][]float64{"weftd": c.old}, nil), made(map[string][]float64{"weftd": c.now}, nil)); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), c.want) {
			t.Errorf("want %q in:\n%s", c.want, b.String())
		}
	}
}

func TestSelectCases(t *testing.T) {
	for _, c := range []struct{ given, want string }{
		{"tcp-1", "tcp-1"}, {"udp-64", "udp-64-1 udp-64-256 udp-64-runs"}, {"rtt,rtt-idle", "rtt-idle rtt-lone rtt-bulk rtt-busy"}, {"tcp", "tcp-1 tcp-4 tcp-16 tcp-busy"},
	} {
		chosen, err := SelectCases(strings.Split(c.given, ","))
		var names []string
		for _, x := range chosen {
			names = append(names, x.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != c.want {
			t.Errorf("%s: %s, %v, want %s", c.given, got, err, c.want)
		}
	}
	if _, err := SelectCases([]string{"quic"}); err == nil || !strings.Contains(err.Error(), `"quic"`) || !strings.Contains(err.Error(), "rtt-busy, connect,") {
		t.Errorf("a workload that does not exist: %v", err)
	}
	for _, c := range Cases() {
		for _, name := range c.Headlines {
			if figureInfo(name).Unit == "" {
				t.Errorf("%s: figure %s is not explained", c.Name, name)
			}
		}
	}
}

func TestKernelCounters(t *testing.T) {
	d, err := parseDatagrams([]byte("Ip: a b\nIp: 1 2\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors\nUdp: 11 2 3 14 5\nUdpLite: InDatagrams\nUdpLite: 9\n"))
	if err != nil || d != (datagrams{11, 14, 5}) {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := parseDatagrams([]byte("Tcp: a\nTcp: 1\n")); err == nil {
		t.Error("finds UDP counters where there are none")
	}
	cpu, err := parseMachineCPU([]byte("cpu  100 1 10 5000 50 2 3 4 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"))
	if want := 1160 * time.Millisecond; err != nil || cpu != want {
		t.Errorf("%v, %v, want %v", cpu, err, want)
	}
	if _, err := parseMachineCPU([]byte("cpu 1 2")); err == nil {
		t.Error("reads a line that is too short")
	}
}

// What a measurement cost is per byte and packet that arrived, and only of the time in between.
func TestFigures(t *testing.T) {
	o := &overlay{daemons: make([]*lab.Process, 2)}
	at := func(cpu time.Duration, packets, calls float64) usage {
		u := usage{cpu: cpuTime{daemons: cpu, machine: 2 * cpu}, nodes: make([]nodeUsage, 2)}
		u.nodes[0] = nodeUsage{carried: packets, datagrams: datagrams{out: calls}, tunnel: lab.Counters{TxPackets: uint64(calls)}}
		u.nodes[1] = nodeUsage{carriedIn: packets, datagrams: datagrams{in: calls, refused: 1}, tunnel: lab.Counters{RxPackets: uint64(calls)}, dropped: packets / 100}
		return u
	}
	f := o.figures(at(time.Second, 1000, 100), at(3*time.Second, 5000, 300), 4e9, 2e6)
	wanted := Figures{"daemon_cpu_per_gb": 0.5, "machine_cpu_per_gb": 1, "daemon_cpu_per_mpkt": 1, "packets_per_send": 20,
		"packets_per_receive": 20, "packets_per_tun_read": 20, "packets_per_tun_write": 20, "daemon_drops": 40, "socket_drops": 0}
	for name, want := range wanted {
		if got, ok := f[name]; !ok || math.Abs(got-want) > 1e-9 {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if _, ok := (&overlay{}).figures(at(0, 0, 0), at(0, 0, 0), 1e9, 0)["daemon_cpu_per_gb"]; ok {
		t.Error("a rival without daemons has daemons' processor time")
	}
}
