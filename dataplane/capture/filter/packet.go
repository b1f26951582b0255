package filter

import "encoding/binary"

// IANA protocol numbers.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132
)

const (
	ipv6HeaderLen = 40
	extFragment   = 44 // IPv6 fragment header
)

// packet is a packet being matched.
type packet struct {
	bytes    []byte
	outbound bool
	short    bool // a comparison wanted bytes that the packet does not have
	version  uint8
	proto    uint8 // IPv4 protocol or IPv6 next header
	fragment bool  // IPv4 fragment other than the first
	upper    int   // offset of the upper layer
}

func newPacket(b []byte, outbound bool) packet {
	p := packet{bytes: b, outbound: outbound}
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		p.version, p.proto, p.upper = 4, b[9], int(b[0]&0x0f)*4
		p.fragment = binary.BigEndian.Uint16(b[6:])&0x1fff != 0
	case len(b) >= ipv6HeaderLen && b[0]>>4 == 6:
		p.version, p.proto, p.upper = 6, b[6], ipv6HeaderLen
	}
	return p
}

// isProto reports whether the packet carries an upper-layer protocol. In IPv6 it looks behind a
// fragment header, but no other extension header, as libpcap does.
func (p *packet) isProto(proto uint8) bool {
	if p.version == 6 && p.proto == extFragment && len(p.bytes) > ipv6HeaderLen {
		return p.bytes[ipv6HeaderLen] == proto
	}
	return p.version != 0 && p.proto == proto
}

// hasPorts reports whether the packet has the ports of a protocol; 0 means any that has ports.
func (p *packet) hasPorts(proto uint8) bool {
	if p.version == 0 || p.fragment || len(p.bytes) < p.upper+4 {
		return false
	}
	if proto != 0 {
		return p.proto == proto
	}
	return p.proto == protoTCP || p.proto == protoUDP || p.proto == protoSCTP
}

// port returns the source or destination port of a packet that has ports.
func (p *packet) port(e end) uint16 {
	if e == endSource {
		return binary.BigEndian.Uint16(p.bytes[p.upper:])
	}
	return binary.BigEndian.Uint16(p.bytes[p.upper+2:])
}

// addr returns the source or destination address: 4 or 16 bytes, nil if the packet is not IP.
func (p *packet) addr(e end) []byte {
	switch {
	case p.version == 4 && e == endSource:
		return p.bytes[12:16]
	case p.version == 4:
		return p.bytes[16:20]
	case p.version == 6 && e == endSource:
		return p.bytes[8:24]
	case p.version == 6:
		return p.bytes[24:40]
	}
	return nil
}

// load returns size bytes at an offset as a number. Beyond the end of the packet it sets p.short.
func (p *packet) load(offset uint64, size int) uint32 {
	if offset+uint64(size) > uint64(len(p.bytes)) {
		p.short = true
		return 0
	}
	b := p.bytes[offset:]
	switch size {
	case 1:
		return uint32(b[0])
	case 2:
		return uint32(binary.BigEndian.Uint16(b))
	}
	return binary.BigEndian.Uint32(b)
}

// end selects an end of a packet.
type end uint8

const (
	endSource end = iota
	endDestination
)
