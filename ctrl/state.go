package ctrl

import (
	"net/netip"
	"time"
)

// RouteProtocol marks Weft's routes in the kernel (rtm_protocol, shown by `ip route` as "proto
// 157"). It is unused in iproute2's etc/rt_protos, in the kernel's include/uapi/linux/rtnetlink.h,
// and by FRR (186 to 199), Calico (80) and OVN (84). `echo 157 weft
// >/etc/iproute2/rt_protos.d/weft.conf` gives it a name.
const RouteProtocol = 157

// protocolBoot is the protocol of flannel's routes, and of `ip route add` (RTPROT_BOOT in
// linux/rtnetlink.h).
const protocolBoot = 3

// Addr is an address on a device. Prefix keeps the host bits.
type Addr struct {
	Dev    string
	Prefix netip.Prefix
}

// RouteKind is the type of a route in the words of `ip route`. Besides the kinds below, the kernel
// has several that reject packets in other ways; plans never use them.
type RouteKind string

// The route kinds that a plan may ask for.
const (
	Forward   RouteKind = ""
	Blackhole RouteKind = "blackhole" // drop silently
)

// Route is a route of the main table.
type Route struct {
	Kind     RouteKind
	Dst      netip.Prefix // masked
	Via      netip.Addr   // invalid: directly on Dev
	Dev      string       // empty unless Kind is Forward
	OnLink   bool         // treat Via as reachable on Dev without checking
	Scope    uint8        // IPv4 only, IPv6 has no scopes; ScopeGlobal for most routes
	Metric   int
	Protocol int // RouteProtocol in wanted states
}

// Scopes of routes (RT_SCOPE_... in linux/rtnetlink.h). Those below ScopeLink mean the same to the
// kernel for a route with a gateway: the destination is not on the link.
const (
	ScopeGlobal uint8 = 0
	ScopeLink   uint8 = 253
)

// Neighbour is a permanent neighbour entry: IP has the address MAC on Dev.
type Neighbour struct {
	Dev string
	IP  netip.Addr
	MAC MAC
}

// FDBEntry is a permanent forwarding entry of a VXLAN device: frames for MAC go to the tunnel
// endpoint Dst.
type FDBEntry struct {
	Dev string
	MAC MAC
	Dst netip.Addr
}

// FOUPort is a UDP port (IPv4, every local address) whose payload the kernel decapsulates as bare
// IPv4 packets: foo over UDP with IP protocol 4.
type FOUPort struct{ Port int }

// Tunnel is the WireGuard configuration of a device.
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
	// Allowed and Allowed6 are the peer's subnets; an invalid one is omitted.
	Allowed, Allowed6 netip.Prefix
}

// PeerID identifies a WireGuard peer.
type PeerID struct {
	Dev       string
	PublicKey Key
}

func (p Peer) id() PeerID { return PeerID{p.Dev, p.PublicKey} }

// Command is a set of command lines of the extension backend (see RunCommand). Add runs when the
// command is first wanted, Remove when it is no longer wanted, Shutdown in Kernel.Shutdown. An
// empty one is not run.
type Command struct {
	ID          string // the subnet that it concerns
	Add, Remove string
	Shutdown    string
	Env         string // NAME=value lines
	Stdin       string
}

// FlannelRoute is a route that flannel's host-gw backend leaves for a node: subnet via public
// address. Weft removes such a route, because it takes precedence over a wider route of another
// backend.
type FlannelRoute struct {
	Dst netip.Prefix
	Via netip.Addr
}

// Unreachable is a node's subnet that the plan cannot reach, with the reason.
type Unreachable struct {
	Node   string // the node's name, or its address if the lease has no name
	Subnet netip.Prefix
	Reason string // one line for a human
}

// State is kernel state as values: wanted (from a plan) or existing (from the kernel). The slices
// are sets. A State is never modified after it has been passed on.
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
	Policies   []Policy

	// The following fields are set in wanted states only.

	Networks []netip.Prefix // Weft owns state inside these only
	// ports that the kernel must not hold, because the packet engine binds them
	FreePorts     []FOUPort
	FlannelRoutes []FlannelRoute
	Unreachable   []Unreachable // leases without a route
	// Associations are the pairs of nodes that need security associations, with the settings IKE.
	Associations []Association
	IKE          IKE
	// NoTrack lists this node's UDP addresses whose tunnelled packets need no connection tracking.
	NoTrack []netip.AddrPort
}
