package encap

import "encoding/binary"

// Masks of the two fields of a TOS byte (RFC 3168 section 5, RFC 2474).
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

// DecapTOS returns the TOS of the inner packet after decapsulation: the ECN fields combined by RFC
// 6040 section 4.2, and the inner DSCP (pipe model of RFC 2983). ok is false if the packet must be
// dropped: the outer header is marked CE, but the inner transport is not ECN-capable.
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

// TOS returns the TOS of the inner packet pkt, which must have been accepted by ParseInner.
func TOS(pkt []byte) uint8 {
	if pkt[0]>>4 == 6 {
		return pkt[0]<<4 | pkt[1]>>4
	}
	return pkt[1]
}

// SetTOS sets the TOS of the inner packet pkt in place. ParseInner must have accepted pkt.
func SetTOS(pkt []byte, tos uint8) {
	if pkt[0]>>4 == 6 {
		pkt[0] = pkt[0]&0xf0 | tos>>4
		pkt[1] = pkt[1]&0x0f | tos<<4
		return
	}
	before := binary.BigEndian.Uint16(pkt)
	pkt[1] = tos
	// Incremental checksum update: RFC 1624 equation 3.
	check := uint32(^binary.BigEndian.Uint16(pkt[10:])) + uint32(^before) +
		uint32(binary.BigEndian.Uint16(pkt))
	check = check>>16 + check&0xffff
	check += check >> 16
	binary.BigEndian.PutUint16(pkt[10:], ^uint16(check))
}
