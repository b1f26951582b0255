package traffic

import (
	"testing"
	"time"
)

// Packets counts every packet on the wire, including those of the warm-up.
func TestNetnsRTTPackets(t *testing.T) {
	from, to := LinkedEnds(t)
	carried := func() float64 {
		link, err := from.NS.Link("eth0")
		if err != nil {
			t.Fatal(err)
		}
		return float64(link.Counters.RxPackets + link.Counters.TxPackets)
	}
	before := carried()
	r, err := RTT(t.Context(), from, to, time.Millisecond, 200*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	const others = 20 // ARP and IPv6 neighbours
	if got := carried() - before; got < r.Packets() || got > r.Packets()+others {
		t.Errorf("%.0f packets on the wire, %.0f counted: %+v", got, r.Packets(), r)
	}
	if r.Requests <= r.Samples+r.Lost {
		t.Errorf("%+v: no request was for warming up", r)
	}
}

// Even the shortest measurement has one sample.
func TestNetnsRTTShort(t *testing.T) {
	from, to := LinkedEnds(t)
	if r, err := RTT(t.Context(), from, to, 2*warmUp, time.Nanosecond); err != nil || r.Samples != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestSummarize(t *testing.T) {
	var samples []time.Duration
	for i := 1000; i > 0; i-- {
		samples = append(samples, time.Duration(i))
	}
	got, want := Latency{Lost: 2}, Latency{Samples: 1000, Lost: 2, P50: 501, P99: 991, P999: 1000, Max: 1000}
	if got.summarize(samples); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	got, want = Latency{Lost: 3}, Latency{Lost: 3}
	if got.summarize(nil); got != want {
		t.Errorf("%+v", got)
	}
}
