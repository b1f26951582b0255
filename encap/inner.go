package encap

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Errors of ParseInner, which returns them unwrapped.
var (
	ErrTooShort   = errors.New("shorter than its header")
	ErrBadVersion = errors.New("neither IPv4 nor IPv6")
	ErrBadLength  = errors.New("length field and packet length differ")
)

// Upper-layer protocols that Weft inspects (IANA protocol numbers).
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// IPv6 extension headers that may precede the upper layer (RFC 8200 section 4.1).
const (
	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extDestination = 60
)

// Inner holds the header fields of an inner packet that the dataplane uses.
type Inner struct {
	Src, Dst         netip.Addr
	Len              int   // total length in bytes
	HeaderLen        int   // bytes of the IP header with its options or extension headers
	Version          uint8 // 4 or 6
	Proto            uint8 // upper-layer protocol
	TOS              uint8 // DSCP and ECN: IPv4 TOS, IPv6 traffic class
	DF               bool  // must not be fragmented: the flag in IPv4, always true in IPv6
	NonFirstFragment bool  // has no upper-layer header
}

// ParseInner parses the header of the inner packet b, which must be exactly one packet. It does not
// verify checksums: the receiving kernel does. The error is ErrTooShort, ErrBadVersion or
// ErrBadLength.
func ParseInner(b []byte) (Inner, error) {
	if len(b) < ipv4HeaderLen {
		return Inner{}, ErrTooShort
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b)
	case 6:
		return parse6(b)
	}
	return Inner{}, ErrBadVersion
}

func parse4(b []byte) (Inner, error) {
	header := int(b[0]&0x0f) * 4
	if header < ipv4HeaderLen {
		return Inner{}, ErrBadLength
	}
	if len(b) < header {
		return Inner{}, ErrTooShort
	}
	if int(binary.BigEndian.Uint16(b[2:])) != len(b) {
		return Inner{}, ErrBadLength
	}
	flags := binary.BigEndian.Uint16(b[6:])
	return Inner{
		Src:              netip.AddrFrom4([4]byte(b[12:16])),
		Dst:              netip.AddrFrom4([4]byte(b[16:20])),
		Len:              len(b),
		HeaderLen:        header,
		Version:          4,
		Proto:            b[9],
		TOS:              b[1],
		DF:               flags&flagDF != 0,
		NonFirstFragment: flags&maskOffset != 0,
	}, nil
}

// Bits of the IPv4 flags and fragment offset field (RFC 791 section 3.1).
const (
	flagDF     = 0x4000
	flagMF     = 0x2000
	maskOffset = 0x1fff // in units of 8 bytes
)

func parse6(b []byte) (Inner, error) {
	if len(b) < ipv6HeaderLen {
		return Inner{}, ErrTooShort
	}
	if int(binary.BigEndian.Uint16(b[4:]))+ipv6HeaderLen != len(b) {
		return Inner{}, ErrBadLength
	}
	in := Inner{
		Src:       netip.AddrFrom16([16]byte(b[8:24])),
		Dst:       netip.AddrFrom16([16]byte(b[24:40])),
		Len:       len(b),
		HeaderLen: ipv6HeaderLen,
		Version:   6,
		Proto:     b[6],
		TOS:       b[0]<<4 | b[1]>>4,
		DF:        true,
	}
	return in, in.skipExtensions(b)
}

// skipExtensions advances Proto and HeaderLen past the IPv6 extension headers of b. It stops at the
// first unknown header, which it takes as the upper layer, and at a non-first fragment, which has
// none.
func (in *Inner) skipExtensions(b []byte) error {
	for !in.NonFirstFragment {
		var size int
		rest := b[in.HeaderLen:]
		switch in.Proto {
		case extHopByHop, extRouting, extDestination:
			if len(rest) < 8 {
				return ErrTooShort
			}
			size = 8 + int(rest[1])*8 // RFC 8200 section 4.3: units of 8, not including the first
		case extFragment:
			if len(rest) < 8 {
				return ErrTooShort
			}
			size = 8
			in.NonFirstFragment = binary.BigEndian.Uint16(rest[2:])&^7 != 0
		default:
			return nil
		}
		if len(rest) < size {
			return ErrTooShort
		}
		in.Proto = rest[0]
		in.HeaderLen += size
	}
	return nil
}

// IsNDP reports whether the packet b, whose parsed header is in, is a Neighbor Discovery message
// (RFC 4861: ICMPv6 types 133 to 137). The overlay has no use for them: a TUN has no link layer,
// and there are no routers.
func (in *Inner) IsNDP(b []byte) bool {
	if in.Proto != ProtoICMPv6 || in.Version != 6 || in.NonFirstFragment || len(b) <= in.HeaderLen {
		return false
	}
	t := b[in.HeaderLen]
	return t >= 133 && t <= 137
}

// IsMulticast reports whether the destination is a multicast group or the IPv4 limited broadcast
// address.
func (in *Inner) IsMulticast() bool {
	return in.Dst.IsMulticast() ||
		in.Version == 4 && in.Dst == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
