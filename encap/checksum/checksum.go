// Package checksum computes the internet checksum (RFC 1071) of packet bytes.
//
// All sums here are ones' complement sums of big-endian 16-bit words, folded to
// 16 bits and not complemented: the value that goes on the wire is the complement
// (^sum). An odd last byte counts as the high half of a word, so only the last
// piece of a message may have an odd length when a sum is built from pieces.
//
// [Sum] and [Copy] choose once per call between assembly (AVX2 on amd64, NEON on
// arm64) and plain Go. Out of scope: what is summed. Which bytes a header
// covers and where its checksum lies is the caller's knowledge.
package checksum

import (
	"encoding/binary"
	"math/bits"
)

// blockLen is the granule of the assembly routines in bytes: they take whole
// blocks, the Go code around them takes the rest.
const blockLen = 32

// Sum returns the folded sum of b added to initial.
func Sum(b []byte, initial uint16) uint16 {
	return sum(b, initial)
}

// Copy copies src to the start of dst and returns the folded sum of src added to
// initial, in one pass over the bytes. It panics if dst is shorter than src.
//
// The two may overlap if dst does not start behind src (moving bytes towards the
// front of a buffer is safe). Bytes of dst behind len(src) are left alone.
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

// Fold reduces a plain sum of 16-bit words, or of wider words built of them, to 16 bits.
func Fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// Pseudo returns the folded sum of the pseudo-header that TCP and UDP checksums
// cover: over IPv4 (RFC 9293 section 3.1, RFC 768) and over IPv6 (RFC 8200
// section 8.1) alike. addrs is the source and the destination address as they lie
// behind each other in the IP header, length the bytes of the upper-layer header
// and its payload.
func Pseudo(addrs []byte, proto uint8, length int) uint16 {
	n := uint64(length)
	return Sum(addrs, Fold(n>>16+n&0xffff+uint64(proto)))
}

// sumPlain is Sum in plain Go.
func sumPlain(b []byte, initial uint16) uint16 {
	return finish(addPlain(start(initial), b))
}

// copySumPlain is Copy in plain Go; dst and src have the same length.
func copySumPlain(dst, src []byte, initial uint16) uint16 {
	return finish(copyAddPlain(start(initial), dst, src))
}

// start and finish turn a folded sum into one of little-endian words and back. Those are what most machines load as
// they are, and the sum does not depend on the byte order otherwise (RFC 1071 section 2 B).
func start(sum uint16) uint64 { return uint64(bits.ReverseBytes16(sum)) }

func finish(s uint64) uint16 { return bits.ReverseBytes16(Fold(s)) }

// addPlain adds the little-endian 64-bit words of b to s, with the carry going round.
func addPlain(s uint64, b []byte) uint64 {
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

// copyAddPlain is addPlain for src, which it copies to dst of the same length. A round loads all of its bytes before
// it stores the first, and rounds go upwards, which is what makes the overlap that Copy allows safe.
func copyAddPlain(s uint64, dst, src []byte) uint64 {
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
