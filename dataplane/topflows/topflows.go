// Package topflows finds the largest flows of a stream of packets in bounded memory, with the
// space-saving algorithm (Metwally, Agrawal, El Abbadi: Efficient Computation of Frequent and Top-k
// Elements in Data Streams, ICDT 2005).
package topflows

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"net/netip"
	"slices"
)

// Key identifies a flow in one direction. Ports are 0 for packets without.
type Key struct {
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
	Proto            uint8 // IP protocol number
}

// IP protocols with ports at the beginning of their header.
const (
	protoTCP  = 6
	protoUDP  = 17
	protoSCTP = 132
)

// KeyOf returns the flow of an IP packet, of which pkt may be only the beginning. ok is false if it
// is not IP. Fragments and IPv6 packets with extension headers count without ports.
func KeyOf(pkt []byte) (k Key, ok bool) {
	var upper int
	switch {
	case len(pkt) >= 20 && pkt[0]>>4 == 4:
		k.Src, k.Dst = netip.AddrFrom4([4]byte(pkt[12:])), netip.AddrFrom4([4]byte(pkt[16:]))
		k.Proto, upper = pkt[9], int(pkt[0]&0x0f)*4
		if binary.BigEndian.Uint16(pkt[6:])&0x3fff != 0 { // more fragments, or an offset
			return k, true
		}
	case len(pkt) >= 40 && pkt[0]>>4 == 6:
		k.Src, k.Dst = netip.AddrFrom16([16]byte(pkt[8:])), netip.AddrFrom16([16]byte(pkt[24:]))
		k.Proto, upper = pkt[6], 40
	default:
		return Key{}, false
	}
	hasPorts := k.Proto == protoTCP || k.Proto == protoUDP || k.Proto == protoSCTP
	if hasPorts && len(pkt) >= upper+4 {
		k.SrcPort = binary.BigEndian.Uint16(pkt[upper:])
		k.DstPort = binary.BigEndian.Uint16(pkt[upper+2:])
	}
	return k, true
}

// Flow is a flow and its traffic. Bytes may be too high by at most Error, never too low.
type Flow struct {
	Key
	Node           string // the other node, as of the last packet
	Outbound       bool
	Packets, Bytes uint64
	// KernelPackets and KernelBytes are the parts of Packets and Bytes that the kernel carried.
	KernelPackets, KernelBytes uint64
	Error                      uint64 // bytes that may belong to a flow that this one has replaced
	Drop                       string // reason of the last packet that was dropped; empty if none was
	Dropped                    uint64 // packets dropped
}

// Sketch counts the traffic of the largest flows. Every flow with more than a share of 1/capacity
// of all bytes is in it. It is not safe for concurrent use.
type Sketch struct {
	capacity int
	byKey    map[Key]*entry
	smallest entries // a heap
}

type entry struct {
	Flow
	index int // in the heap
}

// NewSketch returns a sketch of at most capacity flows.
func NewSketch(capacity int) *Sketch {
	return &Sketch{capacity: capacity, byKey: make(map[Key]*entry, capacity)}
}

// Add adds packets of a flow. The counts and Error of f are those to add; its other fields replace
// those of earlier packets.
func (s *Sketch) Add(f Flow) {
	e := s.byKey[f.Key]
	switch {
	case e != nil:
		f.Packets += e.Packets
		f.Bytes += e.Bytes
		f.KernelPackets += e.KernelPackets
		f.KernelBytes += e.KernelBytes
		f.Error += e.Error
		f.Dropped += e.Dropped
		f.Drop = cmp.Or(f.Drop, e.Drop)
		e.Flow = f
		heap.Fix(&s.smallest, e.index)
	case len(s.smallest) < s.capacity:
		e = &entry{Flow: f}
		s.byKey[f.Key] = e
		heap.Push(&s.smallest, e)
	default: // replace the smallest, and take over its bytes
		e = s.smallest[0]
		delete(s.byKey, e.Key)
		f.Error += e.Bytes
		f.Bytes += e.Bytes
		e.Flow = f
		s.byKey[f.Key] = e
		heap.Fix(&s.smallest, 0)
	}
}

// Top returns at most n flows, the largest first.
func (s *Sketch) Top(n int) []Flow {
	all := make([]Flow, 0, len(s.smallest))
	for _, e := range s.smallest {
		all = append(all, e.Flow)
	}
	slices.SortFunc(all, func(a, b Flow) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), a.Src.Compare(b.Src), a.Dst.Compare(b.Dst),
			cmp.Compare(a.SrcPort, b.SrcPort), cmp.Compare(a.DstPort, b.DstPort))
	})
	return all[:min(n, len(all))]
}

// Reset forgets all flows.
func (s *Sketch) Reset() {
	clear(s.byKey)
	clear(s.smallest)
	s.smallest = s.smallest[:0]
}

// entries is a heap with the smallest flow first.
type entries []*entry

// Len is for package heap.
func (h entries) Len() int { return len(h) }

// Less is for package heap.
func (h entries) Less(i, j int) bool { return h[i].Bytes < h[j].Bytes }

// Swap is for package heap.
func (h entries) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push is for package heap.
func (h *entries) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}

// Pop is for package heap.
func (h *entries) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return e
}
