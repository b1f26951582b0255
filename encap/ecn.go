package encap

import "encoding/binary"

// The two fields of a TOS (RFC 3168 section 5, RFC 2474).
const (
	MaskECN  = 0x03
	MaskDSCP = 0xfc
)

// Values of the ECN field (RFC 3168 section 5).
const (
	ecnNotECT = 0
	ecnECT1   = 1
	ecnCE     = 3
)

// DecapTOS returns the inner packet's TOS after the outer header with its own is taken off: what RFC 6040 section
// 4.2 makes of the two ECN fields, and the inner DSCP (RFC 2983's pipe model). ok is false where the packet must be
// dropped: congestion was marked on one whose transport would not understand.
func DecapTOS(inner, outer uint8) (tos uint8, ok bool) {
	in, out := inner&MaskECN, outer&MaskECN
	switch {
	case in == ecnNotECT:
		return inner, out != ecnCE
	case out == ecnCE, out == ecnECT1 && in != ecnCE:
		return inner&^MaskECN | out, true
	}
	return inner, true
}

// TOS returns the TOS of the inner packet pkt, which ParseInner has accepted.
func TOS(pkt []byte) uint8 {
	if pkt[0]>>4 == 6 {
		return pkt[0]<<4 | pkt[1]>>4
	}
	return pkt[1]
}

// SetTOS changes the TOS of the inner packet pkt, which ParseInner has accepted, in place.
func SetTOS(pkt []byte, tos uint8) {
	if pkt[0]>>4 == 6 {
		pkt[0] = pkt[0]&0xf0 | tos>>4
		pkt[1] = pkt[1]&0x0f | tos<<4
		return
	}
	before := binary.BigEndian.Uint16(pkt)
	pkt[1] = tos
	// RFC 1624 equation 3: the checksum follows the one word that changes.
	check := uint32(^binary.BigEndian.Uint16(pkt[10:])) + uint32(^before) + uint32(binary.BigEndian.Uint16(pkt))
	check = check>>16 + check&0xffff
	check += check >> 16
	binary.BigEndian.PutUint16(pkt[10:], ^uint16(check))
}
