package dataplane

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

// UnknownSource is an outer address that packets were dropped from as DropUnknownOuterSource.
type UnknownSource struct {
	Addr    netip.Addr
	Packets uint64    // since the address was recorded; a few may be missing
	First   time.Time // when the address was recorded
	Last    time.Time // when the last packet arrived
}

// maxUnknownSources is the number of addresses that a worker remembers. A NAT in front of some
// nodes has few; of many forged ones the last are as good as any.
const maxUnknownSources = 16

// unknownSources are the last unknown outer sources of one worker.
type unknownSources struct {
	mu   sync.Mutex
	list [maxUnknownSources]UnknownSource
}

// add records packets from an address, in the place of the one that was silent for the longest time
// if it is new. A worker never waits: while the list is read, nothing is recorded.
func (u *unknownSources) add(a netip.Addr, packets int, now time.Time) {
	if !u.mu.TryLock() {
		return
	}
	defer u.mu.Unlock()
	place := &u.list[0]
	for i := range u.list {
		s := &u.list[i]
		if s.Addr == a {
			s.Packets += uint64(packets)
			s.Last = now
			return
		}
		if s.Last.Before(place.Last) {
			place = s
		}
	}
	*place = UnknownSource{Addr: a, Packets: uint64(packets), First: now, Last: now}
}

// addTo adds the sources to those of other workers.
func (u *unknownSources) addTo(all map[netip.Addr]UnknownSource) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range u.list {
		if !s.Addr.IsValid() {
			continue
		}
		sum := all[s.Addr]
		sum.Addr = s.Addr
		sum.Packets += s.Packets
		if sum.First.IsZero() || s.First.Before(sum.First) {
			sum.First = s.First
		}
		if s.Last.After(sum.Last) {
			sum.Last = s.Last
		}
		all[s.Addr] = sum
	}
}

// UnknownSources returns the last outer sources that are not nodes, at most maxUnknownSources, the
// last first.
func (e *Engine) UnknownSources() []UnknownSource {
	byAddr := make(map[netip.Addr]UnknownSource)
	for _, w := range e.workers {
		w.unknown.addTo(byAddr)
	}
	all := make([]UnknownSource, 0, len(byAddr))
	for _, s := range byAddr {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b UnknownSource) int { return b.Last.Compare(a.Last) })
	return all[:min(len(all), maxUnknownSources)]
}
