package traffic

import (
	"math"
	"testing"
)

// pipe simulates a network and a sender with the given limits in packets per second.
func pipe(carries, offers float64) func(float64) (UDPResult, error) {
	return func(rate float64) (UDPResult, error) {
		if rate == 0 || rate > offers {
			rate = offers
		}
		through := min(rate, carries)
		return UDPResult{Sent: uint64(rate), Received: uint64(through), SentRate: rate, ReceivedRate: through}, nil
	}
}

func TestSearch(t *testing.T) {
	for _, c := range []struct {
		name            string
		carries, offers float64
		want            float64
		bound           bool
	}{
		{"the network limits", 100e3, 400e3, 100e3, false},
		{"the sender limits", 100e3, 50e3, 50e3, true},
		{"much more is offered", 10e3, 1e6, 10e3, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Search(0, pipe(c.carries, c.offers))
			if err != nil {
				t.Fatal(err)
			}
			if got.GeneratorBound != c.bound || math.Abs(got.ReceivedRate-c.want) > c.want*searchPrecision {
				t.Errorf("found %+v, want %.0f", got, c.want)
			}
			if got.FloodRate != min(c.carries, c.offers) {
				t.Errorf("flood rate %.0f", got.FloodRate)
			}
		})
	}
}

// A flood that overloads the receiver delivers less than a lower rate, so the search must go up
// from there.
func TestSearchAboveFlood(t *testing.T) {
	carried := pipe(100e3, 400e3)
	got, err := Search(0, func(rate float64) (UDPResult, error) {
		if rate > 150e3 || rate == 0 {
			return UDPResult{Sent: 400e3, Received: 20e3, SentRate: 400e3, ReceivedRate: 20e3}, nil
		}
		return carried(rate)
	})
	if err != nil || math.Abs(got.ReceivedRate-100e3) > 100e3*searchPrecision {
		t.Errorf("found %+v, %v", got, err)
	}
}

// A known rate saves the flood and most probes. A wrong one does no harm.
func TestSearchFromKnownRate(t *testing.T) {
	for near := 1e3; near <= 10e6; near *= 1.07 {
		got, err := Search(near, pipe(100e3, 20e6))
		if err != nil || math.Abs(got.ReceivedRate-100e3) > 100e3*searchPrecision || got.FloodRate != 0 ||
			got.Probes > searchProbes {
			t.Errorf("near %.0f: found %+v, %v", near, got, err)
		}
	}
}

// One lossy probe is noise. A network that always loses packets ends the search.
func TestSearchLossyProbe(t *testing.T) {
	steady, seen := pipe(100e3, 400e3), map[float64]bool{0: true}
	got, err := Search(0, func(rate float64) (UDPResult, error) {
		r, err := steady(rate)
		if !seen[rate] {
			r.Received /= 2
		}
		seen[rate] = true
		return r, err
	})
	if err != nil || math.Abs(got.ReceivedRate-100e3) > 100e3*searchPrecision {
		t.Errorf("found %+v, %v", got, err)
	}
	for _, near := range []float64{0, 1e3, 10e6} {
		got, err := Search(near, func(rate float64) (UDPResult, error) {
			if rate == 0 && near > 0 {
				t.Error("a flood, after a rate that is known")
			}
			return UDPResult{Sent: 100, Received: 50, SentRate: 100, ReceivedRate: 50}, nil
		})
		if err != nil || got.Received != 0 || got.Probes > 20 {
			t.Errorf("near %.0f: found %+v, %v on a network that carries nothing well", near, got, err)
		}
	}
}

// A probe whose sender got little CPU time, without loss but below the rate, is repeated.
func TestSearchShortProbe(t *testing.T) {
	for _, near := range []float64{0, 98e3, 150e3} {
		steady, probes := pipe(100e3, 400e3), 0
		got, err := Search(near, func(rate float64) (UDPResult, error) {
			if probes++; probes == 1 {
				return UDPResult{Sent: 49e3, Received: 49e3, SentRate: 49e3, ReceivedRate: 49e3}, nil
			}
			return steady(rate)
		})
		if err != nil || got.GeneratorBound || math.Abs(got.ReceivedRate-100e3) > 100e3*searchPrecision {
			t.Errorf("near %.0f: found %+v, %v", near, got, err)
		}
	}
}

// The offered rate decides: the received rate is measured over another time.
func TestSearchOfferedRate(t *testing.T) {
	steady, probes := pipe(100e3, 400e3), 0
	got, err := Search(50e3, func(rate float64) (UDPResult, error) {
		r, err := steady(rate)
		if probes++; probes == 1 {
			r.ReceivedRate = 300e3
		}
		return r, err
	})
	if err != nil || math.Abs(got.SentRate-100e3) > 100e3*searchPrecision {
		t.Errorf("found %+v, %v", got, err)
	}
}

// A loss below 0.1 % counts as carried.
func TestSearchLossLimit(t *testing.T) {
	got, err := Search(20e3, func(rate float64) (UDPResult, error) {
		lost := 50.0 // of 100,000
		if rate > 40e3 {
			lost = 200
		}
		return UDPResult{Sent: 100e3, Received: uint64(100e3 - lost), SentRate: rate, ReceivedRate: rate}, nil
	})
	if err != nil || math.Abs(got.SentRate-40e3) > 40e3*searchPrecision {
		t.Errorf("found %+v, %v", got, err)
	}
}
