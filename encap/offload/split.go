package offload

import (
	"encoding/binary"

	"weft/encap/checksum"
)

// Splitter cuts one frame into segments and writes each to memory of the caller. If that is full,
// the caller can keep the Splitter and continue later. The frame is borrowed until the last Next.
// It is not modified, and the caller must not modify it.
//
//	s, err := offload.Split(h, frame)
//	for s.NextLen() > 0 {
//		n := s.Next(slot[used:]) // 0: does not fit, s is unchanged
//	}
type Splitter struct {
	frame    []byte
	l4       int // offset of the TCP or UDP header
	header   int // bytes of all headers, which every segment repeats
	size     int // payload bytes per segment
	done     int // payload bytes already cut off
	checksum int // offset of the upper-layer checksum; 0: copy the frame unchanged
	kind     splitKind
	firstCWR bool   // CWR only on the first segment
	id       uint16 // IPv4 ID of the next segment
	seq      uint32 // TCP sequence number of the next segment
	ipSum    uint16 // sum of the IPv4 header without length, ID and checksum
	l4Sum    uint16 // sum of the pseudo-header and the constant words of the upper-layer header
}

type splitKind uint8

const (
	single splitKind = iota // no GSO: the frame is the only segment
	tcp
	udp
)

// Split returns a Splitter for frame, which h describes. A frame without GSO yields one segment,
// with its checksum completed if h requires it. The error is one of the Err values of this package.
//
// IPv4 options and IPv6 extension headers are repeated in every segment. The checksum is based on
// the partial sum in the checksum field, which takes the final destination of a routing header into
// account.
func Split(h Header, frame []byte) (Splitter, error) {
	if h.GSO == GSONone {
		return splitNone(h, frame)
	}
	s := Splitter{frame: frame, l4: int(h.ChecksumStart), size: int(h.SegmentSize)}
	switch h.GSO &^ GSOECN {
	case GSOTCPv4, GSOTCPv6:
		s.kind = tcp
	case GSOUDP:
		s.kind = udp
	}
	if s.kind == single || s.kind == udp && h.GSO != GSOUDP {
		return Splitter{}, ErrGSOType
	}
	if h.Flags&NeedsChecksum == 0 {
		return Splitter{}, ErrNoChecksum // virtio 1.2 section 5.1.6.2: GSO requires NEEDS_CSUM
	}
	if s.size == 0 {
		return Splitter{}, ErrSegmentSize
	}
	if err := s.checkNetwork(h.GSO &^ GSOECN); err != nil {
		return Splitter{}, err
	}
	s.firstCWR = h.GSO&GSOECN != 0
	return s, s.prepare(int(h.ChecksumOffset))
}

func splitNone(h Header, frame []byte) (Splitter, error) {
	if len(frame) == 0 {
		return Splitter{}, ErrShortFrame
	}
	s := Splitter{frame: frame, size: len(frame)}
	if h.Flags&NeedsChecksum != 0 {
		s.l4 = int(h.ChecksumStart)
		s.checksum = s.l4 + int(h.ChecksumOffset)
		if s.checksum == 0 || s.checksum+2 > len(frame) {
			return Splitter{}, ErrChecksumOffset
		}
	}
	return s, nil
}

// checkNetwork validates the IP header of a GSO frame: the version, the length, and that the upper
// layer begins at s.l4.
func (s *Splitter) checkNetwork(gso GSOType) error {
	b := s.frame
	if len(b) < ipv4HeaderLen {
		return ErrShortFrame
	}
	switch b[0] >> 4 {
	case 4:
		if gso == GSOTCPv6 {
			return ErrIPVersion
		}
		if int(binary.BigEndian.Uint16(b[ipv4Length:])) != len(b) {
			return ErrLength
		}
		if binary.BigEndian.Uint16(b[ipv4Fragment:])&ipv4FragmentMask != 0 {
			return ErrFragment
		}
		header := int(b[0]&0x0f) * 4
		if header < ipv4HeaderLen || header != s.l4 || b[ipv4Proto] != s.proto() {
			return ErrChecksumOffset
		}
	case 6:
		if gso == GSOTCPv4 {
			return ErrIPVersion
		}
		if len(b) < ipv6HeaderLen {
			return ErrShortFrame
		}
		if int(binary.BigEndian.Uint16(b[ipv6Length:]))+ipv6HeaderLen != len(b) {
			return ErrLength
		}
		return s.checkExtensions(b[ipv6Next], ipv6HeaderLen)
	default:
		return ErrIPVersion
	}
	return nil
}

func (s *Splitter) proto() uint8 {
	if s.kind == tcp {
		return protoTCP
	}
	return protoUDP
}

// checkExtensions follows the IPv6 extension headers, of which the first has type next and offset
// at, to the upper layer.
func (s *Splitter) checkExtensions(next uint8, at int) error {
	for next != s.proto() {
		if next != extHopByHop && next != extRouting && next != extDestination {
			return ErrExtension
		}
		if at+8 > len(s.frame) {
			return ErrShortFrame
		}
		next = s.frame[at]
		at += 8 + int(s.frame[at+1])*8 // RFC 8200 section 4.3: units of 8, not including the first
	}
	if at != s.l4 {
		return ErrChecksumOffset
	}
	return nil
}

// prepare parses the upper-layer header and sums the fields that are equal in all segments.
func (s *Splitter) prepare(checksumOffset int) error {
	l4, total := s.frame[min(s.l4, len(s.frame)):], len(s.frame)-s.l4
	var fixed uint64 // sum of the constant words of the upper-layer header, without the checksum
	switch s.kind {
	case tcp:
		if total < tcpHeaderLen {
			return ErrShortFrame
		}
		header := int(l4[tcpOffset]>>4) * 4
		if header < tcpHeaderLen || header > total {
			return ErrShortFrame
		}
		s.header, s.checksum = s.l4+header, s.l4+tcpChecksum
		s.seq = binary.BigEndian.Uint32(l4[tcpSeq:])
		fixed = uint64(checksum.Sum(l4[:tcpSeq], 0)) +
			uint64(checksum.Sum(l4[tcpAck:tcpOffset], 0)) +
			uint64(binary.BigEndian.Uint16(l4[tcpWindow:])) +
			uint64(checksum.Sum(l4[tcpUrgent:header], 0))
	case udp:
		if total < udpHeaderLen {
			return ErrShortFrame
		}
		s.header, s.checksum = s.l4+udpHeaderLen, s.l4+udpChecksum
		fixed = uint64(checksum.Sum(l4[:udpLength], 0))
	}
	if s.checksum != s.l4+checksumOffset {
		return ErrChecksumOffset
	}
	if s.header == len(s.frame) {
		return ErrShortFrame
	}
	// The kernel's sum of the pseudo-header includes the length of the whole frame: subtract it.
	seed := binary.BigEndian.Uint16(s.frame[s.checksum:])
	s.l4Sum = checksum.Fold(fixed + uint64(seed) + uint64(^uint16(total)))
	if s.frame[0]>>4 == 4 {
		s.id = binary.BigEndian.Uint16(s.frame[ipv4ID:])
		s.ipSum = checksum.Add(checksum.Sum(s.frame[:ipv4Length], 0),
			checksum.Sum(s.frame[ipv4Fragment:ipv4Checksum], 0))
		s.ipSum = checksum.Sum(s.frame[ipv4Addrs:s.l4], s.ipSum)
	}
	return nil
}

// MaxLen returns the length in bytes of the first segment. No other segment is longer, and only the
// last can be shorter.
func (s *Splitter) MaxLen() int {
	return s.header + min(s.size, len(s.frame)-s.header)
}

// NextLen returns the length in bytes of the segment that Next will write, or 0 after the last.
func (s *Splitter) NextLen() int {
	rest := len(s.frame) - s.header - s.done
	if rest <= 0 {
		return 0
	}
	return s.header + min(s.size, rest)
}

// Next writes the next segment to the start of dst and returns its length. It returns 0 without
// changes if no segment is left or dst is shorter than NextLen.
func (s *Splitter) Next(dst []byte) int {
	n := s.NextLen()
	if n == 0 || n > len(dst) {
		return 0
	}
	dst = dst[:n]
	if s.kind == single {
		s.done = n
		s.copySingle(dst)
		return n
	}
	payload := s.frame[s.header+s.done:][:n-s.header]
	copy(dst, s.frame[:s.header])
	s.putNetwork(dst)
	sum := uint64(s.l4Sum) + uint64(n-s.l4)
	if s.kind == tcp {
		sum += s.putTCP(dst, len(payload))
	} else {
		binary.BigEndian.PutUint16(dst[s.l4+udpLength:], uint16(n-s.l4))
		sum += uint64(n - s.l4)
	}
	check := ^checksum.Copy(dst[s.header:], payload, checksum.Fold(sum))
	if check == 0 && s.kind == udp {
		check = 0xffff // RFC 768: zero means "no checksum"
	}
	binary.BigEndian.PutUint16(dst[s.checksum:], check)
	s.done += len(payload)
	return n
}

func (s *Splitter) copySingle(dst []byte) {
	if s.checksum == 0 {
		copy(dst, s.frame)
		return
	}
	copy(dst, s.frame[:s.l4])
	putChecksum(dst[s.checksum:], checksum.Copy(dst[s.l4:], s.frame[s.l4:], 0))
}

// putChecksum writes the checksum of a frame without GSO. Like the kernel, it replaces zero by
// 0xffff in all protocols (net/core/dev.c, skb_checksum_help): zero means "no checksum" in UDP,
// and elsewhere the two values are equivalent.
func putChecksum(b []byte, sum uint16) {
	check := ^sum
	if check == 0 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(b, check)
}

// putNetwork updates the IP header of the segment dst: the length and, in IPv4, the ID, which
// counts up, and the checksum.
func (s *Splitter) putNetwork(dst []byte) {
	if dst[0]>>4 == 6 {
		binary.BigEndian.PutUint16(dst[ipv6Length:], uint16(len(dst)-ipv6HeaderLen))
		return
	}
	binary.BigEndian.PutUint16(dst[ipv4Length:], uint16(len(dst)))
	binary.BigEndian.PutUint16(dst[ipv4ID:], s.id)
	sum := checksum.Fold(uint64(s.ipSum) + uint64(len(dst)) + uint64(s.id))
	binary.BigEndian.PutUint16(dst[ipv4Checksum:], ^sum)
	s.id++
}

// putTCP updates the sequence number and the flags of the segment dst with n payload bytes, and
// returns their sum.
func (s *Splitter) putTCP(dst []byte, n int) uint64 {
	// Read from the frame rather than from dst: loading a word that was just written in part stalls
	// the CPU.
	flags := binary.BigEndian.Uint16(s.frame[s.l4+tcpOffset:]) // includes the data offset
	if s.header+s.done+n < len(s.frame) {
		flags &^= tcpFIN | tcpPSH
	}
	if s.done > 0 && s.firstCWR {
		flags &^= tcpCWR
	}
	b, seq := dst[s.l4:], s.seq
	binary.BigEndian.PutUint32(b[tcpSeq:], seq)
	binary.BigEndian.PutUint16(b[tcpOffset:], flags)
	s.seq += uint32(n)
	return uint64(seq>>16) + uint64(seq&0xffff) + uint64(flags)
}
