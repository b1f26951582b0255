package traffic

import (
	"context"
	"math"
	"time"
)

const (
	// lossAllowed is the part of the packets that may be missing at a rate that counts as carried.
	lossAllowed = 0.001
	// searchPrecision ends the search: the carried and the refused rate differ by no more than this
	// part.
	searchPrecision = 0.05
	// searchProbes bounds it on a network that behaves differently each time. A start that is wrong
	// by a factor of 100 takes up to 28: seven rates, each tried twice, until one is carried and
	// one refused, and as many in between.
	searchProbes = 32
	// lowestRate ends it on a network that always loses, in packets per second.
	lowestRate = 1
	// offeredEnough is the part of a rate that the sender must reach for the network to be what
	// limits it.
	offeredEnough = 0.97
)

// MaxRate is the highest rate that a network carries with next to no loss.
type MaxRate struct {
	UDPResult
	// GeneratorBound says that the sender could not offer more: the network may carry more than
	// this.
	GeneratorBound bool
	Probes         int
	// ReceiverFull counts packets that reached the receiving socket and found it full, in all tries
	// of a rate: if there are many, the receiver was the limit, not the network.
	ReceiverFull uint64
	// FloodRate is what arrived per second of as much as the sender could send, the figure that
	// other benchmarks give.
	FloodRate float64
}

// HighestRate searches for the highest rate at which less than 0.1 % of the packets are lost; each
// probe lasts d. A rate is refused only when two probes in a row lose too many: on a busy machine
// one of them may be bad luck.
func HighestRate(ctx context.Context, from, to End, load UDPLoad, d time.Duration) (MaxRate, error) {
	load.Duration = d
	return Search(0, func(rate float64) (UDPResult, error) {
		load.Rate = rate
		return UDP(ctx, from, to, load)
	})
}

// search finds the rate by means of probe, which offers a rate, 0 meaning a flood. It starts near a
// rate that is known to be about right, or, if that is 0, with a flood. Every further step in one
// direction is twice as long as the one before (in the logarithm), so that a start that is wrong by
// far costs little more than a good one.
func Search(near float64, probe func(rate float64) (UDPResult, error)) (MaxRate, error) {
	var best MaxRate
	rate, step := near, 1.1
	if near == 0 {
		if err := best.flood(probe); err != nil || best.GeneratorBound {
			return best, err
		}
		rate, step = best.FloodRate, 1.3
	}
	low, high := 0.0, 0.0 // carried and refused rates; 0: none yet
	for best.Probes < searchProbes && rate >= lowestRate {
		ok, err := best.try(probe, rate)
		if err != nil || best.GeneratorBound {
			return best, err
		}
		if ok {
			low = rate
		} else {
			high = rate
		}
		switch {
		case high == 0:
			rate, step = rate*step, step*step
		case low == 0:
			rate, step = rate/step, step*step
		case high/low < 1+searchPrecision:
			return best, nil
		default:
			rate = math.Sqrt(low * high)
		}
	}
	return best, nil
}

// flood sends what the sender can: twice if next to nothing is lost, before it says that the sender
// is the limit.
func (c *MaxRate) flood(probe func(float64) (UDPResult, error)) error {
	for range 2 {
		r, err := probe(0)
		c.Probes++
		c.FloodRate = max(c.FloodRate, r.ReceivedRate)
		if err != nil || !c.keep(r) {
			return err
		}
	}
	c.GeneratorBound = true
	return nil
}

// try offers one rate and says whether it is carried. It has a second try if the first one is
// lossy, or if the sender falls short of the rate although next to nothing is lost: only one who
// does so twice is the limit.
func (c *MaxRate) try(probe func(float64) (UDPResult, error), rate float64) (ok bool, err error) {
	short := 0
	for range 2 {
		r, err := probe(rate)
		c.Probes++
		c.ReceiverFull += r.Overflowed
		if err != nil {
			return false, err
		}
		if !c.keep(r) {
			continue
		}
		if r.SentRate >= rate*offeredEnough {
			return true, nil
		}
		short++
	}
	c.GeneratorBound = short == 2
	return false, nil
}

// keep says whether next to nothing of a probe was lost, and keeps its result if no higher rate was
// carried yet.
func (c *MaxRate) keep(r UDPResult) bool {
	if r.Received == 0 || r.Loss() >= lossAllowed {
		return false
	}
	if r.SentRate > c.SentRate {
		c.UDPResult = r
	}
	return true
}
