package bench_test

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/bench"
	"weft/deploy/lab"
)

// TestMain lets the test program be an end of the bare tunnel, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "bare" {
		fmt.Fprintln(os.Stderr, bench.RunBare(os.Args[2:]))
		os.Exit(1)
	}
	bench.RaiseGOMAXPROCS()
	os.Exit(lab.Main(m))
}

func TestNetnsTCP(t *testing.T) {
	from, to := bench.LinkedEnds(t)
	for _, streams := range []int{1, 4} {
		r, err := bench.TCP(t.Context(), from, to, streams, 200*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d streams: %.1f Gbit/s, slowest %.1f, %d retransmits", streams, r.BitsPerSecond/1e9, r.Slowest/1e9, r.Retransmits)
		if r.BitsPerSecond < 1e7 || r.Slowest > r.BitsPerSecond/float64(streams)*1.001 {
			t.Errorf("%d streams: %+v", streams, r)
		}
	}
}

func TestNetnsTCPSaysWhenNothingAnswers(t *testing.T) {
	from, to := bench.LinkedEnds(t)
	if err := from.NS.SetUp("eth0", false); err != nil {
		t.Fatal(err)
	}
	if r, err := bench.TCP(t.Context(), from, to, 1, 100*time.Millisecond); err == nil {
		t.Errorf("measured %+v over a link that is down", r)
	}
}

func TestNetnsUDP(t *testing.T) {
	from, to := bench.LinkedEnds(t)
	for _, load := range []bench.UDPLoad{{Flows: 1}, {Flows: 3}, {Flows: 256}, {Flows: 256, Run: 32}} {
		for _, rate := range []float64{5000, 0} {
			load.Size, load.Rate, load.Duration = 64, rate, 300*time.Millisecond
			r, err := bench.UDP(t.Context(), from, to, load)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v: %+v", load, r)
			if rate > 0 && (r.Received != r.Sent || r.Sent < 1000 || r.Sent > 1510 || r.ReceivedRate < 3000 || r.ReceivedRate > 8000) {
				t.Errorf("%+v: %+v", load, r)
			}
			if rate == 0 && r.ReceivedRate < 2*5000 {
				t.Errorf("%+v, a flood: %+v", load, r)
			}
			if r.Reordered != 0 {
				t.Errorf("%+v: a link between two devices reorders: %+v", load, r)
			}
		}
	}
}

func TestNetnsRTT(t *testing.T) {
	from, to := bench.LinkedEnds(t)
	for _, pause := range []time.Duration{0, 10 * time.Millisecond} {
		l, err := bench.RTT(t.Context(), from, to, pause, 300*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", l)
		if pause > 0 && l.Requests > 45 { // 0.4 s with the warm-up
			t.Errorf("%d requests with a pause of %v before each", l.Requests, pause)
		}
		if l.Samples < 10 || l.Requests < l.Samples || l.P50 <= 0 || l.P50 > l.P99 || l.P99 > l.P999 || l.P999 > l.Max || l.P50 > 100*time.Millisecond {
			t.Errorf("%+v", l)
		}
	}
}

func TestNetnsConnections(t *testing.T) {
	from, to := bench.LinkedEnds(t)
	c, err := bench.Connections(t.Context(), from, to, 4, 300*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", c)
	if c.PerSecond < 50 || float64(c.Resets) > c.PerSecond/10 {
		t.Errorf("%+v", c)
	}
}

func TestNetnsFlowsDifferInTheirSource(t *testing.T) {
	from, to := bench.LinkedEnds(t)
	if err := from.NS.AddLocalRoute(netip.MustParsePrefix("172.31.0.128/26")); err != nil {
		t.Fatal(err)
	}
	if r, err := to.NS.Ping(t.Context(), netip.MustParseAddr("172.31.0.190"), lab.Ping{}); err != nil || r.Received != 1 {
		t.Errorf("a lent address: %+v, %v", r, err)
	}
}

// TestNetnsRun measures two kernel rivals, one that cannot start, and one that breaks.
func TestNetnsRun(t *testing.T) {
	cases, err := bench.SelectCases([]string{"tcp-1", "udp-1400-1", "rtt-bulk"})
	if err != nil {
		t.Fatal(err)
	}
	kernel := bench.KernelRivals()
	plan := bench.Plan{Environments: []bench.Environment{{Mode: lab.ModeWire, MTU: 1500}}, Cases: cases, Rounds: 2,
		Rivals:  []bench.Rival{kernel[0], bench.Other("broken", "/bin/false"), kernel[1]},
		Seconds: bench.Seconds{Measure: 0.1, Probe: 0.1}}
	var lines strings.Builder
	r, err := bench.Run(t.Context(), plan, bench.GatherFacts("v", "c", nil), &lines)
	if err != nil {
		t.Fatal(err, lines.String())
	}
	t.Log("\n" + lines.String())
	if len(r.Skipped) != 1 || r.Skipped[0].Rival != "broken" || !strings.Contains(r.Skipped[0].Why, "has ended") {
		t.Errorf("left out: %+v, want the broken one", r.Skipped)
	}
	if len(r.Series) != 6 {
		t.Errorf("%d series, want 6", len(r.Series))
	}
	for _, s := range r.Series {
		if len(s.Samples) != 2 {
			t.Errorf("%s %s: %d samples", s.Case, s.Rival, len(s.Samples))
			continue
		}
		for _, c := range cases {
			if c.Name == s.Case && s.Samples[1][c.Headlines[0]] <= 0 {
				t.Errorf("%s %s: %v", s.Case, s.Rival, s.Samples)
			}
		}
		if s.Case == "rtt-bulk" && s.Samples[0]["bulk"] <= 0 {
			t.Errorf("%s: nothing beside the round trips: %v", s.Rival, s.Samples)
		}
		if s.Case == "tcp-1" && s.Samples[0]["machine_cpu_per_gb"] <= 0 {
			t.Errorf("%s %s costs nothing: %v", s.Case, s.Rival, s.Samples)
		}
	}
	if !strings.Contains(lines.String(), "100 %") {
		t.Error("the progress does not reach its end")
	}
	if len(r.Facts.Underlay["wire"]) == 0 || slices.Contains(r.Facts.Underlay["wire"], "tx-tcp-segmentation") {
		t.Errorf("features of the underlay: %v", r.Facts.Underlay)
	}
}

func TestNetnsFan(t *testing.T) {
	l := lab.Start(t, lab.Options{Nodes: 6, PodsPerNode: -1})
	var to []bench.End
	for _, n := range l.Nodes[1:] {
		to = append(to, bench.End{NS: n.NS, Addr: n.Addr})
	}
	from := bench.End{NS: l.Nodes[0].NS, Addr: l.Nodes[0].Addr}
	r, err := bench.Fan(t.Context(), from, to, bench.UDPLoad{Size: 64, Rate: 5000, Duration: 300 * time.Millisecond})
	if err != nil || r.Received != r.Sent || r.Sent < 1000 || r.Reordered != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	for _, n := range l.Nodes[1:] {
		link, err := n.Link("eth0")
		if err != nil || link.Counters.RxPackets < r.Sent/5 {
			t.Errorf("%s got %d packets of %d, %v", n.Name, link.Counters.RxPackets, r.Sent, err)
		}
	}
}

func TestNetnsScrape(t *testing.T) {
	l := lab.Start(t, lab.Options{PodsPerNode: -1})
	listener, err := l.Nodes[0].Listen(l.Nodes[0].Addr, 0)
	if err != nil {
		t.Fatal(err)
	}
	page := "# HELP a b\na 1\nweft_drops_total{reason=\"a b\"} 2\nweft_drops_total{reason=\"c\"} 3e2\nweft_drops_total_not 9\n" +
		"weft_engine_capability{capability=\"y\"} 1\nweft_engine_capability{capability=\"x\"} 1\nweft_engine_capability{capability=\"z\"} 0\n"
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.Error(w, "no such page", http.StatusTeapot)
			return
		}
		if _, err := w.Write([]byte(page)); err != nil {
			t.Error(err)
		}
	})}
	go server.Serve(listener)
	defer server.Close()
	at := netip.AddrPortFrom(l.Nodes[0].Addr, uint16(listener.Addr().(*net.TCPAddr).Port))
	m, err := bench.Scrape(t.Context(), at)
	if err != nil || m["a"] != 1 || m[`weft_drops_total{reason="a b"}`] != 2 || m.Sum("weft_drops_total") != 302 {
		t.Errorf("%v, %v", m, err)
	}
	used, unused := m.Capabilities()
	if !slices.Equal(used, []string{"x", "y"}) || !slices.Equal(unused, []string{"z"}) {
		t.Errorf("used %v, unused %v", used, unused)
	}
	if _, err := bench.Get(t.Context(), at, "/"); err == nil || !strings.Contains(err.Error(), "no such page") {
		t.Errorf("%v, want the page's own words", err)
	}
}
