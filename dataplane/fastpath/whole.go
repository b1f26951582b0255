//go:build amd64 || arm64

package fastpath

// carriesWhole reports whether the interface passes GSO frames whole to the other nodes.
func carriesWhole(string) bool { return false }
