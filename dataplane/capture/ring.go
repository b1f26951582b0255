package capture

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"

	"weft/dataplane/capture/filter"
	"weft/encap/checksum"
)

// Ring passes records from one writer to the session's reader. Its memory is allocated once. The
// writer may go on for a moment after the session has ended.
type Ring struct {
	session *Session
	options *Options
	matcher *filter.Matcher
	sample  int // one packet in so many, as of this packet
	chosen  int // the same, if the writer passes on only a sample; 0 if the ring chooses
	skip    int // packets until the next one to record

	slots []slot
	data  []byte
	// Positions only grow; an index is a position modulo the length of slots or data.
	written  atomic.Uint64 // position in slots, by the writer
	read     atomic.Uint64 // position in slots, by the reader
	dataNext uint64        // position in data, the writer's own
	dataFree atomic.Uint64 // position up to which the reader has released data
	missed   [numPoints]atomic.Uint64
	reported uint64 // missed up to the last record, the writer's own
}

// slot is a record whose bytes lie in Ring.data.
type slot struct {
	record Record
	end    uint64 // position in data after the bytes
}

func newRing(s *Session, slots, bytes int) *Ring {
	return &Ring{
		session: s,
		options: &s.options,
		matcher: s.options.Filter.Matcher(),
		slots:   make([]slot, slots),
		data:    make([]byte, bytes),
	}
}

// Packet records an inner packet if it matches. It keeps neither pkt nor m.
func (r *Ring) Packet(m *Meta, pkt []byte) { r.add(Inner, m, pkt, len(pkt)) }

// add records a packet of a point if it matches. length is that of the whole packet, of which pkt
// may be only the beginning.
func (r *Ring) add(p Point, m *Meta, pkt []byte, length int) {
	if !r.options.wants(p, m) || !r.selected() || !r.matcher.Match(pkt, m.Outbound) {
		return
	}
	n := min(len(pkt), r.options.SnapLen)
	buf, pos := r.reserve(p, n)
	if buf == nil {
		return
	}
	copy(buf, pkt)
	r.commit(m, Record{Point: p, Length: length, Bytes: buf}, pos)
}

// Datagram records a datagram with rebuilt outer headers if it matches. It keeps neither payload
// nor m.
func (r *Ring) Datagram(m *Meta, from, to netip.AddrPort, payload []byte) {
	if !r.options.wants(Outer, m) || !r.selected() {
		return
	}
	header := outerHeaderLen(from.Addr(), to.Addr())
	buf, pos := r.reserve(Outer, header+len(payload))
	if buf == nil {
		return
	}
	putOuterHeader(buf, from, to, len(payload))
	copy(buf[header:], payload)
	if !r.matcher.Match(buf, m.Outbound) {
		return
	}
	n := min(len(buf), r.options.SnapLen)
	r.commit(m, Record{Point: Outer, Length: len(buf), Bytes: buf[:n]}, pos)
}

// selected reports whether to look at this packet.
func (r *Ring) selected() bool {
	if r.chosen > 0 {
		r.sample = r.chosen
		return true
	}
	if r.skip > 0 {
		r.skip--
		return false
	}
	if r.sample = int(r.session.sample.Load()); r.sample > 1 {
		// A random distance of the wanted mean: a fixed one would see only one flow of several
		// that take turns.
		r.skip = rand.IntN(2*r.sample - 1)
	}
	return true
}

// reserve returns n contiguous bytes at a position of r.data, or counts a missed packet.
func (r *Ring) reserve(p Point, n int) ([]byte, uint64) {
	size := uint64(len(r.data))
	pos := r.dataNext
	if rest := size - pos%size; rest < uint64(n) {
		pos += rest
	}
	if r.written.Load()-r.read.Load() == uint64(len(r.slots)) ||
		pos+uint64(n)-r.dataFree.Load() > size {
		r.missed[p].Add(1)
		return nil, 0
	}
	return r.data[pos%size:][:n:n], pos
}

// commit passes the record to the reader.
func (r *Ring) commit(m *Meta, rec Record, pos uint64) {
	written := r.written.Load()
	missed := r.missed[Inner].Load() + r.missed[Outer].Load()
	rec.Meta, rec.Missed, r.reported = *m, missed-r.reported, missed
	rec.Sample = r.sample
	r.dataNext = pos + uint64(len(rec.Bytes))
	r.slots[written%uint64(len(r.slots))] = slot{record: rec, end: r.dataNext}
	r.written.Store(written + 1)
}

// peek returns the oldest record, or nil. It is valid until release.
func (r *Ring) peek() *Record {
	read := r.read.Load()
	if read == r.written.Load() {
		return nil
	}
	return &r.slots[read%uint64(len(r.slots))].record
}

// release gives the space of the oldest record back to the writer.
func (r *Ring) release() {
	read := r.read.Load()
	s := &r.slots[read%uint64(len(r.slots))]
	r.dataFree.Store(s.end)
	r.read.Store(read + 1)
}

const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	udpHeaderLen  = 8
	protoUDP      = 17
	outerTTL      = 64
)

// outerHeaderLen returns the length of the headers of a datagram. One of the addresses may be
// unknown or a wildcard of the other family.
func outerHeaderLen(from, to netip.Addr) int {
	if from.Is4() || to.Is4() {
		return ipv4HeaderLen + udpHeaderLen
	}
	return ipv6HeaderLen + udpHeaderLen
}

// putOuterHeader writes the IP and UDP headers of a datagram. The checksum of UDP is left at zero,
// which means that there is none.
func putOuterHeader(b []byte, from, to netip.AddrPort, payload int) {
	length := udpHeaderLen + payload
	ip := b[:outerHeaderLen(from.Addr(), to.Addr())-udpHeaderLen]
	clear(ip)
	if len(ip) == ipv4HeaderLen {
		ip[0], ip[8], ip[9] = 0x45, outerTTL, protoUDP
		binary.BigEndian.PutUint16(ip[2:], uint16(ipv4HeaderLen+length))
		putAddr(ip[12:16], from.Addr())
		putAddr(ip[16:20], to.Addr())
		binary.BigEndian.PutUint16(ip[10:], ^checksum.Sum(ip, 0))
	} else {
		ip[0], ip[6], ip[7] = 0x60, protoUDP, outerTTL
		binary.BigEndian.PutUint16(ip[4:], uint16(length))
		putAddr(ip[8:24], from.Addr())
		putAddr(ip[24:40], to.Addr())
	}
	b = b[len(ip):]
	binary.BigEndian.PutUint16(b, from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(length))
	b[6], b[7] = 0, 0
}

// putAddr writes an address of the length of b and leaves b alone for another.
func putAddr(b []byte, a netip.Addr) {
	switch {
	case a.Is4() && len(b) == 4:
		v4 := a.As4()
		copy(b, v4[:])
	case a.Is6() && len(b) == 16:
		v6 := a.As16()
		copy(b, v6[:])
	}
}
