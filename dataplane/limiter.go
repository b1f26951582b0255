package dataplane

import "time"

// How many ICMP errors a worker sends: the kernel's own net.ipv4.icmp_msgs_per_sec and icmp_msgs_burst.
const (
	icmpPerSecond = 1000
	icmpBurst     = 50
)

// limiter is a token bucket. The zero value is full.
type limiter struct {
	used float64 // tokens taken and not yet given back
	last time.Time
}

// allow takes a token if there is one.
func (l *limiter) allow(now time.Time) bool {
	l.used = max(0, l.used-now.Sub(l.last).Seconds()*icmpPerSecond)
	l.last = now
	if l.used > icmpBurst-1 {
		return false
	}
	l.used++
	return true
}
