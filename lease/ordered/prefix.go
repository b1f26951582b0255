package ordered

import (
	"cmp"
	"net/netip"
)

// ComparePrefixes orders masked and zero prefixes as [netip.Prefix.Compare] does. That function
// masks both again, and allocates an error for each zero prefix.
func ComparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return cmp.Compare(a.Bits(), b.Bits())
}
