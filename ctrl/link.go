package ctrl

import (
	"net/netip"
	"strings"
)

// LinkKind is the kernel's link type as in IFLA_INFO_KIND. The empty kind is a plain interface.
type LinkKind string

// The link kinds that a plan may ask for.
const (
	KindTUN   LinkKind = "tun"
	KindVXLAN LinkKind = "vxlan"
	KindIPIP  LinkKind = "ipip"
	// in the kernel, or in this process over a TUN if the kernel has no WireGuard
	KindWireGuard LinkKind = "wireguard"
)

// Link is a network device. In a wanted state, zero fields mean "leave as it is", except VXLAN and
// IPIP: these are fixed when a device is created, so a device with other values is recreated.
type Link struct {
	Name       string
	Kind       LinkKind
	Index      int  // only in the kernel's state
	MTU        int  // bytes
	TxQueueLen int  // packets
	MAC        MAC  // Ethernet devices only
	Up         bool // always true in wanted states
	// AcceptRAOff keeps router advertisements from configuring the device
	// (net.ipv6.conf.<device>.accept_ra = 0).
	AcceptRAOff bool
	// NoTxOffload disables transmit checksum offload: the kernel computes checksums and segments
	// large packets before they reach the device.
	NoTxOffload bool
	// External means that another part creates and deletes the device (the packet engine, whose
	// descriptors keep a TUN alive). Reconciling never does; while the device is missing,
	// everything that depends on it waits.
	External bool
	// FormerName is the name that another program gave the device, which Name replaces. Only in
	// operations.
	FormerName string
	// Userspace means that this process runs the WireGuard device. Only in the kernel's state.
	Userspace bool
	// Idle means that no process holds the TUN device. Only in the kernel's state.
	Idle  bool
	VXLAN VXLAN // of KindVXLAN
	IPIP  IPIP  // of KindIPIP
}

// VXLAN holds the settings that are fixed when a VXLAN device is created.
type VXLAN struct {
	VNI           int        // 24 bits
	Port          int        // UDP destination port
	Local         netip.Addr // outer source address
	Parent        string     // the underlay device
	Learning, GBP bool       // learn forwarding entries from traffic; carry group policy marks
}

// IPIP holds the settings that are fixed when an IPIP device is created. The remote end is never
// fixed: the next hop of a route is the tunnel destination.
type IPIP struct {
	Local netip.Addr // outer source address
	// FOUPort is the UDP source and destination port of foo-over-UDP encapsulation; 0 means plain
	// IPIP.
	FOUPort int
	TTL     int // of the outer header; 0 means copied from the inner packet
	// PathMTU always sets the outer don't-fragment bit; otherwise it is copied from the inner
	// packet.
	PathMTU bool
}

// linkKind describes a link kind that plans may ask for. linkDrivers is the Linux part of the
// table.
type linkKind struct {
	// deletable is false for devices of which a process may hold descriptors.
	deletable bool
	// overlayName reports whether flannel gives such names, without the leading "flannel", to
	// devices of this kind.
	overlayName func(rest string) bool
	// settings returns the part of the link that is fixed at creation; nil if there is none.
	settings func(Link) any
}

func linkKinds() map[LinkKind]linkKind {
	return map[LinkKind]linkKind{
		KindTUN: { // flannel0
			overlayName: func(rest string) bool {
				return rest != "" &&
					strings.TrimLeft(rest, "0123456789") == ""
			},
		},
		KindVXLAN: { // flannel.1, flannel-v6.1
			deletable:   true,
			overlayName: hasPrefix(".", "-v6."),
			settings:    func(l Link) any { return l.VXLAN },
		},
		KindIPIP: { // flannel.ipip
			deletable:   true,
			overlayName: hasPrefix(".ipip"),
			settings:    func(l Link) any { return l.IPIP },
		},
		KindWireGuard: { // flannel-wg, flannel-wg-v6
			deletable:   true,
			overlayName: hasPrefix("-wg"),
		},
	}
}

func hasPrefix(prefixes ...string) func(string) bool {
	return func(s string) bool {
		for _, p := range prefixes {
			if strings.HasPrefix(s, p) {
				return true
			}
		}
		return false
	}
}

// OverlayName reports whether a device has one of the names that flannel, and Weft with it, gives
// to devices.
func OverlayName(dev string) bool {
	rest, ok := strings.CutPrefix(dev, "flannel")
	if !ok {
		return false
	}
	for _, k := range linkKinds() {
		if k.overlayName(rest) {
			return true
		}
	}
	return false
}

// deletable reports whether Weft may delete the device: one with an overlay name and of a kind that
// only Weft or flannel creates under such a name. A TUN device that a process holds ends with it.
func (l Link) deletable() bool {
	return (l.Idle || linkKinds()[l.Kind].deletable) && OverlayName(l.Name)
}

// sameSettings reports whether h has the kind and the fixed settings of w, so that it need not be
// recreated.
func (h Link) sameSettings(w Link) bool {
	settings := linkKinds()[w.Kind].settings
	return h.Kind == w.Kind && (settings == nil || settings(h) == settings(w))
}
