package checksum

import "golang.org/x/sys/cpu"

// Minimum input lengths in bytes for the vector code. Shorter inputs are faster in plain Go
// (BenchmarkSum and BenchmarkCopy on a Xeon at 2.8 GHz).
const (
	sumVectorMin  = 256
	copyVectorMin = 96
)

func sum(b []byte, initial uint16) uint16 {
	if len(b) < sumVectorMin || !cpu.X86.HasAVX2 {
		return sumGeneric(b, initial)
	}
	return sumAVX2(b, initial)
}

func copySum(dst, src []byte, initial uint16) uint16 {
	if len(src) < copyVectorMin || !cpu.X86.HasAVX2 {
		return copySumGeneric(dst, src, initial)
	}
	return copySumAVX2(dst, src, initial)
}

// sumAVX2 is sumGeneric with whole blocks summed in assembly. The CPU must have AVX2.
func sumAVX2(b []byte, initial uint16) uint16 {
	n := len(b) &^ (blockLen - 1)
	return finish(addGeneric(start(initial)+sumBlocksAVX2(b[:n]), b[n:]))
}

// copySumAVX2 is copySumGeneric with whole blocks summed in assembly. The CPU must have AVX2.
func copySumAVX2(dst, src []byte, initial uint16) uint16 {
	n := len(src) &^ (blockLen - 1)
	s := start(initial) + copySumBlocksAVX2(dst[:n], src[:n])
	return finish(copyAddGeneric(s, dst[n:], src[n:]))
}

// sumBlocksAVX2 returns the exact sum of the little-endian 32-bit words of b. Its length must be a
// multiple of blockLen.
//
//go:noescape
func sumBlocksAVX2(b []byte) uint64

// copySumBlocksAVX2 copies src to dst in ascending order and returns the sum of src as
// sumBlocksAVX2 does. Both have the same length, a multiple of blockLen.
//
//go:noescape
func copySumBlocksAVX2(dst, src []byte) uint64
