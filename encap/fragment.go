package encap

import "encoding/binary"

// Fragmenter cuts one IPv4 packet that may be fragmented into pieces that fit an MTU (RFC 791 section 3.2).
// It is for inner packets without DF on a path that is narrower than the TUN. IPv6 routers never cut.
type Fragmenter struct {
	pkt    []byte // the packet to cut; borrowed from NewFragmenter's caller
	header int    // length of its header
	mtu    int
	done   int // payload bytes already cut off
}

// NewFragmenter prepares to cut pkt, which in describes. It keeps pkt until the last Next. ok is false where
// the packet must not be cut (DF, IPv6) or the MTU leaves no room for 8 bytes behind its header.
func NewFragmenter(pkt []byte, in *Inner, mtu int) (f Fragmenter, ok bool) {
	if in.Version != 4 || in.DF || mtu < in.HeaderLen+8 {
		return Fragmenter{}, false
	}
	return Fragmenter{pkt: pkt, header: in.HeaderLen, mtu: mtu}, true
}

// Next appends the next fragment to dst and returns it; nothing is appended after the last one.
func (f *Fragmenter) Next(dst []byte) []byte {
	payload := f.pkt[f.header:]
	if f.done >= len(payload) {
		return dst
	}
	start := len(dst)
	dst = append(dst, f.pkt[:ipv4HeaderLen]...)
	dst = f.appendOptions(dst)
	header := len(dst) - start
	rest := payload[f.done:]
	more := header+len(rest) > f.mtu
	if more {
		rest = rest[:(f.mtu-header)&^7] // offsets count in units of 8
	}
	dst = append(dst, rest...)

	b := dst[start:]
	b[0] = 4<<4 | uint8(header/4)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	field := binary.BigEndian.Uint16(f.pkt[6:]) + uint16(f.done/8) // a fragment may be cut again: keep its MF and add
	if more {
		field |= flagMF
	}
	binary.BigEndian.PutUint16(b[6:], field)
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^sum(0, b[:header]))
	f.done += len(rest)
	return dst
}

// appendOptions appends all options to the first fragment and, to the others, those that ask to be copied:
// the top bit of the option's type.
func (f *Fragmenter) appendOptions(dst []byte) []byte {
	options := f.pkt[ipv4HeaderLen:f.header]
	if f.done == 0 {
		return append(dst, options...)
	}
	start := len(dst)
	for len(options) > 0 {
		size := 1
		switch kind := options[0]; {
		case kind == 0: // end of list
			size = len(options)
		case kind == 1: // no operation
		case len(options) < 2 || options[1] < 2 || int(options[1]) > len(options):
			size = len(options) // malformed: nothing behind it can be trusted
		default:
			size = int(options[1])
			if kind&0x80 != 0 {
				dst = append(dst, options[:size]...)
			}
		}
		options = options[size:]
	}
	for (len(dst)-start)%4 != 0 {
		dst = append(dst, 0)
	}
	return dst
}
