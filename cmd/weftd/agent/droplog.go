package agent

import (
	"log/slog"
	"time"

	"weft/dataplane"
)

// dropLog logs dropped packets, one line per reason and interval.
type dropLog struct {
	seen   map[dataplane.Drop]uint64 // when last logged or started
	logged map[dataplane.Drop]time.Time
}

// dropInterval is the shortest time between two lines about one reason.
const dropInterval = 5 * time.Minute

// report logs the reasons whose counters have grown. The kernel's announcements are dropped on
// every healthy node and not worth a line.
func (d *dropLog) report(s dataplane.Stats, log *slog.Logger, now time.Time) {
	if d.seen == nil {
		d.seen, d.logged = map[dataplane.Drop]uint64{}, map[dataplane.Drop]time.Time{}
	}
	for _, r := range dataplane.Drops() {
		n := s.Drops[r]
		harmless := r == dataplane.DropMulticast || r == dataplane.DropNeighbourMessage
		if harmless || n == d.seen[r] || now.Sub(d.logged[r]) < dropInterval {
			continue
		}
		log.Warn("packets dropped", "reason", r.String(), "packets", n-d.seen[r],
			"last", lastAddresses(s.LastDrops[r]), "meaning", r.Meaning())
		d.seen[r], d.logged[r] = n, now
	}
}
