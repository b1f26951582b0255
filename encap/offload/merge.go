package offload

import (
	"cmp"
	"encoding/binary"

	"weft/encap/checksum"
)

// Limits says what a Merger may build and how much it may hold between two calls of Flush.
type Limits struct {
	TCP bool // the TUN takes GSOTCPv4 and GSOTCPv6
	UDP bool // the TUN takes GSOUDP (Linux 6.2)

	// UDPSegments is the most segments in a UDP frame: 64, or 128 where the kernel takes that many (from Linux
	// 6.9; UDP_MAX_SEGMENTS in include/linux/udp.h). Zero means 64.
	UDPSegments int
	Flows       int // most flows to hold open, up to 32767; zero means 256
	Buffers     int // most trains between two calls of Flush; zero means 64
	Pieces      int // most runs of payload that lie apart, over all flows; zero means 2048
}

// maxFlows is what Merger.table can index.
const maxFlows = 1<<15 - 1

func (l Limits) withDefaults() Limits {
	l.UDPSegments = cmp.Or(l.UDPSegments, 64)
	l.Flows = min(cmp.Or(l.Flows, 256), maxFlows)
	l.Buffers = cmp.Or(l.Buffers, 64)
	l.Pieces = cmp.Or(l.Pieces, 2048)
	return l
}

// Merger joins segments of TCP and UDP flows into large frames, across the trains they came in. A caller feeds it
// every segment of a batch in the order of arrival:
//
//	for each buffer { m.NextBuffer(buf); for each segment in it { m.Add(offset, length) } }
//	m.Flush()
//
// The order within a flow (5-tuple, per direction) is kept; flows may overtake each other. A segment that cannot be
// joined comes out alone and unchanged, byte for byte, after everything of its flow that came before it; where the
// flow cannot be told, after everything that could be of its flow. A frame is written as soon as nothing can follow in
// it, the rest by Flush. Checksums of all segments are verified before they are joined, others are left to the receiver.
//
// Buffers are borrowed from NextBuffer to the end of Flush, and are written to: in the fast case a payload moves towards
// the front of its buffer, over the header between it and the payload before. A frame whose segments lie apart, with
// other flows between, is put together in memory of the Merger. That is all allocated by NewMerger and bounded by
// Limits: 64 KiB, 16 bytes a piece, and about 100 bytes a flow. A Merger belongs to one goroutine.
type Merger struct {
	limits Limits
	emit   func(h Header, frame []byte)

	trains []train
	flows  []flow          // one for each flow seen since the last drain; never reordered
	pieces []piece         // payload runs of all flows, handed out in order
	table  []int16         // hash of the flow's key -> index in flows, by linear probing; -1: free
	recent int             // the flow of the last segment, most likely that of the next
	joined []byte          // where a frame whose pieces lie apart is put together
	saved  [maxHeader]byte // a header that a move may overwrite
}

// train is a receive buffer. Everything from its start to top may still be needed; what lies behind top and
// before the segment being added is free to be written.
type train struct {
	buf []byte
	top int
}

// flow is a 5-tuple and the frame that is open for it, if segments > 0. Its header lies at the start of the first piece.
type flow struct {
	key      flowKey
	slot     int32 // in Merger.table
	segments int32
	first    int32 // pieces of the open frame, the first and the last
	last     int32
	header   int32 // bytes of all headers
	l4       int32 // offset of the TCP or UDP header
	size     int32 // payload bytes a segment
	payload  int32 // payload bytes so far
	seq      uint32
	pseudo   uint16 // sum of addresses and protocol
	id       uint16 // IPv4 ID of the first segment
	fixedID  bool
	flags    uint8 // PSH and FIN of the last segment
}

// piece is a run of payload in a train (the first of a frame: headers and payload).
type piece struct {
	train    int32
	from, to int32
	next     int32 // in Merger.pieces; -1: the last
}

// NewMerger returns a Merger that gives each frame to emit, which borrows it until it returns and must not call
// the Merger.
func NewMerger(l Limits, emit func(h Header, frame []byte)) *Merger {
	l = l.withDefaults()
	slots := 1
	for slots < 2*l.Flows {
		slots *= 2
	}
	m := &Merger{
		limits: l,
		emit:   emit,
		trains: make([]train, 0, l.Buffers),
		flows:  make([]flow, 0, l.Flows),
		pieces: make([]piece, 0, l.Pieces),
		table:  make([]int16, slots),
		joined: make([]byte, maxPacket),
	}
	for i := range m.table {
		m.table[i] = -1
	}
	return m
}

// NextBuffer begins a receive buffer: the segments that are added next lie in it. All of buf up to its length, not
// only what was received, is the Merger's until Flush returns. The more room there is behind what was received,
// the more frames go on growing where they are when their next segments come in another buffer; 64 KiB is enough
// for every frame that ends its train.
func (m *Merger) NextBuffer(buf []byte) {
	if len(m.trains) == cap(m.trains) {
		m.Flush()
	}
	m.trains = append(m.trains, train{buf: buf})
}

// Add takes the segment of n bytes at offset from of the current train: one inner packet. Segments of a train
// are added in the order they lie in; bytes that are left out are dropped packets, and free.
func (m *Merger) Add(from, n int) {
	t := &m.trains[len(m.trains)-1]
	if from < t.top {
		panic("offload: Merger.Add: segments of a train must be added in order")
	}
	s := segment{bytes: t.buf[from : from+n], from: from}
	switch m.parse(&s) {
	case joinable:
	case otherOfFlow:
		if f := m.find(&s.key); f != nil {
			m.seal(f)
		}
		m.emit(Header{}, s.bytes)
		return
	case otherOfPair:
		m.sealPair(&s.key)
		m.emit(Header{}, s.bytes)
		return
	default:
		m.sealAll()
		m.emit(Header{}, s.bytes)
		return
	}

	f := m.findOrAdd(&s.key)
	if f.segments > 0 {
		if s.follows(m, f) && m.join(f, &s) {
			if s.ends || s.payload() < int(f.size) {
				m.seal(f)
			}
			return
		}
		m.seal(f)
	}
	if s.ends {
		m.emit(Header{}, s.bytes) // nothing may follow it
		return
	}
	m.open(f, &s)
}

// Flush writes every open frame, in the order their flows were first seen, and gives all buffers back.
func (m *Merger) Flush() {
	m.drain()
	m.trains = m.trains[:0]
}

// drain writes every open frame and forgets the flows.
func (m *Merger) drain() {
	m.sealAll()
	for i := range m.flows {
		m.table[m.flows[i].slot] = -1
	}
	m.flows = m.flows[:0]
	m.pieces = m.pieces[:0]
	m.recent = 0
}

// open makes s the first segment of f's frame, where it lies. Its checksum is looked at only when a second
// segment follows: most packets that come alone never need it.
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

// addPiece notes a run of bytes of the current train that is needed until its frame is written.
func (m *Merger) addPiece(from, to int) int32 {
	current := len(m.trains) - 1
	m.pieces = append(m.pieces, piece{train: int32(current), from: int32(from), to: int32(to), next: -1})
	m.trains[current].top = to
	return int32(len(m.pieces) - 1)
}

// join adds the payload of s to f's frame. It reports false, with nothing changed, if a checksum is wrong.
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
	if !m.move(f, s, sum) {
		return false
	}
	f.segments++
	f.payload += int32(s.payload())
	f.flags = s.flags & (tcpPSH | tcpFIN)
	return true
}

// firstValid verifies the checksums of the frame's first segment.
func (m *Merger) firstValid(f *flow) bool {
	p := &m.pieces[f.first]
	b := m.trains[p.train].buf[p.from:p.to]
	if b[0]>>4 == 4 && !validIPv4(b) {
		return false
	}
	return checksum.Sum(b[f.l4:], checksum.Add(f.pseudo, uint16(len(b)-int(f.l4)))) == 0xffff
}

// validIPv4 verifies the checksum of a header without options. The order of bytes in a word does not matter to whether
// the sum is all ones.
func validIPv4(b []byte) bool {
	b = b[:ipv4HeaderLen]
	v, w := binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint64(b[8:])
	return checksum.Fold(v>>32+v&0xffffffff+w>>32+w&0xffffffff+uint64(binary.NativeEndian.Uint32(b[16:]))) == 0xffff
}

// move verifies the payload of s, sum being that of all before it, and puts it behind the last piece of f's
// frame: in place where the bytes between are free, else by noting it as a new piece.
func (m *Merger) move(f *flow, s *segment, sum uint16) bool {
	p := &m.pieces[f.last]
	t := &m.trains[p.train]
	payload := s.bytes[s.header:]
	here := int(p.train) == len(m.trains)-1
	end := int(p.to) + len(payload)
	if t.top != int(p.to) || !here && end > len(t.buf) {
		if len(m.pieces) == cap(m.pieces) || checksum.Sum(payload, sum) != 0xffff {
			return false
		}
		p.next = m.addPiece(s.from+s.header, s.from+len(s.bytes))
		f.last = p.next
		return true
	}
	dst := t.buf[p.to:end]
	copy(m.saved[:], s.bytes[:s.header])
	if checksum.Copy(dst, payload, sum) != 0xffff {
		if here {
			copy(payload, dst)
			copy(s.bytes, m.saved[:s.header])
		}
		return false
	}
	p.to = int32(end)
	t.top = end
	return true
}

// seal writes f's frame, if one is open: a lone segment as it came, more under one header.
func (m *Merger) seal(f *flow) {
	if f.segments == 0 {
		return
	}
	p := &m.pieces[f.first]
	frame := m.trains[p.train].buf[p.from:p.to]
	if f.segments == 1 {
		f.segments = 0
		m.emit(Header{}, frame)
		return
	}
	if p.next >= 0 {
		frame = m.gather(f.first)
	}
	h := f.finish(frame)
	f.segments = 0
	m.emit(h, frame)
}

// gather copies the pieces from the one given on behind each other.
func (m *Merger) gather(first int32) []byte {
	n := 0
	for i := first; i >= 0; {
		p := &m.pieces[i]
		n += copy(m.joined[n:], m.trains[p.train].buf[p.from:p.to])
		i = p.next
	}
	return m.joined[:n]
}

// finish turns the first segment's header into that of the whole frame: lengths, flags, and in the checksum's
// place the sum of the pseudo-header, which is what NeedsChecksum promises.
func (f *flow) finish(frame []byte) Header {
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

func (m *Merger) sealAll() {
	for i := range m.flows {
		m.seal(&m.flows[i])
	}
}
