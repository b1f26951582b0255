package ctrl

import "net/netip"

// RouteQuery asks for the route of packets from Src to Dst. An invalid Src, or one that is not an
// address of this host, means none.
type RouteQuery struct{ Dst, Src netip.Addr }

// RouteMatch is the route that the kernel uses for a RouteQuery.
type RouteMatch struct {
	Err error        // why there is none; the other fields are then unset
	Dst netip.Prefix // of the route; a single address on kernels without RTM_F_FIB_MATCH (4.13)
	Via netip.Addr   // invalid: without a gateway
	Dev string
	// Protocol marks the program that added the route; 0 on kernels without RTM_F_FIB_MATCH.
	Protocol int
	Table    int  // routing table; 0 if the kernel does not tell
	Local    bool // the address is this host's own
}
