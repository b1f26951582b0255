//go:build !amd64 && !arm64

package checksum

func assembly() []routine { return nil }
