package ctrl

import (
	"encoding/hex"
	"fmt"
	"net/netip"
)

// RouteProtocol marks our routes in the kernel (rtm_protocol, shown by `ip route` as "proto 157"). It is unused in
// iproute2's etc/rt_protos, in the kernel's include/uapi/linux/rtnetlink.h, and by FRR (186 to 199), Calico (80) and OVN (84).
// `echo 157 weft >/etc/iproute2/rt_protos.d/weft.conf` gives it a name.
const RouteProtocol = 157

// Route protocols of others that matter to us (linux/rtnetlink.h).
const (
	protocolBoot = 3 // what flannel's routes carry, and those of `ip route add` by hand
)

// LinkKind names the kernel's link type as IFLA_INFO_KIND spells it. The empty kind is a plain interface.
type LinkKind string

// The link kinds that a plan may ask for.
const (
	KindTUN       LinkKind = "tun"
	KindVXLAN     LinkKind = "vxlan"
	KindIPIP      LinkKind = "ipip"
	KindWireGuard LinkKind = "wireguard"
)

// MAC is an Ethernet address; the zero value means none.
type MAC [6]byte

// String writes the address as the kernel's tools do: 0a:1b:2c:3d:4e:5f.
func (m MAC) String() string {
	b := make([]byte, 0, 17)
	for i, x := range m {
		if i > 0 {
			b = append(b, ':')
		}
		b = hex.AppendEncode(b, []byte{x})
	}
	return string(b)
}

// Link is a network device. As part of a wanted state, zero fields mean "leave it as it is".
type Link struct {
	Name       string
	Kind       LinkKind
	Index      int  // only in what the kernel has
	MTU        int  // bytes
	TxQueueLen int  // packets
	MAC        MAC  // Ethernet devices only
	Up         bool // wanted states always want it up
	// Foreign says that someone else makes the device and removes it (the packet engine, whose descriptors keep a TUN alive).
	// It is never created or deleted here; while it is missing, what depends on it waits.
	Foreign bool
}

// Addr is an address on a device. Prefix keeps the host bits.
type Addr struct {
	Dev    string
	Prefix netip.Prefix
}

// Route is a unicast route of the main table.
type Route struct {
	Dst      netip.Prefix // masked
	Via      netip.Addr   // invalid: directly on Dev
	Dev      string
	OnLink   bool // do not ask whether Via is reachable on Dev
	LinkOnly bool // scope link instead of global
	Metric   int
	Protocol int // RouteProtocol in wanted states
}

// Neighbour is a permanent neighbour entry: IP is at MAC on Dev.
type Neighbour struct {
	Dev string
	IP  netip.Addr
	MAC MAC
}

// FDBEntry is a permanent forwarding entry of a VXLAN device: frames for MAC go to the tunnel end Dst.
type FDBEntry struct {
	Dev string
	MAC MAC
	Dst netip.Addr
}

// Unreachable is a node that the plan has no path to, and why.
type Unreachable struct {
	Node   string // the node's name, or its address where the lease has no name
	Subnet netip.Prefix
	Reason string // one line for a human
}

// State is kernel state as values: wanted (from a Plan) or found (from the kernel). The slices are sets; a State is
// never modified after it has been handed on.
type State struct {
	Links       []Link
	Addrs       []Addr
	Routes      []Route
	Neighbours  []Neighbour
	FDB         []FDBEntry
	Networks    []netip.Prefix // wanted states: what is ours lies inside these
	Unreachable []Unreachable  // wanted states: leases that got no path
}

// String shows a route in the words of `ip route`.
func (r Route) String() string {
	s := r.Dst.String()
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	s += " dev " + r.Dev
	if r.Protocol != 0 {
		s += fmt.Sprintf(" proto %d", r.Protocol)
	}
	if r.LinkOnly {
		s += " scope link"
	}
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	if r.OnLink {
		s += " onlink"
	}
	return s
}
