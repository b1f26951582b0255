package agent

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestPlanPause(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		0: 0, 100 * time.Microsecond: 4 * time.Millisecond, time.Second: maxPlanPause,
	} {
		if got := planPause(took); got != want {
			t.Errorf("after %v: %v, want %v", took, got, want)
		}
	}
}

// TestPollTimer follows the polls of an agent that becomes ready after its sixth one.
func TestPollTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pollTimer
		p.start()
		defer p.stop()
		last := time.Now()
		for i, ms := range []time.Duration{10, 20, 40, 80, 160, 200, 500, 500} {
			now := <-p.C
			if d := now.Sub(last); d != ms*time.Millisecond {
				t.Errorf("poll %d after %v, want %d ms", i, d, ms)
			}
			last = now
			p.next(i >= 5)
		}
		p.start() // an event
		if d := (<-p.C).Sub(last); d != minPoll {
			t.Errorf("poll %v after an event", d)
		}
	})
}
