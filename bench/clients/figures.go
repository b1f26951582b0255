package clients

import (
	"slices"
	"time"
)

// percentile returns the p-th percentile; 0 without samples.
func percentile(samples []time.Duration, p int) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(samples))
	return s[min(len(s)*p/100, len(s)-1)].Round(time.Millisecond)
}
