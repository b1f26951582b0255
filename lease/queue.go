package lease

import (
	"sync"
	"time"
)

const (
	// joinInterval is the shortest time between two lists that Run handles. The first list of a
	// burst is handled at once, the last one at the end of an interval; those between them are
	// skipped, as each list is complete. Ten plans per second take less than one percent of a CPU,
	// and delay a new node by little.
	joinInterval = 100 * time.Millisecond
)

// event is sent from the watching goroutine to Run: a list, or the error that ended the watch.
type event struct {
	list Snapshot
	err  error
}

// eventQueue passes events from the watching goroutine to Run. It never blocks the sender.
type eventQueue struct {
	ready chan struct{} // holds one entry while events wait

	mu     sync.Mutex // guards events
	events []event
}

func newEventQueue() *eventQueue { return &eventQueue{ready: make(chan struct{}, 1)} }

// put appends an event. A list replaces the one before it if that has not been taken yet.
func (q *eventQueue) put(e event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := len(q.events); n > 0 && e.err == nil && q.events[n-1].err == nil {
		q.events[n-1] = e
	} else {
		q.events = append(q.events, e)
	}
	select {
	case q.ready <- struct{}{}:
	default: // the pending entry covers e
	}
}

// take removes and returns the waiting events.
func (q *eventQueue) take() []event {
	q.mu.Lock()
	defer q.mu.Unlock()
	events := q.events
	q.events = nil
	return events
}
