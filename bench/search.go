package bench

import (
	"context"
	"time"
)

const (
	// lossAllowed is the part of the packets that may be missing at a rate that counts as carried.
	lossAllowed = 0.001
	// searchPrecision ends the search: the carried and the refused rate differ by no more than this part.
	searchPrecision = 0.05
	// searchProbes bounds it on a network that behaves differently each time.
	searchProbes = 14
	// offeredEnough is the part of a rate that the sender must reach for the network to be what limits it.
	offeredEnough = 0.97
)

// Carried is the highest rate that a network carries with next to no loss.
type Carried struct {
	UDPResult
	// GeneratorBound says that the sender could not offer more: the network may carry more than this.
	GeneratorBound bool
	Probes         int
	// FloodRate is what arrived per second of as much as the sender could send, the figure that other benchmarks give.
	FloodRate float64
}

// HighestRate searches for the highest rate at which less than 0.1 % of the packets are lost; each probe lasts d. A rate
// is refused only when two probes in a row lose too many: on a busy machine one of them may be bad luck.
func HighestRate(ctx context.Context, from, to End, load UDPLoad, d time.Duration) (Carried, error) {
	load.Duration = d
	return search(0, func(rate float64) (UDPResult, error) {
		load.Rate = rate
		return UDP(ctx, from, to, load)
	})
}

// search finds the rate by means of probe, which offers a rate, 0 meaning a flood. It starts near a rate that is known to
// be about right, or, if that is 0, with a flood.
func search(near float64, probe func(rate float64) (UDPResult, error)) (Carried, error) {
	var best Carried
	rate, step := near, 1.1
	if near == 0 {
		flood, err := probe(0)
		best.FloodRate, best.Probes = flood.ReceivedRate, 1
		if err != nil || flood.Received == 0 {
			return best, err
		}
		if flood.Loss() < lossAllowed {
			best.UDPResult, best.GeneratorBound = flood, true
			return best, nil
		}
		rate, step = flood.ReceivedRate, 1.3
	}
	low, high := 0.0, 0.0 // carried and refused rates; 0: none yet
	for best.Probes < searchProbes {
		ok, bound, err := best.try(probe, rate)
		if err != nil {
			return best, err
		}
		if bound {
			best.GeneratorBound = true
			return best, nil
		}
		if ok {
			low = rate
		} else {
			high = rate
		}
		switch {
		case high == 0:
			rate *= step
		case low == 0:
			rate /= step
		case high/low < 1+searchPrecision:
			return best, nil
		default:
			rate = (low + high) / 2
		}
	}
	return best, nil
}

// try offers one rate, a second time if the first one is lossy, and keeps the result if it is carried. bound says that
// the sender fell short of the rate although next to nothing was lost.
func (c *Carried) try(probe func(float64) (UDPResult, error), rate float64) (ok, bound bool, err error) {
	for range 2 {
		r, err := probe(rate)
		c.Probes++
		if err != nil {
			return false, false, err
		}
		if r.Received > 0 && r.Loss() < lossAllowed {
			if r.ReceivedRate > c.ReceivedRate {
				c.UDPResult = r
			}
			return true, r.SentRate < rate*offeredEnough, nil
		}
	}
	return false, false, nil
}
