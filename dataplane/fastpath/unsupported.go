//go:build !amd64 && !arm64

package fastpath

import (
	"fmt"
	"net/netip"
	"runtime"

	"weft/dataplane/fib"
)

// Path cannot be opened on this architecture.
type Path struct{}

// Open fails.
func Open(Config) (*Path, error) {
	return nil, fmt.Errorf("%w on %s", ErrUnsupported, runtime.GOARCH)
}

// Attach does nothing.
func (*Path) Attach(Place) error { return nil }

// ChangeNodes does nothing.
func (*Path) ChangeNodes(_, _ map[netip.Prefix]*fib.Node) (map[netip.Addr]Traffic, error) {
	return nil, nil
}

// SetNodes does nothing.
func (*Path) SetNodes(fib.Node, []fib.Node) (map[netip.Addr]Traffic, error) { return nil, nil }

// SetPathMTUs does nothing.
func (*Path) SetPathMTUs(map[netip.Addr]int) error { return nil }

// Avoid does nothing.
func (*Path) Avoid(map[netip.Addr]bool) error { return nil }

// Beat does nothing.
func (*Path) Beat() error { return nil }

// Leave does nothing.
func (*Path) Leave() error { return nil }

// Watch does nothing.
func (*Path) Watch(bool) error { return nil }

// Paused returns no reason.
func (*Path) Paused() string { return "" }

// Persistent returns false.
func (*Path) Persistent() bool { return false }

// Stats returns no counts.
func (*Path) Stats() Stats { return Stats{} }

// Close does nothing.
func (*Path) Close() error { return nil }

// RemoveAll removes nothing.
func RemoveAll() ([]string, error) { return nil, nil }

// Remove removes nothing.
func Remove(string) error { return nil }

// RemoveStale removes nothing.
func RemoveStale() error { return nil }
