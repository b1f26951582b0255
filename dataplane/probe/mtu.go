package probe

import "time"

const (
	// mtuTries is the number of echoes that must be lost before a size counts as too large: on a
	// path that loses a tenth of the packets, one size in a hundred is then misjudged.
	mtuTries = 3
	// mtuInterval is the time between two checks of a known path MTU. A path that carries less from
	// one moment to the next is noticed within it.
	mtuInterval = time.Minute
	// mtuRestart is the number of checks after which a search starts at the top again, since the
	// path may carry more by now (RFC 8201 section 4 suggests 10 minutes).
	mtuRestart = 10
)

// mtuSearch finds the largest packet that a path carries, by halving the range of sizes, and checks
// it from then on. Sizes are those of inner packets in bytes.
type mtuSearch struct {
	floor, max int // a size that passes for certain, and the largest that the device takes
	known      int // result of the last search; 0: none yet

	low, high int // the largest size that passed, the largest that may pass
	size      int // to try next
	tries     int // of size that were lost
	checks    int // of known since the last search from the top
	next      time.Time
}

func newMTUSearch(floor, max int, now time.Time) mtuSearch {
	s := mtuSearch{floor: min(floor, max), max: max, next: now}
	s.start(max)
	return s
}

// start begins a search at a size, which is tried first.
func (s *mtuSearch) start(size int) {
	s.low, s.high, s.size, s.tries = s.floor, size, size, 0
}

// passed records that a packet of a size got through.
func (s *mtuSearch) passed(size int, now time.Time) {
	if size > s.low && size <= s.high {
		s.low = size
		s.proceed(now)
	}
}

// lost records that a packet of a size got lost, for any reason.
func (s *mtuSearch) lost(size int, now time.Time) {
	if size != s.size {
		return
	}
	if s.tries++; s.tries >= mtuTries {
		s.high = size - 1
		s.proceed(now)
	}
}

// tooBig records the MTU that the kernel or a router reported for a packet of a size. A report that
// cannot be true still excludes the size.
func (s *mtuSearch) tooBig(size, mtu int, now time.Time) {
	if size != s.size {
		return
	}
	s.high = size - 1
	s.proceed(now)
	if mtu > s.low && mtu <= s.high {
		s.high, s.size = mtu, mtu
	}
}

// limited records the MTU of this node's device, which refused a packet of a size.
func (s *mtuSearch) limited(size, mtu int, now time.Time) {
	if mtu >= s.floor && mtu < s.max {
		s.max = mtu
	}
	s.tooBig(size, mtu, now)
}

// proceed chooses the next size, or ends the search.
func (s *mtuSearch) proceed(now time.Time) {
	s.tries, s.next = 0, now
	if s.low < s.high {
		s.size = (s.low + s.high + 1) / 2
		return
	}
	s.known = s.low
	s.next = now.Add(mtuInterval)
	if s.checks++; s.checks >= mtuRestart {
		s.checks = 0
		s.start(s.max)
		return
	}
	s.start(s.known)
}
