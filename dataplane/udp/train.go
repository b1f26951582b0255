package udp

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/encap"
)

const (
	// maxTrains is the maximum number of trains per flush: the number of nodes that a round of
	// small packets may be for. Each has memory for the longest train. Bulk traffic uses only the
	// first few, which stay in the CPU cache.
	maxTrains = 64
	trainSize = 65536
	// maxTrain4 and maxTrain6 are the maximum lengths of a train in bytes. The kernel checks the
	// length of the packet before segmentation, including the IPv6 header.
	maxTrain4 = encap.MaxUDPPayload4
	maxTrain6 = 65535 - encap.OverheadUDP6
	// maxSegmentsOld and maxSegmentsNew are the maximum number of datagrams per train:
	// UDP_MAX_SEGMENTS in include/linux/udp.h up to Linux 6.8, and since 6.9. probe determines
	// which applies.
	maxSegmentsOld = 64
	maxSegmentsNew = 128
)

// train is a train that is being filled or is waiting to be sent.
type train struct {
	key     TxKey
	prev    int8 // index of the previous train with the same key hash; -1: none
	segment int  // size of the first datagram; no other is longer
	used    int  // bytes used in buf
	count   int  // number of datagrams
	full    bool
	buf     []byte // trainSize bytes
	// gsoErrno is the error with which the kernel refused the train as one message. If it is set,
	// the datagrams are sent one by one.
	gsoErrno unix.Errno
}

// trains are the trains of one flush, in the order of their first datagram.
type trains struct {
	all      []train // the first n are in use
	n        int
	segments int             // maximum number of datagrams per train
	last     [keyHashes]int8 // index of the last train per key hash; -1: none
}

// keyHashes is the size of trains.last: twice maxTrains, so that lookups take constant time with
// any number of nodes.
const keyHashes = 2 * maxTrains

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

// hash returns the index of the key in trains.last. It uses the address of the Destination, which
// is stable.
func (k TxKey) hash() int {
	h := uint64(uintptr(unsafe.Pointer(k.To))) + uint64(k.TOS)<<8 + uint64(k.Shard)
	return int(h * 0x9e3779b97f4a7c15 >> 32 % keyHashes)
}

// reserve returns n bytes for the next datagram of key: at the end of the last train of the key if
// it accepts the datagram, else in a new train. It returns nil if a flush is required first.
func (t *trains) reserve(key TxKey, n int) []byte {
	hash := key.hash()
	for i := t.last[hash]; i >= 0; i = t.all[i].prev {
		if last := &t.all[i]; last.key == key {
			if last.accepts(n, t.segments) {
				return last.grow(n)
			}
			break // extending an earlier train would change the order
		}
	}
	if t.n == len(t.all) || n > trainSize {
		return nil
	}
	next := &t.all[t.n]
	*next = train{key: key, prev: t.last[hash], segment: n, buf: next.buf}
	t.last[hash] = int8(t.n)
	t.n++
	return next.grow(n)
}

// accepts reports whether a datagram of n bytes may be appended to the train. An empty datagram
// cannot be a segment.
func (t *train) accepts(n, segments int) bool {
	longest := maxTrain4
	if !t.key.To.Addr.Addr().Is4() {
		longest = maxTrain6
	}
	return !t.full && n > 0 && n <= t.segment && t.used+n <= longest && t.count < segments
}

// grow appends a datagram of n bytes and returns its memory.
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

// reset removes all trains.
func (t *trains) reset() {
	for i := range t.all[:t.n] {
		t.last[t.all[i].key.hash()] = -1
		t.all[i].key = TxKey{} // release the destination
	}
	t.n = 0
}
