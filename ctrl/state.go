package ctrl

import (
	"net/netip"
	"time"
)

// RouteProtocol marks our routes in the kernel (rtm_protocol, shown by `ip route` as "proto 157"). It is unused in
// iproute2's etc/rt_protos, in the kernel's include/uapi/linux/rtnetlink.h, and by FRR (186 to 199), Calico (80) and OVN (84).
// `echo 157 weft >/etc/iproute2/rt_protos.d/weft.conf` gives it a name.
const RouteProtocol = 157

// protocolBoot is what flannel's routes carry, and those of `ip route add` by hand (RTPROT_BOOT in linux/rtnetlink.h).
const protocolBoot = 3

// LinkKind names the kernel's link type as IFLA_INFO_KIND spells it. The empty kind is a plain interface.
type LinkKind string

// The link kinds that a plan may ask for.
const (
	KindTUN       LinkKind = "tun"
	KindVXLAN     LinkKind = "vxlan"
	KindIPIP      LinkKind = "ipip"
	KindWireGuard LinkKind = "wireguard" // in the kernel, or run by this process over a TUN where the kernel has none
)

// Link is a network device. As part of a wanted state, zero fields mean "leave it as it is", except VXLAN and IPIP,
// which are fixed when a device is made: where they differ, the device is made anew.
type Link struct {
	Name       string
	Kind       LinkKind
	Index      int  // only in what the kernel has
	MTU        int  // bytes
	TxQueueLen int  // packets
	MAC        MAC  // Ethernet devices only
	Up         bool // wanted states always want it up
	// IgnoreRA keeps router advertisements from configuring the device (net.ipv6.conf.<device>.accept_ra = 0).
	IgnoreRA bool
	// Software has checksums computed and large frames cut before the device, not left to whatever lies under it.
	Software bool
	// Foreign says that someone else makes the device and removes it (the packet engine, whose descriptors keep a TUN alive).
	// It is never created or deleted here; while it is missing, what depends on it waits.
	Foreign bool
	VXLAN   VXLAN // of KindVXLAN
	IPIP    IPIP  // of KindIPIP
}

// VXLAN is what is fixed about a VXLAN device.
type VXLAN struct {
	VNI           int        // 24 bits
	Port          int        // UDP destination port
	Local         netip.Addr // outer source address
	Parent        string     // the underlay device
	Learning, GBP bool       // learn forwarding entries from traffic; carry group policy marks
}

// IPIP is what is fixed about an IPIP device. Its remote end is never fixed: the next hop of a route is the tunnel's
// destination.
type IPIP struct {
	Local netip.Addr // outer source address
	// FOUPort is the UDP port, source and destination, of foo-over-UDP encapsulation; 0 for plain IPIP.
	FOUPort int
	TTL     int // of the outer header; 0: the inner packet's
	// PathMTU sets the outer don't-fragment bit always; else it is the inner packet's.
	PathMTU bool
}

// Addr is an address on a device. Prefix keeps the host bits.
type Addr struct {
	Dev    string
	Prefix netip.Prefix
}

// RouteKind names what a route does with a packet, in the words of `ip route`. Beside those below, the kernel knows
// several that refuse it in other ways, which we never make.
type RouteKind string

// The route kinds that a plan may ask for.
const (
	Forward   RouteKind = ""
	Blackhole RouteKind = "blackhole" // drop in silence
)

// Route is a route of the main table.
type Route struct {
	Kind     RouteKind
	Dst      netip.Prefix // masked
	Via      netip.Addr   // invalid: directly on Dev
	Dev      string       // empty unless Kind is Forward
	OnLink   bool         // do not ask whether Via is reachable on Dev
	LinkOnly bool         // scope link instead of global; IPv4 only, IPv6 has no scopes
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

// FOUPort is a UDP port (IPv4, every local address) whose payload the kernel takes for bare IPv4 packets: foo over UDP
// with IP protocol 4.
type FOUPort struct{ Port int }

// Tunnel is the WireGuard side of a device.
type Tunnel struct {
	Dev        string
	PrivateKey Key
	ListenPort int
}

// Peer is a WireGuard peer of a device.
type Peer struct {
	Dev       string
	PublicKey Key
	PSK       Key // zero: none
	Endpoint  netip.AddrPort
	Keepalive time.Duration // whole seconds; 0: off
	// Allowed and Allowed6 are the peer's subnets; an invalid one is left out.
	Allowed, Allowed6 netip.Prefix
}

// Command is work of the extension backend: Add is run when the command is first wanted, Remove when it is no
// longer. Both are command lines (see splitCommand); an empty one is not run.
type Command struct {
	ID          string // what it is about: a subnet
	Add, Remove string
	Env         string // NAME=value lines
	Stdin       string
}

// Former is a route that flannel's host-gw leaves for a node: subnet via public address. Such a route is ours to
// remove, as it would win over a wider route of another backend.
type Former struct {
	Dst netip.Prefix
	Via netip.Addr
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
	Links      []Link
	Addrs      []Addr
	Routes     []Route
	Neighbours []Neighbour
	FDB        []FDBEntry
	FOU        []FOUPort
	Tunnels    []Tunnel
	Peers      []Peer
	Commands   []Command

	// The rest is only in wanted states.

	Networks    []netip.Prefix // what is ours lies inside these
	NoFOU       []FOUPort      // ports that have to be free, as the packet engine binds them
	Former      []Former
	Unreachable []Unreachable // leases that got no path
}
