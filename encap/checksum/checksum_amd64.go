package checksum

import "golang.org/x/sys/cpu"

// The lengths in bytes from which the vector code is faster than plain Go; below, its set-up costs more than it saves
// (BenchmarkSum and BenchmarkCopy on a Xeon of 2.8 GHz).
const (
	sumVectorMin  = 256
	copyVectorMin = 96
)

func sum(b []byte, initial uint16) uint16 {
	if len(b) < sumVectorMin || !cpu.X86.HasAVX2 {
		return sumPlain(b, initial)
	}
	return sumAVX2(b, initial)
}

func copySum(dst, src []byte, initial uint16) uint16 {
	if len(src) < copyVectorMin || !cpu.X86.HasAVX2 {
		return copySumPlain(dst, src, initial)
	}
	return copySumAVX2(dst, src, initial)
}

// sumAVX2 is sumPlain with the whole blocks in assembly. The CPU must have AVX2.
func sumAVX2(b []byte, initial uint16) uint16 {
	n := len(b) &^ (blockLen - 1)
	return finish(addPlain(start(initial)+sumBlocksAVX2(b[:n]), b[n:]))
}

// copySumAVX2 is copySumPlain with the whole blocks in assembly. The CPU must have AVX2.
func copySumAVX2(dst, src []byte, initial uint16) uint16 {
	n := len(src) &^ (blockLen - 1)
	return finish(copyAddPlain(start(initial)+copySumBlocksAVX2(dst[:n], src[:n]), dst[n:], src[n:]))
}

// sumBlocksAVX2 returns the exact sum of the little-endian 32-bit words of b,
// whose length must be a multiple of blockLen.
//
//go:noescape
func sumBlocksAVX2(b []byte) uint64

// copySumBlocksAVX2 copies src to dst, from the front to the back, and returns
// what sumBlocksAVX2 does. Both have the same length, a multiple of blockLen.
//
//go:noescape
func copySumBlocksAVX2(dst, src []byte) uint64
