package agent

import "time"

const (
	// The agent polls the state of its parts: whether the kernel has reached the desired state, for
	// example, which no event reports. It does so at minPoll after an event, less and less often
	// while it waits, and at readyPoll while the node is ready.
	minPoll   = 10 * time.Millisecond
	maxPoll   = 200 * time.Millisecond
	readyPoll = 500 * time.Millisecond

	// After a plan, the next leases wait planShare times as long as that took, so that planning
	// takes at most one part in planShare of a CPU. A single change is thus planned at once, and of
	// a hundred per second, or on a busy host, many together.
	planShare    = 40
	maxPlanPause = 100 * time.Millisecond
)

// planPause returns the pause after a plan that took a time.
func planPause(took time.Duration) time.Duration { return min(planShare*took, maxPlanPause) }

// pollTimer fires when the agent is to poll.
type pollTimer struct {
	*time.Timer
	interval time.Duration
}

// start makes the next poll due soon.
func (t *pollTimer) start() {
	t.interval = minPoll
	if t.Timer == nil {
		t.Timer = time.NewTimer(t.interval)
		return
	}
	t.Reset(t.interval)
}

// next schedules the poll after one.
func (t *pollTimer) next(ready bool) {
	t.interval = min(2*t.interval, maxPoll)
	if ready {
		t.interval = readyPoll
	}
	t.Reset(t.interval)
}

func (t *pollTimer) stop() { t.Stop() }
