package encap

import "encoding/binary"

// Fragmenter fragments one IPv4 packet without DF to an MTU (RFC 791 section 3.2). It is for paths
// whose MTU is smaller than that of the TUN. IPv6 packets are fragmented only by their sender.
type Fragmenter struct {
	pkt    []byte // borrowed from the caller of NewFragmenter
	header int    // header length of pkt
	mtu    int
	done   int // payload bytes already returned
}

// NewFragmenter returns a Fragmenter for pkt, whose parsed header is in. It borrows pkt until the
// last Next. ok is false if the packet must not be fragmented (DF, IPv6) or if the MTU leaves less
// than 8 bytes for payload.
func NewFragmenter(pkt []byte, in *Inner, mtu int) (f Fragmenter, ok bool) {
	if in.Version != 4 || in.DF || mtu < in.HeaderLen+8 {
		return Fragmenter{}, false
	}
	return Fragmenter{pkt: pkt, header: in.HeaderLen, mtu: mtu}, true
}

// Next appends the next fragment to dst and returns the extended slice. After the last fragment it
// returns dst unchanged.
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
		rest = rest[:(f.mtu-header)&^7] // fragment offsets are in units of 8 bytes
	}
	dst = append(dst, rest...)

	b := dst[start:]
	b[0] = 4<<4 | uint8(header/4)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	// pkt may itself be a fragment: keep its MF flag and add to its offset.
	field := binary.BigEndian.Uint16(f.pkt[6:]) + uint16(f.done/8)
	if more {
		field |= flagMF
	}
	binary.BigEndian.PutUint16(b[6:], field)
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^sum(0, b[:header]))
	f.done += len(rest)
	return dst
}

// appendOptions appends the IP options: all of them to the first fragment, and those with the
// copied flag (the top bit of the option type) to the others.
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
			size = len(options) // malformed: ignore the rest
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
