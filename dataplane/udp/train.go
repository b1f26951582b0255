package udp

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/encap"
)

const (
	// maxTrains is how many trains one flush holds at most: as many nodes as a round of small packets may be for. Every
	// one has memory for the longest train, but the few of bulk traffic are always the first and stay in the cache.
	maxTrains = 64
	trainSize = 65536
	// maxTrain4 and maxTrain6 are the longest trains in bytes. The kernel checks the length of the packet
	// before it is cut, IPv6's own header included.
	maxTrain4 = encap.MaxUDPPayload4
	maxTrain6 = 65535 - encap.OverheadUDP6
	// maxSegments and moreSegments are how many datagrams a train may have: UDP_MAX_SEGMENTS of
	// include/linux/udp.h up to Linux 6.8, and from 6.9 on. Which of them holds is probed.
	maxSegments  = 64
	moreSegments = 128
)

// train is one being filled or waiting to be sent.
type train struct {
	lane    TxKey
	before  int8 // the last train begun before this one in a lane with the same hash; -1: none
	segment int  // size of the first datagram; no other is longer
	used    int  // bytes in buf
	count   int  // datagrams
	full    bool
	buf     []byte // trainSize long
	// refusedBy is why the kernel did not take the train as one message, so that it goes out one by one.
	refusedBy unix.Errno
}

// trains are those of one flush, in the order in which they were begun.
type trains struct {
	all      []train // maxTrains long; the first n are in use
	n        int
	segments int              // most datagrams a train may have
	last     [laneHashes]int8 // the last train of the lanes with each hash; -1: none
}

// laneHashes is twice maxTrains, so that finding a lane's train takes as long with many nodes as with one.
const laneHashes = 2 * maxTrains

func newTrains(n, segments int) trains {
	t := trains{all: make([]train, n), segments: segments}
	memory := make([]byte, n*trainSize)
	for i := range t.all {
		t.all[i].buf = memory[i*trainSize:][:trainSize:trainSize]
	}
	for i := range t.last {
		t.last[i] = -1
	}
	return t
}

// hash spreads lanes over trains.last. Destinations do not move in memory.
func (l TxKey) hash() int {
	h := uint64(uintptr(unsafe.Pointer(l.To))) + uint64(l.TOS)<<8 + uint64(l.Shard)
	return int(h * 0x9e3779b97f4a7c15 >> 32 % laneHashes)
}

// reserve returns memory for the next datagram of the lane, n bytes: at the end of the lane's last train if it
// can grow, else in a new one. It returns nil if a flush must come first.
func (t *trains) reserve(lane TxKey, n int) []byte {
	hash := lane.hash()
	for i := t.last[hash]; i >= 0; i = t.all[i].before {
		if last := &t.all[i]; last.lane == lane {
			if last.takes(n, t.segments) {
				return last.grow(n)
			}
			break // an earlier train of the lane would change the order
		}
	}
	if t.n == len(t.all) || n > trainSize {
		return nil
	}
	next := &t.all[t.n]
	*next = train{lane: lane, before: t.last[hash], segment: n, buf: next.buf}
	t.last[hash] = int8(t.n)
	t.n++
	return next.grow(n)
}

// takes reports whether a datagram of n bytes may follow in this train. An empty one would be no segment.
func (t *train) takes(n, segments int) bool {
	longest := maxTrain4
	if !t.lane.To.Addr.Addr().Is4() {
		longest = maxTrain6
	}
	return !t.full && n > 0 && n <= t.segment && t.used+n <= longest && t.count < segments
}

func (t *train) grow(n int) []byte {
	b := t.buf[t.used:][:n:n]
	t.used += n
	t.count++
	t.full = n < t.segment // only the last datagram may be shorter
	return b
}

// datagram returns the i-th datagram.
func (t *train) datagram(i int) []byte {
	return t.buf[i*t.segment : min((i+1)*t.segment, t.used)]
}

// reset forgets all trains.
func (t *trains) reset() {
	for i := range t.all[:t.n] {
		t.last[t.all[i].lane.hash()] = -1
		t.all[i].lane = TxKey{} // lets go of the destination
	}
	t.n = 0
}
