package probe

import (
	"slices"
	"time"
)

// windowLen is the number of echoes that loss and round-trip time are computed from: five minutes
// at the default interval.
const windowLen = 30

// window holds the results of the last echoes.
type window struct {
	rtt  [windowLen]time.Duration // lost if negative; a ring
	n    int                      // entries in use
	next int
	last time.Duration // of the last answered echo
}

const lost = time.Duration(-1)

func (w *window) add(rtt time.Duration) {
	w.rtt[w.next] = rtt
	w.next = (w.next + 1) % windowLen
	w.n = min(w.n+1, windowLen)
	if rtt >= 0 {
		w.last = rtt
	}
}

// summary returns the number of echoes, of lost ones, and the median of the round-trip times, which
// is 0 if all are lost.
func (w *window) summary() (sent, missing int, median time.Duration) {
	var answered []time.Duration
	for _, r := range w.rtt[:w.n] {
		if r >= 0 {
			answered = append(answered, r)
		}
	}
	if len(answered) > 0 {
		slices.Sort(answered)
		median = answered[len(answered)/2]
	}
	return w.n, w.n - len(answered), median
}
