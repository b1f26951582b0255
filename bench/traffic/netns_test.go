package traffic_test

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"weft/bench/traffic"
	"weft/deploy/lab"
)

func TestMain(m *testing.M) {
	traffic.RaiseGOMAXPROCS()
	os.Exit(lab.Main(m))
}

func TestNetnsTCP(t *testing.T) {
	from, to := traffic.LinkedEnds(t)
	for _, streams := range []int{1, 4} {
		r, err := traffic.TCP(t.Context(), from, to, streams, 200*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d streams: %.1f Gbit/s, slowest %.1f, %d retransmits", streams, r.BitsPerSecond/1e9, r.Slowest/1e9,
			r.Retransmits)
		if r.BitsPerSecond < 1e7 || r.Slowest > r.BitsPerSecond/float64(streams)*1.001 {
			t.Errorf("%d streams: %+v", streams, r)
		}
	}
}

func TestNetnsTCPLinkDown(t *testing.T) {
	from, to := traffic.LinkedEnds(t)
	if err := from.NS.SetUp("eth0", false); err != nil {
		t.Fatal(err)
	}
	if r, err := traffic.TCP(t.Context(), from, to, 1, 100*time.Millisecond); err == nil {
		t.Errorf("measured %+v over a link that is down", r)
	}
}

func TestNetnsUDP(t *testing.T) {
	from, to := traffic.LinkedEnds(t)
	for _, load := range []traffic.UDPLoad{{Flows: 1}, {Flows: 3}, {Flows: 256}, {Flows: 256, Run: 32}} {
		for _, rate := range []float64{5000, 0} {
			load.Size, load.Rate, load.Duration = 64, rate, 300*time.Millisecond
			r, err := traffic.UDP(t.Context(), from, to, load)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v: %+v", load, r)
			if rate > 0 && (r.Received != r.Sent || r.Sent < 1000 || r.Sent > 1510 || r.ReceivedRate < 3000 ||
				r.ReceivedRate > 8000) {
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
	from, to := traffic.LinkedEnds(t)
	for _, pause := range []time.Duration{0, 10 * time.Millisecond} {
		l, err := traffic.RTT(t.Context(), from, to, pause, 300*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", l)
		if pause > 0 && l.Requests > 45 { // 0.4 s with the warm-up
			t.Errorf("%d requests with a pause of %v before each", l.Requests, pause)
		}
		if l.Samples < 10 || l.Requests < l.Samples || l.P50 <= 0 || l.P50 > l.P99 || l.P99 > l.P999 ||
			l.P999 > l.Max || l.P50 > 100*time.Millisecond {
			t.Errorf("%+v", l)
		}
	}
}

func TestNetnsConnections(t *testing.T) {
	from, to := traffic.LinkedEnds(t)
	c, err := traffic.Connections(t.Context(), from, to, 4, 300*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", c)
	if c.PerSecond < 50 || float64(c.Resets) > c.PerSecond/10 {
		t.Errorf("%+v", c)
	}
}

func TestNetnsLocalSources(t *testing.T) {
	from, to := traffic.LinkedEnds(t)
	if err := from.NS.AddLocalRoute(netip.MustParsePrefix("172.31.0.128/26")); err != nil {
		t.Fatal(err)
	}
	if r, err := to.NS.Ping(t.Context(), netip.MustParseAddr("172.31.0.190"), lab.Ping{}); err != nil ||
		r.Received != 1 {
		t.Errorf("a lent address: %+v, %v", r, err)
	}
}

func TestNetnsFan(t *testing.T) {
	l := lab.Start(t, lab.Options{Nodes: 6, PodsPerNode: -1})
	var to []traffic.End
	for _, n := range l.Nodes[1:] {
		to = append(to, traffic.End{NS: n.NS, Addr: n.Addr})
	}
	from := traffic.End{NS: l.Nodes[0].NS, Addr: l.Nodes[0].Addr}
	r, err := traffic.Fan(t.Context(), from, to,
		traffic.UDPLoad{Size: 64, Rate: 5000, Duration: 300 * time.Millisecond})
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
