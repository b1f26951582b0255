package offload

import (
	"cmp"
	"encoding/binary"

	"weft/encap/checksum"
)

// Limits configures the frames that a Merger may build and its memory between two calls of Flush.
type Limits struct {
	TCP bool // the TUN accepts GSOTCPv4 and GSOTCPv6
	UDP bool // the TUN accepts GSOUDP (Linux 6.2)

	// UDPSegments is the maximum number of segments in a UDP frame: 64, or 128 if the kernel
	// accepts it (Linux 6.9; UDP_MAX_SEGMENTS in include/linux/udp.h). Zero means 64.
	UDPSegments int
	Flows       int // maximum number of open flows, up to 32767; zero means 256
	Buffers     int // maximum number of receive buffers between two Flushes; zero means 64
	Pieces      int // maximum number of pieces, over all flows; zero means 2048
}

// maxFlows is the largest number of flows that the int16 indices in Merger.table can address.
const maxFlows = 1<<15 - 1

func (l Limits) withDefaults() Limits {
	l.UDPSegments = cmp.Or(l.UDPSegments, 64)
	l.Flows = min(cmp.Or(l.Flows, 256), maxFlows)
	l.Buffers = cmp.Or(l.Buffers, 64)
	l.Pieces = cmp.Or(l.Pieces, 2048)
	return l
}

// Merger merges segments of TCP and UDP flows into GSO frames, across receive buffers. The caller
// adds every segment of a batch in the order of arrival:
//
//	for each buffer { m.NextBuffer(buf); for each segment in it { m.Add(offset, length) } }
//	m.Flush()
//
// The order within a flow (5-tuple, per direction) is kept; different flows may be reordered. A
// segment that cannot be merged is emitted alone and unchanged, after all earlier segments of its
// flow. If its flow is unknown, it is emitted after all segments that may belong to the same flow.
// A frame is emitted as soon as no segment can follow in it, the others by Flush. Checksums are
// verified only for segments that are merged; for the others that is left to the receiver.
//
// Buffers are borrowed from NextBuffer until Flush returns, and are modified: in the fast path a
// payload is moved towards the front of its buffer, over the header between it and the payload
// before. If other flows lie between the segments of a frame, the frame is copied to memory of the
// Merger. All memory is allocated by NewMerger and bounded by Limits: 64 KiB, 16 bytes per piece,
// and about 100 bytes per flow. A Merger is not safe for concurrent use.
type Merger struct {
	limits Limits
	emit   func(h Header, frame []byte)

	buffers  []rxBuffer
	flows    []flow          // flows seen since the last drain; never reordered
	pieces   []piece         // payload runs of all flows, allocated in order
	table    []int16         // hash of the flow key -> index in flows, by linear probing; -1: free
	recent   int             // index of the flow of the last segment, most likely that of the next
	gathered []byte          // copy of a frame that consists of several pieces
	saved    [maxHeader]byte // a header that movePayload may overwrite
}

// rxBuffer is a receive buffer. The bytes up to top may still be needed; those between top and the
// segment being added may be overwritten.
type rxBuffer struct {
	buf []byte
	top int
}

// flow is a 5-tuple and its open frame, if segments > 0. The header of the frame is at the start of
// the first piece.
type flow struct {
	key      flowKey
	slot     int32 // in Merger.table
	segments int32
	first    int32 // first piece of the open frame
	last     int32 // last piece of the open frame
	header   int32 // bytes of all headers
	l4       int32 // offset of the TCP or UDP header
	size     int32 // payload bytes per segment
	payload  int32 // payload bytes so far
	seq      uint32
	pseudo   uint16 // sum of addresses and protocol
	id       uint16 // IPv4 ID of the first segment
	fixedID  bool
	flags    uint8 // PSH and FIN of the last segment
}

// piece is a run of payload bytes in a receive buffer. The first piece of a frame includes the
// headers.
type piece struct {
	buffer   int32 // index in Merger.buffers
	from, to int32
	next     int32 // index in Merger.pieces; -1: last piece
}

// NewMerger returns a Merger that calls emit with each frame. emit borrows the frame until it
// returns, and must not call the Merger.
func NewMerger(l Limits, emit func(h Header, frame []byte)) *Merger {
	l = l.withDefaults()
	slots := 1
	for slots < 2*l.Flows {
		slots *= 2
	}
	m := &Merger{
		limits:   l,
		emit:     emit,
		buffers:  make([]rxBuffer, 0, l.Buffers),
		flows:    make([]flow, 0, l.Flows),
		pieces:   make([]piece, 0, l.Pieces),
		table:    make([]int16, slots),
		gathered: make([]byte, maxPacket),
	}
	for i := range m.table {
		m.table[i] = -1
	}
	return m
}

// NextBuffer makes buf the receive buffer of the segments added next. The Merger owns all of buf up
// to its length until Flush returns. If there is free space after the received bytes, frames can be
// extended in place by segments from later buffers; 64 KiB suffices for any frame at the end of the
// received bytes.
func (m *Merger) NextBuffer(buf []byte) {
	if len(m.buffers) == cap(m.buffers) {
		m.Flush()
	}
	m.buffers = append(m.buffers, rxBuffer{buf: buf})
}

// Add adds the segment of n bytes at offset from in the current buffer: one inner packet. Segments
// of a buffer must be added in ascending order of offsets. Bytes that are skipped may be
// overwritten.
func (m *Merger) Add(from, n int) {
	b := &m.buffers[len(m.buffers)-1]
	if from < b.top {
		panic("offload: Merger.Add: segments of a buffer must be added in order")
	}
	s := segment{bytes: b.buf[from : from+n], from: from}
	switch m.parse(&s) {
	case mergeable:
	case sameFlow:
		if f := m.find(&s.key); f != nil {
			m.flushFlow(f)
		}
		m.emit(Header{}, s.bytes)
		return
	case sameHosts:
		m.flushHosts(&s.key)
		m.emit(Header{}, s.bytes)
		return
	default:
		m.flushAll()
		m.emit(Header{}, s.bytes)
		return
	}

	f := m.findOrAdd(&s.key)
	if f.segments > 0 {
		if s.follows(m, f) && m.join(f, &s) {
			if s.endsFrame || s.payload() < int(f.size) {
				m.flushFlow(f)
			}
			return
		}
		m.flushFlow(f)
	}
	if s.endsFrame {
		m.emit(Header{}, s.bytes)
		return
	}
	m.open(f, &s)
}

// Flush emits all open frames, in the order in which their flows were first seen, and releases all
// buffers.
func (m *Merger) Flush() {
	m.drain()
	m.buffers = m.buffers[:0]
}

// drain emits all open frames and removes all flows.
func (m *Merger) drain() {
	m.flushAll()
	for i := range m.flows {
		m.table[m.flows[i].slot] = -1
	}
	m.flows = m.flows[:0]
	m.pieces = m.pieces[:0]
	m.recent = 0
}

// open makes s the first segment of f's frame, in place. Its checksum is verified only when a
// second segment follows: a lone packet is emitted unverified.
func (m *Merger) open(f *flow, s *segment) {
	if len(m.pieces) == cap(m.pieces) {
		key := f.key
		m.drain()
		f = m.findOrAdd(&key)
	}
	f.segments = 1
	f.header, f.l4 = int32(s.header), int32(s.l4)
	f.size, f.payload = int32(s.payload()), int32(s.payload())
	f.seq, f.id, f.fixedID, f.flags = s.seq, s.id, false, 0
	f.first = m.addPiece(s.from, s.from+len(s.bytes))
	f.last = f.first
}

// addPiece adds a piece of the current buffer. Its bytes are kept until its frame is emitted.
func (m *Merger) addPiece(from, to int) int32 {
	current := len(m.buffers) - 1
	m.pieces = append(m.pieces,
		piece{buffer: int32(current), from: int32(from), to: int32(to), next: -1})
	m.buffers[current].top = to
	return int32(len(m.pieces) - 1)
}

// join appends the payload of s to f's frame. It returns false, without changes, if a checksum is
// wrong or there is no piece left.
func (m *Merger) join(f *flow, s *segment) bool {
	if f.segments == 1 {
		f.pseudo = checksum.Pseudo(f.key.addrs(s.bytes), s.proto, 0)
		if !m.firstValid(f) {
			return false
		}
	}
	if s.bytes[0]>>4 == 4 && !validIPv4(s.bytes) {
		return false
	}
	sum := checksum.Add(f.pseudo, uint16(len(s.bytes)-s.l4))
	sum = checksum.Sum(s.bytes[s.l4:s.header], sum)
	if !m.movePayload(f, s, sum) {
		return false
	}
	f.segments++
	f.payload += int32(s.payload())
	f.flags = s.flags & (tcpPSH | tcpFIN)
	return true
}

// firstValid reports whether the checksums of the frame's first segment are correct.
func (m *Merger) firstValid(f *flow) bool {
	p := &m.pieces[f.first]
	b := m.buffers[p.buffer].buf[p.from:p.to]
	if b[0]>>4 == 4 && !validIPv4(b) {
		return false
	}
	return checksum.Sum(b[f.l4:], checksum.Add(f.pseudo, uint16(len(b)-int(f.l4)))) == 0xffff
}

// validIPv4 reports whether the checksum of an IPv4 header without options is correct. The byte
// order does not matter when comparing the sum with all ones.
func validIPv4(b []byte) bool {
	b = b[:ipv4HeaderLen]
	v, w := binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint64(b[8:])
	sum := v>>32 + v&0xffffffff + w>>32 + w&0xffffffff + uint64(binary.NativeEndian.Uint32(b[16:]))
	return checksum.Fold(sum) == 0xffff
}

// movePayload appends the payload of s to f's frame: in place if the bytes after the last piece are
// free, else as a new piece. sum covers the pseudo-header and the upper-layer header of s. It
// returns false, without changes, if the checksum is wrong or there is no piece left.
func (m *Merger) movePayload(f *flow, s *segment, sum uint16) bool {
	p := &m.pieces[f.last]
	b := &m.buffers[p.buffer]
	payload := s.bytes[s.header:]
	current := int(p.buffer) == len(m.buffers)-1
	end := int(p.to) + len(payload)
	if b.top != int(p.to) || !current && end > len(b.buf) {
		if len(m.pieces) == cap(m.pieces) || checksum.Sum(payload, sum) != 0xffff {
			return false
		}
		p.next = m.addPiece(s.from+s.header, s.from+len(s.bytes))
		f.last = p.next
		return true
	}
	dst := b.buf[p.to:end]
	copy(m.saved[:], s.bytes[:s.header])
	if checksum.Copy(dst, payload, sum) != 0xffff {
		if current { // dst may overlap s: restore s
			copy(payload, dst)
			copy(s.bytes, m.saved[:s.header])
		}
		return false
	}
	p.to = int32(end)
	b.top = end
	return true
}

// flushFlow emits f's frame, if one is open: a lone segment unchanged, several under one header.
func (m *Merger) flushFlow(f *flow) {
	if f.segments == 0 {
		return
	}
	p := &m.pieces[f.first]
	frame := m.buffers[p.buffer].buf[p.from:p.to]
	if f.segments == 1 {
		f.segments = 0
		m.emit(Header{}, frame)
		return
	}
	if p.next >= 0 {
		frame = m.gather(f.first)
	}
	h := f.finishHeader(frame)
	f.segments = 0
	m.emit(h, frame)
}

// gather copies the list of pieces that begins with first into one contiguous frame.
func (m *Merger) gather(first int32) []byte {
	n := 0
	for i := first; i >= 0; {
		p := &m.pieces[i]
		n += copy(m.gathered[n:], m.buffers[p.buffer].buf[p.from:p.to])
		i = p.next
	}
	return m.gathered[:n]
}

// finishHeader turns the header of the first segment into that of the whole frame: lengths, flags,
// and the partial checksum that NeedsChecksum requires (the sum of the pseudo-header).
func (f *flow) finishHeader(frame []byte) Header {
	h := Header{
		Flags:         NeedsChecksum,
		HeaderLen:     uint16(f.header),
		SegmentSize:   uint16(f.size),
		ChecksumStart: uint16(f.l4),
	}
	l4 := frame[f.l4:]
	if f.key.isTCP() {
		h.GSO, h.ChecksumOffset = GSOTCPv4, tcpChecksum
		l4[tcpFlags] |= f.flags
	} else {
		h.GSO, h.ChecksumOffset = GSOUDP, udpChecksum
		binary.BigEndian.PutUint16(l4[udpLength:], uint16(len(l4)))
	}
	binary.BigEndian.PutUint16(l4[h.ChecksumOffset:], checksum.Add(f.pseudo, uint16(len(l4))))
	if frame[0]>>4 == 6 {
		if h.GSO == GSOTCPv4 {
			h.GSO = GSOTCPv6
		}
		binary.BigEndian.PutUint16(frame[ipv6Length:], uint16(len(frame)-ipv6HeaderLen))
		return h
	}
	binary.BigEndian.PutUint16(frame[ipv4Length:], uint16(len(frame)))
	binary.BigEndian.PutUint16(frame[ipv4Checksum:], 0)
	binary.BigEndian.PutUint16(frame[ipv4Checksum:], ^checksum.Sum(frame[:f.l4], 0))
	return h
}

func (m *Merger) flushAll() {
	for i := range m.flows {
		m.flushFlow(&m.flows[i])
	}
}
