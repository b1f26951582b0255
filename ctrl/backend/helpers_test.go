package backend

import (
	"net/netip"

	"weft/ctrl"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

var (
	macA = ctrl.MAC{2, 0, 0, 0, 0, 0xa}
	macB = ctrl.MAC{2, 0, 0, 0, 0, 0xb}
	nets = []netip.Prefix{prefix("10.5.0.0/16"), prefix("fd10:5::/48")}
)
