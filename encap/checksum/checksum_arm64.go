package checksum

import "golang.org/x/sys/cpu"

// Minimum input lengths in bytes for the vector code: the values of amd64, not measured on arm64.
const (
	sumVectorMin  = 256
	copyVectorMin = 96
)

func sum(b []byte, initial uint16) uint16 {
	if len(b) < sumVectorMin || !cpu.ARM64.HasASIMD {
		return sumGeneric(b, initial)
	}
	return sumNEON(b, initial)
}

func copySum(dst, src []byte, initial uint16) uint16 {
	if len(src) < copyVectorMin || !cpu.ARM64.HasASIMD {
		return copySumGeneric(dst, src, initial)
	}
	return copySumNEON(dst, src, initial)
}

// sumNEON is sumGeneric with whole blocks summed in assembly. The CPU must have ASIMD.
func sumNEON(b []byte, initial uint16) uint16 {
	n := len(b) &^ (blockLen - 1)
	return finish(addGeneric(start(initial)+sumBlocksNEON(b[:n]), b[n:]))
}

// copySumNEON is copySumGeneric with whole blocks summed in assembly. The CPU must have ASIMD.
func copySumNEON(dst, src []byte, initial uint16) uint16 {
	n := len(src) &^ (blockLen - 1)
	s := start(initial) + copySumBlocksNEON(dst[:n], src[:n])
	return finish(copyAddGeneric(s, dst[n:], src[n:]))
}

// sumBlocksNEON returns the exact sum of the little-endian 32-bit words of b. Its length must be a
// multiple of blockLen.
//
//go:noescape
func sumBlocksNEON(b []byte) uint64

// copySumBlocksNEON copies src to dst in ascending order and returns the sum of src as
// sumBlocksNEON does. Both have the same length, a multiple of blockLen.
//
//go:noescape
func copySumBlocksNEON(dst, src []byte) uint64
