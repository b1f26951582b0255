package lease

import (
	"math/rand/v2"
	"time"
)

// renewAt is when to renew l: a margin before its expiry, or after half of the time that is left if that is no longer
// than the margin. Zero if l never expires. It is a time by both clocks if now is.
func renewAt(l Lease, now time.Time, margin time.Duration) time.Time {
	if l.Expires.IsZero() {
		return time.Time{}
	}
	left := l.Expires.Sub(now)
	if left > margin {
		return now.Add(left - margin)
	}
	return now.Add(left / 2)
}

// passed reports whether t has come by either of the two clocks that t and now carry: the wall clock may be set back,
// and the monotonic one stands still while the machine sleeps. Too early costs a request, too late the lease.
func passed(t, now time.Time) bool {
	return !now.Before(t) || !now.Round(0).Before(t.Round(0))
}

// Bounds of the pauses between tries: flannel's.
const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 5 * time.Second
)

// backoff doubles its pauses from backoffMin to backoffMax. The zero backoff begins.
type backoff struct{ last time.Duration }

// next is the next pause, with up to half of it left out by chance, so that nodes do not come back in step.
func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, backoffMin), backoffMax)
	return b.last - rand.N(b.last/2)
}
