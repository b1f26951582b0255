package bench

import (
	"math"
	"testing"
)

// pipe is a network that carries so many packets a second, and a sender that can offer so many.
func pipe(carries, offers float64) func(float64) (UDPResult, error) {
	return func(rate float64) (UDPResult, error) {
		if rate == 0 || rate > offers {
			rate = offers
		}
		through := min(rate, carries)
		return UDPResult{Sent: uint64(rate), Received: uint64(through), SentRate: rate, ReceivedRate: through}, nil
	}
}

func TestSearchFindsWhatIsCarried(t *testing.T) {
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
			got, err := search(0, pipe(c.carries, c.offers))
			if err != nil {
				t.Fatal(err)
			}
			if got.GeneratorBound != c.bound || math.Abs(got.ReceivedRate-c.want) > c.want*searchPrecision {
				t.Errorf("found %+v, want %.0f", got, c.want)
			}
			if got.FloodRate != min(c.carries, c.offers) {
				t.Errorf("flood brought %.0f", got.FloodRate)
			}
		})
	}
}

// A flood that chokes the receiver brings less than a lower rate: the search has to go up from there.
func TestSearchGoesAboveTheFlood(t *testing.T) {
	carried := pipe(100e3, 400e3)
	got, err := search(0, func(rate float64) (UDPResult, error) {
		if rate > 150e3 || rate == 0 {
			return UDPResult{Sent: 400e3, Received: 20e3, SentRate: 400e3, ReceivedRate: 20e3}, nil
		}
		return carried(rate)
	})
	if err != nil || math.Abs(got.ReceivedRate-100e3) > 100e3*searchPrecision {
		t.Errorf("found %+v, %v", got, err)
	}
}

// A rate from an earlier round saves the flood and most probes, even when it is somewhat off.
func TestSearchNearAKnownRate(t *testing.T) {
	for _, near := range []float64{70e3, 98e3, 100e3, 140e3} {
		got, err := search(near, pipe(100e3, 400e3))
		if err != nil || math.Abs(got.ReceivedRate-100e3) > 100e3*searchPrecision || got.FloodRate != 0 || got.Probes > searchProbes {
			t.Errorf("near %.0f: found %+v, %v", near, got, err)
		}
	}
}

// One bad probe is noise, and a network that always loses ends the search.
func TestSearchForgivesOneProbe(t *testing.T) {
	steady, seen := pipe(100e3, 400e3), map[float64]bool{0: true}
	got, err := search(0, func(rate float64) (UDPResult, error) {
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
	got, err = search(0, func(float64) (UDPResult, error) {
		return UDPResult{Sent: 100, Received: 50, SentRate: 100, ReceivedRate: 50}, nil
	})
	if err != nil || got.Received != 0 || got.Probes > searchProbes+2 {
		t.Errorf("found %+v, %v on a network that carries nothing well", got, err)
	}
}
