// Package checksum computes the Internet checksum (RFC 1071).
//
// All sums are ones' complement sums of big-endian 16-bit words, folded to 16 bits and not
// complemented: the checksum on the wire is ^sum. An odd last byte counts as the high half of a
// word, so if a sum is built from several pieces, only the last may have an odd length.
//
// [Sum] and [Copy] select assembly (AVX2 on amd64, NEON on arm64) or plain Go on each call. Out of
// scope: which bytes a checksum covers and where it is stored.
package checksum

import (
	"encoding/binary"
	"math/bits"
)

// blockLen is the block size of the assembly routines in bytes. They process whole blocks, and the
// Go code around them the rest.
const blockLen = 32

// Sum returns the folded sum of initial and b.
func Sum(b []byte, initial uint16) uint16 {
	return sum(b, initial)
}

// Copy copies src to the start of dst and returns the folded sum of initial and src, in one pass.
// It panics if dst is shorter than src.
//
// The two may overlap if dst does not start after src (moving bytes towards the front of a buffer
// is safe). Bytes of dst beyond len(src) are not modified.
func Copy(dst, src []byte, initial uint16) uint16 {
	if len(dst) < len(src) {
		panic("checksum: Copy to a destination shorter than the source")
	}
	return copySum(dst[:len(src)], src, initial)
}

// Add returns the ones' complement sum of two folded sums.
func Add(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s + s>>16)
}

// Fold folds a sum of 16-bit words, or of 32- or 64-bit words made of them, to 16 bits.
func Fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// Pseudo returns the folded sum of the pseudo-header of TCP and UDP checksums over IPv4 (RFC 9293
// section 3.1, RFC 768) and IPv6 (RFC 8200 section 8.1). addrs is the source address followed by
// the destination address, as in the IP header. length is the size of the upper-layer header and
// payload in bytes.
func Pseudo(addrs []byte, proto uint8, length int) uint16 {
	n := uint64(length)
	return Sum(addrs, Fold(n>>16+n&0xffff+uint64(proto)))
}

// sumGeneric is Sum in plain Go.
func sumGeneric(b []byte, initial uint16) uint16 {
	return finish(addGeneric(start(initial), b))
}

// copySumGeneric is Copy in plain Go. dst and src have the same length.
func copySumGeneric(dst, src []byte, initial uint16) uint16 {
	return finish(copyAddGeneric(start(initial), dst, src))
}

// start converts a folded sum to a sum of little-endian words. Most machines load those without a
// byte swap, and apart from that the sum does not depend on the byte order (RFC 1071 section 2 B).
func start(sum uint16) uint64 { return uint64(bits.ReverseBytes16(sum)) }

// finish folds a sum of little-endian words and converts it back.
func finish(s uint64) uint16 { return bits.ReverseBytes16(Fold(s)) }

// addGeneric adds the little-endian 64-bit words of b to s, with end-around carry.
func addGeneric(s uint64, b []byte) uint64 {
	c := uint64(0)
	for len(b) >= blockLen {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[8:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[16:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[24:]), c)
		b = b[blockLen:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), c)
		b = b[8:]
	}
	s, c = bits.Add64(s, tail(b), c) // tail is below 2^34: after a carry, s is small
	return s + c
}

// copyAddGeneric is addGeneric for src, which it copies to dst of the same length. Each iteration
// loads all its bytes before it stores any, in ascending order, so that overlap as allowed by Copy
// is safe.
func copyAddGeneric(s uint64, dst, src []byte) uint64 {
	c := uint64(0)
	for len(src) >= blockLen && len(dst) >= blockLen {
		w0, w1 := binary.LittleEndian.Uint64(src), binary.LittleEndian.Uint64(src[8:])
		w2, w3 := binary.LittleEndian.Uint64(src[16:]), binary.LittleEndian.Uint64(src[24:])
		binary.LittleEndian.PutUint64(dst, w0)
		binary.LittleEndian.PutUint64(dst[8:], w1)
		binary.LittleEndian.PutUint64(dst[16:], w2)
		binary.LittleEndian.PutUint64(dst[24:], w3)
		s, c = bits.Add64(s, w0, c)
		s, c = bits.Add64(s, w1, c)
		s, c = bits.Add64(s, w2, c)
		s, c = bits.Add64(s, w3, c)
		src, dst = src[blockLen:], dst[blockLen:]
	}
	for len(src) >= 8 && len(dst) >= 8 {
		w := binary.LittleEndian.Uint64(src)
		binary.LittleEndian.PutUint64(dst, w)
		s, c = bits.Add64(s, w, c)
		src, dst = src[8:], dst[8:]
	}
	s, c = bits.Add64(s, tail(src), c)
	copy(dst, src)
	return s + c
}

// tail returns up to seven bytes as one little-endian word, padded with zeros.
func tail(b []byte) (s uint64) {
	if len(b) >= 4 {
		s = uint64(binary.LittleEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		s += uint64(binary.LittleEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) >= 1 {
		s += uint64(b[0])
	}
	return s
}
