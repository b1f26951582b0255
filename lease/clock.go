package lease

import (
	"math/rand/v2"
	"time"
)

// renewAt returns the time to renew l: margin before its expiry, or after half of the remaining
// time if that is no longer than margin. It is zero if l never expires. The result carries a
// monotonic reading if now does.
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

// lengthened returns the margin plus up to an eighth at random, so that nodes that started together
// do not renew together.
func lengthened(margin time.Duration) time.Duration { return margin + rand.N(margin/8+1) }

// passed reports whether t has passed on either the monotonic or the wall clock: the wall clock may
// be set back, and the monotonic clock stops while the machine sleeps. Renewing early costs one
// request; renewing late costs the lease.
func passed(t, now time.Time) bool {
	return !now.Before(t) || !now.Round(0).Before(t.Round(0))
}

// Bounds of the delay between retries, as in flannel.
const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 5 * time.Second
)

// backoff doubles its delay from backoffMin to backoffMax. The zero backoff is ready to use.
type backoff struct{ last time.Duration }

// next returns the next delay, randomly reduced by up to half so that nodes do not retry in step.
func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, backoffMin), backoffMax)
	return b.last - rand.N(b.last/2)
}
