package checksum

import "golang.org/x/sys/cpu"

// The lengths in bytes from which the vector code is used: shorter input does not earn back its set-up. They are those
// of amd64, not measured.
const (
	sumVectorMin  = 256
	copyVectorMin = 96
)

func sum(b []byte, initial uint16) uint16 {
	if len(b) < sumVectorMin || !cpu.ARM64.HasASIMD {
		return sumPlain(b, initial)
	}
	return sumNEON(b, initial)
}

func copySum(dst, src []byte, initial uint16) uint16 {
	if len(src) < copyVectorMin || !cpu.ARM64.HasASIMD {
		return copySumPlain(dst, src, initial)
	}
	return copySumNEON(dst, src, initial)
}

// sumNEON is sumPlain with the whole blocks in assembly. The CPU must have ASIMD.
func sumNEON(b []byte, initial uint16) uint16 {
	n := len(b) &^ (blockLen - 1)
	return finish(addPlain(start(initial)+sumBlocksNEON(b[:n]), b[n:]))
}

// copySumNEON is copySumPlain with the whole blocks in assembly. The CPU must have ASIMD.
func copySumNEON(dst, src []byte, initial uint16) uint16 {
	n := len(src) &^ (blockLen - 1)
	return finish(copyAddPlain(start(initial)+copySumBlocksNEON(dst[:n], src[:n]), dst[n:], src[n:]))
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
