//go:build !amd64 && !arm64

package checksum

func sum(b []byte, initial uint16) uint16 { return sumGeneric(b, initial) }

func copySum(dst, src []byte, initial uint16) uint16 { return copySumGeneric(dst, src, initial) }
