package checksum

import (
	"math/bits"

	"golang.org/x/sys/cpu"
)

// vectorMin is the length in bytes from which the vector code is used: shorter
// input does not earn back the set-up.
const vectorMin = 64

func sum(b []byte, initial uint16) uint16 {
	if len(b) < vectorMin || !cpu.ARM64.HasASIMD {
		return sumPlain(b, initial)
	}
	return sumNEON(b, initial)
}

func copySum(dst, src []byte, initial uint16) uint16 {
	if len(src) < vectorMin || !cpu.ARM64.HasASIMD {
		return copySumPlain(dst, src, initial)
	}
	return copySumNEON(dst, src, initial)
}

// sumNEON is sumPlain with the whole blocks in assembly. The CPU must have ASIMD.
func sumNEON(b []byte, initial uint16) uint16 {
	n := len(b) &^ (blockLen - 1)
	s := sumBlocksNEON(b[:n])
	return sumPlain(b[n:], Add(initial, bits.ReverseBytes16(Fold(s))))
}

// copySumNEON is copySumPlain with the whole blocks in assembly. The CPU must have ASIMD.
func copySumNEON(dst, src []byte, initial uint16) uint16 {
	n := len(src) &^ (blockLen - 1)
	s := copySumBlocksNEON(dst[:n], src[:n])
	return copySumPlain(dst[n:], src[n:], Add(initial, bits.ReverseBytes16(Fold(s))))
}

// sumBlocksNEON returns the exact sum of the little-endian 32-bit words of b,
// whose length must be a multiple of blockLen.
//
//go:noescape
func sumBlocksNEON(b []byte) uint64

// copySumBlocksNEON copies src to dst, from the front to the back, and returns
// what sumBlocksNEON does. Both have the same length, a multiple of blockLen.
//
//go:noescape
func copySumBlocksNEON(dst, src []byte) uint64
