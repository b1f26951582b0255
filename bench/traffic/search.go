package traffic

import (
	"context"
	"math"
	"time"
)

const (
	// maxLoss is the ratio of lost packets up to which a rate counts as carried.
	maxLoss = 0.001
	// searchPrecision ends the search: the relative difference of the carried and the lossy rate.
	searchPrecision = 0.05
	// searchProbes limits the search on a network that behaves differently each time. A start that
	// is wrong by a factor of 100 takes up to 28: seven rates, each tried twice, until one is
	// carried and one is lossy, and as many in between.
	searchProbes = 32
	// minRate ends the search on a network that always loses packets, in packets per second.
	minRate = 1
	// minOffered is the ratio of a rate that the sender must reach; otherwise the sender is the
	// limit.
	minOffered = 0.97
)

// MaxRate is the highest rate that a network carries almost without loss.
type MaxRate struct {
	UDPResult
	// GeneratorBound is true if the sender could not offer more: the network may carry a higher
	// rate.
	GeneratorBound bool
	Probes         int
	// ReceiverFull counts packets dropped at the full receiving socket in all probes. Many of them
	// mean that the receiver was the limit, not the network.
	ReceiverFull uint64
	// FloodRate is the received packets per second when the sender sends as fast as possible, as
	// other benchmarks do.
	FloodRate float64
}

// HighestRate searches for the highest rate with a loss of less than 0.1 %; each probe lasts d. A
// rate is lossy only if two consecutive probes are: on a busy machine, one may be bad luck.
func HighestRate(ctx context.Context, from, to End, load UDPLoad,
	d time.Duration) (MaxRate, error) {
	load.Duration = d
	return Search(0, func(rate float64) (UDPResult, error) {
		load.Rate = rate
		return UDP(ctx, from, to, load)
	})
}

// Search finds the highest rate by means of probe, which offers a rate; 0 means a flood. It starts
// at a rate that is roughly known, or with a flood if start is 0. Each further step in one
// direction is twice as long (in the logarithm), so that a start that is far off costs little more
// than a good one.
func Search(start float64, probe func(rate float64) (UDPResult, error)) (MaxRate, error) {
	var best MaxRate
	rate, step := start, 1.1
	if start == 0 {
		if err := best.flood(probe); err != nil || best.GeneratorBound {
			return best, err
		}
		rate, step = best.FloodRate, 1.3
	}
	low, high := 0.0, 0.0 // highest carried and lowest lossy rate; 0 means none yet
	for best.Probes < searchProbes && rate >= minRate {
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

// flood sends as fast as possible. The sender is the limit if two probes in a row are almost
// without loss.
func (c *MaxRate) flood(probe func(float64) (UDPResult, error)) error {
	for range 2 {
		r, err := probe(0)
		c.Probes++
		c.FloodRate = max(c.FloodRate, r.ReceivedRate)
		if err != nil || !c.accept(r) {
			return err
		}
	}
	c.GeneratorBound = true
	return nil
}

// try offers one rate and reports whether it is carried. It tries twice if the first probe is
// lossy, or if the sender is slower than the rate without loss: a sender that is slower twice is
// the limit.
func (c *MaxRate) try(probe func(float64) (UDPResult, error), rate float64) (ok bool, err error) {
	short := 0
	for range 2 {
		r, err := probe(rate)
		c.Probes++
		c.ReceiverFull += r.Overflowed
		if err != nil {
			return false, err
		}
		if !c.accept(r) {
			continue
		}
		if r.SentRate >= rate*minOffered {
			return true, nil
		}
		short++
	}
	c.GeneratorBound = short == 2
	return false, nil
}

// accept reports whether a probe was almost without loss, and keeps its result if no higher rate
// was carried yet.
func (c *MaxRate) accept(r UDPResult) bool {
	if r.Received == 0 || r.Loss() >= maxLoss {
		return false
	}
	if r.SentRate > c.SentRate {
		c.UDPResult = r
	}
	return true
}
