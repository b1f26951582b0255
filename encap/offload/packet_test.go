package offload

import "encoding/binary"

// packet is a TCP or UDP packet as used by the reference implementations. It is encoded and decoded
// field by field, with checksums computed from their definition.
type packet struct {
	v6       bool
	tos, ttl uint8
	id       uint16
	fragment uint16 // IPv4 flags and fragment offset
	label    uint32 // IPv6 flow label
	addrs    string // source and destination
	options  string // IPv4
	ext      string // IPv6 extension headers; the first byte of each is the next header
	next     uint8  // IPv6: type of the first extension header
	proto    uint8
	ports    uint32
	tcp      tcpFields
	zeroSum  bool // UDP without a checksum
	payload  string
}

type tcpFields struct {
	seq, ack       uint32
	reserved       uint8 // lower 4 bits of the byte with the data offset
	flags          uint8
	window, urgent uint16
	options        string
}

// slowSum returns the Internet checksum of b, not complemented, folding the carry after every word.
func slowSum(b []byte) uint16 {
	s := uint32(0)
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w += uint32(b[i+1])
		}
		s += w
		if s > 0xffff {
			s -= 0xffff
		}
	}
	return uint16(s)
}

func (p *packet) pseudo(length int) []byte {
	b := []byte(p.addrs)
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	return append(b, 0, 0, 0, p.proto)
}

func (p *packet) encodeUpper() []byte {
	b := binary.BigEndian.AppendUint32(nil, p.ports)
	if p.proto == 17 {
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(p.payload)))
		b = append(b, 0, 0)
		b = append(b, p.payload...)
		if !p.zeroSum {
			check := ^slowSum(append(p.pseudo(len(b)), b...))
			if check == 0 {
				check = 0xffff
			}
			binary.BigEndian.PutUint16(b[6:], check)
		}
		return b
	}
	b = binary.BigEndian.AppendUint32(b, p.tcp.seq)
	b = binary.BigEndian.AppendUint32(b, p.tcp.ack)
	b = append(b, uint8(20+len(p.tcp.options))/4<<4|p.tcp.reserved, p.tcp.flags)
	b = binary.BigEndian.AppendUint16(b, p.tcp.window)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, p.tcp.urgent)
	b = append(b, p.tcp.options...)
	b = append(b, p.payload...)
	binary.BigEndian.PutUint16(b[16:], ^slowSum(append(p.pseudo(len(b)), b...)))
	return b
}

// encode returns the packet's bytes with correct lengths and checksums.
func (p *packet) encode() []byte {
	upper := p.encodeUpper()
	if p.v6 {
		b := binary.BigEndian.AppendUint32(nil, 6<<28|uint32(p.tos)<<20|p.label)
		b = binary.BigEndian.AppendUint16(b, uint16(len(p.ext)+len(upper)))
		next := p.proto
		if p.ext != "" {
			next = p.next
		}
		b = append(b, next, p.ttl)
		b = append(b, p.addrs...)
		b = append(b, p.ext...)
		return append(b, upper...)
	}
	header := 20 + len(p.options)
	b := []byte{uint8(4<<4 | header/4), p.tos}
	b = binary.BigEndian.AppendUint16(b, uint16(header+len(upper)))
	b = binary.BigEndian.AppendUint16(b, p.id)
	b = binary.BigEndian.AppendUint16(b, p.fragment)
	b = append(b, p.ttl, p.proto, 0, 0)
	b = append(b, p.addrs...)
	b = append(b, p.options...)
	binary.BigEndian.PutUint16(b[10:], ^slowSum(b))
	return append(b, upper...)
}

// upperAt returns the offset of the TCP or UDP header.
func (p *packet) upperAt() int {
	if p.v6 {
		return 40 + len(p.ext)
	}
	return 20 + len(p.options)
}

// decode decodes a TCP or UDP packet. ok is false for other packets and for wrong lengths or
// checksums.
func decode(b []byte) (p packet, ok bool) {
	if len(b) < 20 {
		return p, false
	}
	var upper []byte
	switch b[0] >> 4 {
	case 4:
		header := int(b[0]&15) * 4
		if header < 20 || len(b) < header || int(binary.BigEndian.Uint16(b[2:])) != len(b) ||
			slowSum(b[:header]) != 0xffff {
			return p, false
		}
		p.tos, p.id, p.fragment = b[1], binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
		p.ttl, p.proto = b[8], b[9]
		p.addrs, p.options = string(b[12:20]), string(b[20:header])
		upper = b[header:]
	case 6:
		if len(b) < 40 || int(binary.BigEndian.Uint16(b[4:])) != len(b)-40 {
			return p, false
		}
		p.v6 = true
		word := binary.BigEndian.Uint32(b)
		p.tos, p.label, p.ttl = uint8(word>>20), word&0xfffff, b[7]
		p.addrs = string(b[8:40])
		p.next, p.proto = b[6], b[6]
		at := 40
		for p.proto == 0 || p.proto == 43 || p.proto == 60 {
			if at+8 > len(b) || at+8+int(b[at+1])*8 > len(b) {
				return p, false
			}
			p.proto, at = b[at], at+8+int(b[at+1])*8
		}
		p.ext = string(b[40:at])
		upper = b[at:]
	default:
		return p, false
	}
	return p, p.decodeUpper(upper)
}

func (p *packet) decodeUpper(b []byte) bool {
	if p.fragment&0x3fff != 0 || len(b) < 8 {
		return false
	}
	p.ports = binary.BigEndian.Uint32(b)
	valid := slowSum(append(p.pseudo(len(b)), b...)) == 0xffff
	switch p.proto {
	case 17:
		p.zeroSum = binary.BigEndian.Uint16(b[6:]) == 0
		p.payload = string(b[8:])
		return int(binary.BigEndian.Uint16(b[4:])) == len(b) && (valid || p.zeroSum)
	case 6:
		if len(b) < 20 || b[12]>>4 < 5 || int(b[12]>>4)*4 > len(b) {
			return false
		}
		header := int(b[12]>>4) * 4
		p.tcp = tcpFields{
			seq: binary.BigEndian.Uint32(b[4:]), ack: binary.BigEndian.Uint32(b[8:]),
			reserved: b[12] & 15, flags: b[13],
			window: binary.BigEndian.Uint16(b[14:]), urgent: binary.BigEndian.Uint16(b[18:]),
			options: string(b[20:header]),
		}
		p.payload = string(b[header:])
		return valid
	}
	return false
}

// gsoFrame returns the packet as a GSO frame, as read from the kernel: with a partial checksum and
// the virtio header.
func (p *packet) gsoFrame(size int) (Header, []byte) {
	b := p.encode()
	at := p.upperAt()
	h := Header{
		Flags: NeedsChecksum, SegmentSize: uint16(size), ChecksumStart: uint16(at),
		HeaderLen: uint16(len(b) - len(p.payload)),
	}
	switch {
	case p.proto == 17:
		h.GSO, h.ChecksumOffset = GSOUDP, 6
	case p.v6:
		h.GSO, h.ChecksumOffset = GSOTCPv6, 16
	default:
		h.GSO, h.ChecksumOffset = GSOTCPv4, 16
	}
	binary.BigEndian.PutUint16(b[at+int(h.ChecksumOffset):], slowSum(p.pseudo(len(b)-at)))
	return h, b
}

// slowSplit is the reference implementation of Splitter for frames returned by gsoFrame.
func (p *packet) slowSplit(size int, ecn bool) [][]byte {
	var out [][]byte
	for done := 0; done < len(p.payload); done += size {
		q := *p
		q.payload = p.payload[done:min(done+size, len(p.payload))]
		q.id += uint16(done / size)
		q.tcp.seq += uint32(done)
		if done+size < len(p.payload) {
			q.tcp.flags &^= 0x09
		}
		if done > 0 && ecn {
			q.tcp.flags &^= 0x80
		}
		out = append(out, q.encode())
	}
	return out
}
