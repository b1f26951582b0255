package dataplane

import (
	"encoding/binary"
	"net/netip"

	"weft/dataplane/tun"
	"weft/encap/checksum"
	"weft/encap/offload"
)

const dontFragment = 0x4000

// ip4 builds an IPv4 packet.
func ip4(src, dst string, proto uint8, flags uint16, payload []byte) []byte {
	b := make([]byte, 20, 20+len(payload))
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(b[6:], flags)
	b[8], b[9] = 63, proto
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	binary.BigEndian.PutUint16(b[10:], ^checksum.Sum(b, 0))
	return append(b, payload...)
}

// ip6 builds an IPv6 packet.
func ip6(src, dst string, next uint8, payload []byte) []byte {
	b := make([]byte, 40, 40+len(payload))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = next, 63
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
	return append(b, payload...)
}

// udp4 builds a UDP datagram over IPv4 with n bytes of payload that depend on seed.
func udp4(src, dst string, flags uint16, n int, seed byte) []byte {
	u := make([]byte, 8+n)
	binary.BigEndian.PutUint16(u, 4000)
	binary.BigEndian.PutUint16(u[2:], 5000)
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	for i := range u[8:] {
		u[8+i] = seed + byte(i)*7
	}
	b := ip4(src, dst, 17, flags, u)
	binary.BigEndian.PutUint16(b[26:], ^checksum.Sum(b[20:], checksum.Pseudo(b[12:20], 17, len(u))))
	return b
}

// tcp4 builds a TCP segment over IPv4: ACK, no options.
func tcp4(src, dst string, seq uint32, n int) []byte {
	s := make([]byte, 20+n)
	binary.BigEndian.PutUint16(s, 4000)
	binary.BigEndian.PutUint16(s[2:], 5001)
	binary.BigEndian.PutUint32(s[4:], seq)
	s[12], s[13], s[14] = 5<<4, 0x10, 0x20
	for i := range s[20:] {
		s[20+i] = byte(seq) + byte(i)*3
	}
	b := ip4(src, dst, 6, dontFragment, s)
	binary.BigEndian.PutUint16(b[36:], ^checksum.Sum(b[20:], checksum.Pseudo(b[12:20], 6, len(s))))
	return b
}

// gsoTCP builds a GSO frame with n bytes of one TCP flow, as read from a TUN.
func gsoTCP(src, dst string, n, segment int) tun.Frame {
	b := tcp4(src, dst, 1000, n)
	binary.BigEndian.PutUint16(b[36:], checksum.Pseudo(b[12:20], 6, len(b)-20))
	return tun.Frame{Packet: b, Header: offload.Header{
		Flags: offload.NeedsChecksum, GSO: offload.GSOTCPv4, HeaderLen: 40, SegmentSize: uint16(segment),
		ChecksumStart: 20, ChecksumOffset: 16,
	}}
}

// setID sets the identification of an IPv4 packet.
func setID(pkt []byte, id uint16) {
	binary.BigEndian.PutUint16(pkt[4:], id)
	pkt[10], pkt[11] = 0, 0
	binary.BigEndian.PutUint16(pkt[10:], ^checksum.Sum(pkt[:20], 0))
}

// packetBetween returns some packet of the family of src and dst.
func packetBetween(src, dst string) []byte {
	if netip.MustParseAddr(src).Is4() {
		return udp4(src, dst, 0, 10, 0)
	}
	return ip6(src, dst, 59, make([]byte, 10))
}
