package bench

import (
	"testing"
	"time"
)

// The packets of a measurement are those that its network carried, and its warm-up does not count.
func TestNetnsPacketsOfRTT(t *testing.T) {
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
	if got := carried() - before; got < r.packets() || got > r.packets()+others {
		t.Errorf("%.0f packets on the wire, %.0f counted: %+v", got, r.packets(), r)
	}
	if r.Requests <= r.Samples+r.Lost {
		t.Errorf("%+v: no request was for warming up", r)
	}
}

// However short, and however late it is scheduled, a measurement has a sample.
func TestNetnsShortRTT(t *testing.T) {
	from, to := LinkedEnds(t)
	if r, err := RTT(t.Context(), from, to, 2*warmUp, time.Nanosecond); err != nil || r.Samples != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}
