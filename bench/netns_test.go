package bench_test

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"weft/bench"
	"weft/bench/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// ends are two nodes without a tunnel in between, and 256 addresses for the flows.
func ends(t *testing.T) (from, to bench.End) {
	t.Helper()
	l := lab.Start(t, lab.Options{Direct: true, PodsPerNode: -1})
	return bench.End{NS: l.Nodes[0].NS, Addr: l.Nodes[0].Addr}, bench.End{NS: l.Nodes[1].NS, Addr: l.Nodes[1].Addr}
}

func TestNetnsTCP(t *testing.T) {
	from, to := ends(t)
	for _, streams := range []int{1, 4} {
		r, err := bench.TCP(t.Context(), from, to, streams, 200*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d streams: %.1f Gbit/s, slowest %.1f, %d retransmits", streams, r.BitsPerSecond/1e9, r.Slowest/1e9, r.Retransmits)
		if r.BitsPerSecond < 1e8 || r.Slowest > r.BitsPerSecond/float64(streams)*1.001 {
			t.Errorf("%d streams: %+v", streams, r)
		}
	}
}

func TestNetnsTCPSaysWhenNothingAnswers(t *testing.T) {
	from, to := ends(t)
	if err := from.NS.SetUp("eth0", false); err != nil {
		t.Fatal(err)
	}
	if r, err := bench.TCP(t.Context(), from, to, 1, 100*time.Millisecond); err == nil {
		t.Errorf("measured %+v over a link that is down", r)
	}
}

func TestNetnsUDP(t *testing.T) {
	from, to := ends(t)
	for _, flows := range []int{1, 3, 256} {
		for _, rate := range []float64{5000, 0} {
			load := bench.UDPLoad{Size: 64, Flows: flows, Rate: rate, Duration: 300 * time.Millisecond}
			r, err := bench.UDP(t.Context(), from, to, load)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d flows at %.0f: %+v", flows, rate, r)
			if rate > 0 && (r.Received != r.Sent || r.Sent < 1400 || r.Sent > 1510 || r.ReceivedRate < 4500 || r.ReceivedRate > 5500) {
				t.Errorf("%d flows at %.0f packets a second: %+v", flows, rate, r)
			}
			if rate == 0 && r.ReceivedRate < 20000 {
				t.Errorf("%d flows, a flood: %+v", flows, r)
			}
			if r.Reordered != 0 {
				t.Errorf("a link between two devices reorders: %+v", r)
			}
		}
	}
}

func TestNetnsRTT(t *testing.T) {
	from, to := ends(t)
	l, err := bench.RTT(t.Context(), from, to, 300*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", l)
	if l.Samples < 100 || l.P50 <= 0 || l.P50 > l.P99 || l.P99 > l.P999 || l.P999 > l.Max || l.P50 > 10*time.Millisecond {
		t.Errorf("%+v", l)
	}
}

func TestNetnsConnections(t *testing.T) {
	from, to := ends(t)
	rate, err := bench.Connections(t.Context(), from, to, 4, 300*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.0f connections a second", rate)
	if rate < 500 {
		t.Errorf("%.0f connections a second", rate)
	}
}

func TestNetnsFlowsDifferInTheirSource(t *testing.T) {
	from, to := ends(t)
	if err := from.NS.AddLocal(netip.MustParsePrefix("172.31.0.128/26")); err != nil {
		t.Fatal(err)
	}
	if r, err := to.NS.Ping(t.Context(), netip.MustParseAddr("172.31.0.190"), lab.Ping{}); err != nil || r.Received != 1 {
		t.Errorf("a lent address: %+v, %v", r, err)
	}
}
