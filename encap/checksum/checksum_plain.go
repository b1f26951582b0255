//go:build !amd64 && !arm64

package checksum

func sum(b []byte, initial uint16) uint16 { return sumPlain(b, initial) }

func copySum(dst, src []byte, initial uint16) uint16 { return copySumPlain(dst, src, initial) }
