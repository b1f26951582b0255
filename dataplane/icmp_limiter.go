package dataplane

import "time"

// Limits for the ICMP errors of one worker: the kernel's defaults for net.ipv4.icmp_msgs_per_sec
// and net.ipv4.icmp_msgs_burst.
const (
	icmpPerSecond = 1000
	icmpBurst     = 50
)

// icmpLimiter is a token bucket. The zero value is full.
type icmpLimiter struct {
	used float64 // tokens taken and not yet refilled
	last time.Time
}

// allow takes a token if one is available.
func (l *icmpLimiter) allow(now time.Time) bool {
	l.used = max(0, l.used-now.Sub(l.last).Seconds()*icmpPerSecond)
	l.last = now
	if l.used > icmpBurst-1 {
		return false
	}
	l.used++
	return true
}
