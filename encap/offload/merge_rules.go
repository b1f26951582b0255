package offload

import (
	"bytes"
	"encoding/binary"
)

// maxHeader is the largest header of a mergeable segment: IPv6 and TCP with the most options.
const maxHeader = ipv6HeaderLen + 60

// segment is a packet passed to Merger.Add and its parsed headers.
type segment struct {
	bytes     []byte
	from      int // offset in the current buffer
	key       flowKey
	l4        int // offset of the TCP or UDP header
	header    int // bytes of all headers
	seq       uint32
	id        uint16 // IPv4 ID
	proto     uint8
	flags     uint8 // TCP flags
	endsFrame bool  // PSH or FIN: nothing may be merged after it
}

func (s *segment) payload() int { return len(s.bytes) - s.header }

// flowKey identifies a flow in one direction: addresses and ports in the byte order of the packet.
type flowKey struct {
	addr  [4]uint64 // IPv4 uses only the first
	ports uint32
	kind  uint32 // IP version and protocol
}

const kindVersion = 8 // shift of the IP version in kind

func (k *flowKey) isTCP() bool { return uint8(k.kind) == protoTCP }

// equal is == written out, to avoid a call to the runtime. Ports come first: they differ most
// often.
func (k *flowKey) equal(o *flowKey) bool {
	return k.ports == o.ports && k.addr[0] == o.addr[0] && k.addr[1] == o.addr[1] &&
		k.addr[2] == o.addr[2] && k.addr[3] == o.addr[3] && k.kind == o.kind
}

// addrs returns the source and destination address bytes of b, a packet of this flow.
func (k *flowKey) addrs(b []byte) []byte {
	if k.kind>>kindVersion == 4 {
		return b[ipv4Addrs:ipv4HeaderLen]
	}
	return b[ipv6Addrs:ipv6HeaderLen]
}

// hash returns a hash for Merger.table. The factors are odd and have no structure (digits of the
// golden ratio and of pi).
func (k *flowKey) hash() uint32 {
	h := k.addr[0] ^ uint64(k.ports)<<20 ^ uint64(k.kind)
	h = (h ^ k.addr[1]*0x9e3779b97f4a7c15) * 0x243f6a8885a308d3
	h ^= h >> 32
	h = (h ^ k.addr[2] ^ k.addr[3]*0x9e3779b97f4a7c15) * 0x243f6a8885a308d3
	return uint32(h >> 32)
}

// parseResult reports whether a segment is mergeable and, if not, which segments it must not
// overtake.
type parseResult uint8

const (
	unparsed  parseResult = iota // must not overtake any segment
	sameHosts                    // no ports: must not overtake flows of its address pair
	sameFlow                     // must not overtake its flow
	mergeable
)

// parse parses the headers of s. Mergeable are TCP segments with payload and no flags but ACK, PSH,
// FIN and ECE, and UDP datagrams with payload and a checksum. Fragments and packets with IPv4
// options, IPv6 extension headers or trailing bytes are not.
func (m *Merger) parse(s *segment) parseResult {
	b := s.bytes
	if len(b) < ipv4HeaderLen {
		return unparsed
	}
	noOptions := true
	switch b[0] >> 4 {
	case 4:
		s.l4 = int(b[0]&0x0f) * 4
		s.proto = b[ipv4Proto]
		s.id = binary.BigEndian.Uint16(b[ipv4ID:])
		s.key.addr[0] = binary.NativeEndian.Uint64(b[ipv4Addrs:])
		s.key.kind = 4<<kindVersion | uint32(s.proto)
		if s.l4 < ipv4HeaderLen || int(binary.BigEndian.Uint16(b[ipv4Length:])) != len(b) {
			return unparsed
		}
		fragment := binary.BigEndian.Uint16(b[ipv4Fragment:])
		if fragment&ipv4FragmentMask != 0 {
			return sameHosts
		}
		noOptions = s.l4 == ipv4HeaderLen && fragment&ipv4Reserved == 0
	case 6:
		if len(b) < ipv6HeaderLen ||
			int(binary.BigEndian.Uint16(b[ipv6Length:]))+ipv6HeaderLen != len(b) {
			return unparsed
		}
		s.l4 = ipv6HeaderLen
		s.proto = b[ipv6Next]
		for i := range s.key.addr {
			s.key.addr[i] = binary.NativeEndian.Uint64(b[ipv6Addrs+8*i:])
		}
		s.key.kind = 6<<kindVersion | uint32(s.proto)
	default:
		return unparsed
	}
	if s.proto != protoTCP && s.proto != protoUDP || len(b) < s.l4+udpHeaderLen {
		return sameHosts
	}
	s.key.ports = binary.NativeEndian.Uint32(b[s.l4:])
	if !noOptions || len(b) > maxPacket {
		return sameFlow
	}
	if s.proto == protoTCP {
		return m.parseTCP(s, b[s.l4:])
	}
	return m.parseUDP(s, b[s.l4:])
}

func (m *Merger) parseTCP(s *segment, l4 []byte) parseResult {
	if !m.limits.TCP || len(l4) < tcpHeaderLen {
		return sameFlow
	}
	header := int(l4[tcpOffset]>>4) * 4
	s.flags = l4[tcpFlags]
	if header < tcpHeaderLen || header >= len(l4) || s.flags&^(tcpPSH|tcpFIN|tcpECE) != tcpACK {
		return sameFlow
	}
	s.header = s.l4 + header
	s.seq = binary.BigEndian.Uint32(l4[tcpSeq:])
	s.endsFrame = s.flags&(tcpPSH|tcpFIN) != 0
	return mergeable
}

func (m *Merger) parseUDP(s *segment, l4 []byte) parseResult {
	if !m.limits.UDP || len(l4) == udpHeaderLen ||
		int(binary.BigEndian.Uint16(l4[udpLength:])) != len(l4) {
		return sameFlow
	}
	if binary.BigEndian.Uint16(l4[udpChecksum:]) == 0 {
		return sameFlow // RFC 768: no checksum, so it cannot be verified (forbidden in IPv6)
	}
	s.header = s.l4 + udpHeaderLen
	return mergeable
}

// follows reports whether s continues the open frame of f, without verifying checksums: the header
// fields match, s is not longer than the earlier segments, it is next in TCP sequence number and
// IPv4 ID, and there is room. The rules are those of Linux GRO (net/ipv4/tcp_offload.c,
// include/net/gro.h). In addition the TCP window must match, so that splitting the frame yields the
// same segments.
func (s *segment) follows(m *Merger, f *flow) bool {
	n := s.payload()
	if s.header != int(f.header) || n > int(f.size) || int(f.header+f.payload)+n > maxPacket {
		return false
	}
	p := &m.pieces[f.first]
	first := m.buffers[p.buffer].buf[p.from:]
	if s.bytes[0]>>4 == 4 {
		if !s.follows4(first, f) {
			return false
		}
	} else if binary.NativeEndian.Uint32(s.bytes) != binary.NativeEndian.Uint32(first) ||
		s.bytes[7] != first[7] {
		return false // traffic class, flow label or hop limit
	}
	if !f.key.isTCP() {
		return int(f.segments) < m.limits.UDPSegments
	}
	a, b := s.bytes[s.l4:s.header], first[s.l4:s.header]
	return s.seq == f.seq+uint32(f.payload) &&
		binary.NativeEndian.Uint32(a[tcpAck:]) == binary.NativeEndian.Uint32(b[tcpAck:]) &&
		a[tcpOffset] == b[tcpOffset] && (a[tcpFlags]^b[tcpFlags])&^(tcpPSH|tcpFIN) == 0 &&
		binary.NativeEndian.Uint16(a[tcpWindow:]) == binary.NativeEndian.Uint16(b[tcpWindow:]) &&
		bytes.Equal(a[tcpUrgent:], b[tcpUrgent:]) // urgent pointer and options
}

// follows4 compares IPv4 headers: TOS, flags and TTL must be equal, and the ID must count up. With
// DF the ID may also be constant (RFC 6864: it has no meaning then); the second segment decides
// which of the two.
func (s *segment) follows4(first []byte, f *flow) bool {
	b := s.bytes
	if b[1] != first[1] || b[ipv4Fragment] != first[ipv4Fragment] || b[ipv4TTL] != first[ipv4TTL] {
		return false
	}
	if f.segments == 1 {
		f.fixedID = s.id == f.id && b[ipv4Fragment]&(ipv4DF>>8) != 0
	}
	if f.fixedID {
		return s.id == f.id
	}
	return s.id == f.id+uint16(f.segments)
}
