package encap

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// MaxICMP is the size in bytes of the largest packet that AppendUnreachable and AppendTooBig
// append.
const MaxICMP = maxICMP6

const (
	maxICMP4      = 576     // RFC 1812 section 4.3.2.3: quote as much as fits in 576 bytes
	maxICMP6      = MinMTU6 // RFC 4443 section 2.4 (c)
	icmpHeaderLen = 8       // in both versions
	icmpHops      = 64      // RFC 1700's default
	icmpTOS       = 6 << 5  // precedence "internetwork control": RFC 1812 section 4.3.2.5
)

// ICMP types and codes (RFC 792, RFC 4443).
const (
	icmp4Unreachable   = 3
	icmp4NetCode       = 0
	icmp4FragNeeded    = 4 // code of icmp4Unreachable; the MTU field is from RFC 1191
	icmp6Unreachable   = 1
	icmp6NoRouteCode   = 0
	icmp6TooBig        = 2
	icmp6Informational = 128 // lower types are errors
	icmp6Redirect      = 137
)

// AppendUnreachable appends to dst an ICMP "net unreachable" packet (IPv6: "no route to
// destination") in response to the inner packet pkt, whose parsed header is in. It appends nothing
// if the RFCs forbid an error: see errorAllowed. It does not allocate if dst has room for MaxICMP
// bytes.
//
// The source address is the destination of pkt. RFC 1812 section 4.3.2.4 requires an address of the
// router, but the packet enters the host through the TUN, and Linux drops packets received on a
// device with a local source address (net/ipv4/fib_frontend.c, fib_validate_source). The kernel's
// own tunnels do the same (net/ipv4/ip_tunnel_core.c, iptunnel_pmtud_build_icmp). Reverse path
// filters accept the packet, since the route to its source is through the TUN.
func AppendUnreachable(dst []byte, pkt []byte, in *Inner) []byte {
	if in.Version == 6 {
		return appendICMP(dst, pkt, in, icmp6Unreachable, icmp6NoRouteCode, 0)
	}
	return appendICMP(dst, pkt, in, icmp4Unreachable, icmp4NetCode, 0)
}

// AppendTooBig appends an ICMP "fragmentation needed" packet (IPv6: "packet too big") with the MTU
// in bytes, under the same rules as AppendUnreachable. For IPv6 the MTU is at least MinMTU6: Linux
// ignores lower values (net/ipv6/route.c, __ip6_rt_update_pmtu), and a tunnel with a smaller MTU
// must fragment its outer packets (RFC 2473 section 7.1).
func AppendTooBig(dst []byte, pkt []byte, in *Inner, mtu int) []byte {
	if in.Version == 6 {
		return appendICMP(dst, pkt, in, icmp6TooBig, 0, uint32(max(mtu, MinMTU6)))
	}
	return appendICMP(dst, pkt, in, icmp4Unreachable, icmp4FragNeeded, uint32(min(mtu, 0xffff)))
}

func appendICMP(dst, pkt []byte, in *Inner, typ, code uint8, rest uint32) []byte {
	if !errorAllowed(pkt, in) {
		return dst
	}
	from := in.Dst
	header, limit := ipv4HeaderLen, maxICMP4
	if in.Version == 6 {
		header, limit = ipv6HeaderLen, maxICMP6
	}
	quoted := pkt[:min(len(pkt), limit-header-icmpHeaderLen)]
	total := header + icmpHeaderLen + len(quoted)
	start := len(dst)
	dst = slices.Grow(dst, total)[:start+header+icmpHeaderLen]
	clear(dst[start:])
	dst = append(dst, quoted...)
	b := dst[start:]
	msg := b[header:]
	msg[0], msg[1] = typ, code
	binary.BigEndian.PutUint32(msg[4:], rest)
	if in.Version == 4 {
		putIPv4(b, total, from, in.Src)
		binary.BigEndian.PutUint16(msg[2:], ^sum(0, msg))
	} else {
		putIPv6(b, total, from, in.Src)
		binary.BigEndian.PutUint16(msg[2:], ^sum(pseudo6(from, in.Src, len(msg), ProtoICMPv6), msg))
	}
	return dst
}

// errorAllowed reports whether an ICMP error may be sent in response to pkt. RFC 1122 section
// 3.2.2, RFC 1812 section 4.3.2.7 and RFC 4443 section 2.4 (e) forbid errors in response to an ICMP
// error, to a non-first fragment, and to a packet whose source or destination is not a single host.
// A packet too short to hold an ICMP type is treated as an error.
func errorAllowed(pkt []byte, in *Inner) bool {
	if in.NonFirstFragment || !isHost(in.Dst) || !isHost(in.Src) || in.Src == in.Dst {
		return false
	}
	icmp := in.Proto == ProtoICMP && in.Version == 4 || in.Proto == ProtoICMPv6 && in.Version == 6
	if !icmp {
		return true
	}
	if len(pkt) <= in.HeaderLen {
		return false
	}
	typ := pkt[in.HeaderLen]
	if in.Version == 6 {
		return typ >= icmp6Informational && typ != icmp6Redirect
	}
	switch typ {
	case 0, 8, 13, 14, 15, 16, 17, 18: // echo, timestamp, information, mask: requests and replies
		return true
	}
	return false // errors, and unknown types, which RFC 1122 section 3.2.2 discards
}

// isHost reports whether a can be the address of a single host, and so receive an ICMP error.
func isHost(a netip.Addr) bool {
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return false
	}
	if a.Is4() {
		b := a.As4()
		return b[0] != 0 && b[0] < 240 // "this network" and class E with the limited broadcast
	}
	return true
}

func putIPv4(b []byte, total int, src, dst netip.Addr) {
	s, d := src.As4(), dst.As4()
	b[0], b[1] = 0x45, icmpTOS
	binary.BigEndian.PutUint16(b[2:], uint16(total))
	binary.BigEndian.PutUint16(b[6:], flagDF) // atomic: the ID may be 0 (RFC 6864 section 4.1)
	b[8], b[9] = icmpHops, ProtoICMP
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	binary.BigEndian.PutUint16(b[10:], ^sum(0, b[:ipv4HeaderLen]))
}

func putIPv6(b []byte, total int, src, dst netip.Addr) {
	s, d := src.As16(), dst.As16()
	binary.BigEndian.PutUint32(b, 6<<28|icmpTOS<<20)
	binary.BigEndian.PutUint16(b[4:], uint16(total-ipv6HeaderLen))
	b[6], b[7] = ProtoICMPv6, icmpHops
	copy(b[8:], s[:])
	copy(b[24:], d[:])
}

// pseudo6 returns the sum of the IPv6 pseudo-header (RFC 8200 section 8.1).
func pseudo6(src, dst netip.Addr, length int, proto uint8) uint16 {
	s, d := src.As16(), dst.As16()
	var tail [8]byte
	binary.BigEndian.PutUint32(tail[:], uint32(length))
	tail[7] = proto
	return sum(sum(sum(0, s[:]), d[:]), tail[:])
}

// sum adds b to a running Internet checksum (RFC 1071), not complemented. It is in plain Go rather
// than from encap/checksum: ICMP errors are rare and short, and this package does not import that
// one.
func sum(start uint16, b []byte) uint16 {
	s := uint32(start)
	for len(b) >= 2 {
		s += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
