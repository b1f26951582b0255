package dataplane

import (
	"net/netip"
	"sync"
	"time"

	"weft/encap"
)

// LastDrop is the last packet that was dropped for a reason.
type LastDrop struct {
	Src, Dst netip.Addr // of the inner header
	Time     time.Time
}

// lastDrops are the last dropped packets of one worker. Packets whose header cannot be read are not
// among them.
type lastDrops struct {
	mu   sync.Mutex
	list [numDrops]LastDrop
}

// set records a packet. A worker never waits: while the list is read, nothing is recorded.
func (l *lastDrops) set(d Drop, pkt []byte, now time.Time) {
	in, err := encap.ParseInner(pkt)
	if err != nil || !l.mu.TryLock() {
		return
	}
	defer l.mu.Unlock()
	l.list[d] = LastDrop{in.Src, in.Dst, now}
}

// addTo replaces the packets of other workers that were dropped earlier.
func (l *lastDrops) addTo(all map[Drop]LastDrop) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range Drops() {
		if l.list[d].Time.After(all[d].Time) {
			all[d] = l.list[d]
		}
	}
}

// drop counts a dropped packet and records it.
func (w *worker) drop(d Drop, pkt []byte) {
	w.counters.drops[d].Add(1)
	w.last.set(d, pkt, w.now())
}
