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

	"weft/bench"
	"weft/bench/report"
	"weft/bench/traffic"
	"weft/deploy/lab"
)

// TestMain also runs an end of the bare tunnel, if the program is started as one.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "bare" {
		fmt.Fprintln(os.Stderr, bench.RunBare(os.Args[2:]))
		os.Exit(1)
	}
	traffic.RaiseGOMAXPROCS()
	os.Exit(lab.Main(m))
}

// Two kernel targets are measured; one that cannot start is skipped.
func TestNetnsRun(t *testing.T) {
	cases, err := bench.SelectCases([]string{"tcp-1", "udp-1400-1", "rtt-bulk"})
	if err != nil {
		t.Fatal(err)
	}
	kernel := bench.KernelTargets()
	plan := bench.Plan{Underlays: []report.Underlay{{Mode: "wire", MTU: 1500}}, Cases: cases, Rounds: 2,
		Targets: []bench.Target{kernel[0], bench.Other("broken", "/bin/false"), kernel[1]},
		Seconds: report.Seconds{Measure: 0.1, Probe: 0.1}}
	var lines strings.Builder
	r, err := bench.Run(t.Context(), plan, report.ReadHost("v", "c", nil), &lines)
	if err != nil {
		t.Fatal(err, lines.String())
	}
	t.Log("\n" + lines.String())
	if len(r.Skipped) != 1 || r.Skipped[0].Target != "broken" || !strings.Contains(r.Skipped[0].Reason, "exited") {
		t.Errorf("skipped %+v, want the broken target", r.Skipped)
	}
	if len(r.Series) != 6 {
		t.Errorf("%d series, want 6", len(r.Series))
	}
	for _, s := range r.Series {
		if len(s.Samples) != 2 {
			t.Errorf("%s %s: %d samples", s.Case, s.Target, len(s.Samples))
			continue
		}
		for _, c := range cases {
			if c.Name == s.Case && s.Samples[1][c.Headlines[0]] <= 0 {
				t.Errorf("%s %s: %v", s.Case, s.Target, s.Samples)
			}
		}
		if s.Case == "rtt-bulk" && s.Samples[0]["bulk"] <= 0 {
			t.Errorf("%s: no bulk stream beside the round trips: %v", s.Target, s.Samples)
		}
		if s.Case == "tcp-1" && s.Samples[0]["machine_cpu_per_gb"] <= 0 {
			t.Errorf("%s %s: no CPU time: %v", s.Case, s.Target, s.Samples)
		}
	}
	if !strings.Contains(lines.String(), "100 %") {
		t.Error("the progress does not reach 100 %")
	}
	if len(r.Host.Offloads["wire"]) == 0 || slices.Contains(r.Host.Offloads["wire"], "tx-tcp-segmentation") {
		t.Errorf("offloads of the underlay: %v", r.Host.Offloads)
	}
}

func TestNetnsScrape(t *testing.T) {
	l := lab.Start(t, lab.Options{PodsPerNode: -1})
	listener, err := l.Nodes[0].Listen(l.Nodes[0].Addr, 0)
	if err != nil {
		t.Fatal(err)
	}
	page := "# HELP a b\na 1\nweft_drops_total{reason=\"a b\"} 2\nweft_drops_total{reason=\"c\"} 3e2\nweft_drops_total_not 9\n" +
		"weft_engine_feature{feature=\"y\"} 1\nweft_engine_feature{feature=\"x\"} 1\nweft_engine_feature{feature=\"z\"} 0\n"
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
	used, unused := m.Features()
	if !slices.Equal(used, []string{"x", "y"}) || !slices.Equal(unused, []string{"z"}) {
		t.Errorf("used %v, unused %v", used, unused)
	}
	if _, err := bench.Get(t.Context(), at, "/"); err == nil || !strings.Contains(err.Error(), "no such page") {
		t.Errorf("%v, want the body of the response", err)
	}
}
