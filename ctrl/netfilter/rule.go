package netfilter

import (
	"fmt"
	"net/netip"
)

// family is an address family.
type family uint8

const (
	ipv4 family = 4
	ipv6 family = 6
)

// families returns both address families, for loops.
func families() []family { return []family{ipv4, ipv6} }

func (f family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// familyOf returns the family of an address. An IPv4-mapped IPv6 address counts as IPv4.
func familyOf(a netip.Addr) family {
	if a.Unmap().Is4() {
		return ipv4
	}
	return ipv6
}

// multicast returns the multicast prefix, which is never masqueraded: 224.0.0.0/4 (RFC 5771) or
// ff00::/8 (RFC 4291 section 2.7).
func (f family) multicast() netip.Prefix {
	if f == ipv4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4)
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8)
}

// Names of iptables tables, built-in chains (hooks), own chains, and rule comments. A rule states
// its place in these terms; the nftables applier translates them.
const (
	tableNAT    = "nat"
	tableFilter = "filter"
	tableRaw    = "raw"
	tableMangle = "mangle"

	hookPostrouting = "POSTROUTING"
	hookForward     = "FORWARD"
	hookInput       = "INPUT"
	hookPrerouting  = "PREROUTING"
	hookOutput      = "OUTPUT"

	// chainMasquerade and chainForward have flannel's names (pkg/trafficmngr/iptables), so that
	// each daemon finds and replaces the rules that the other one left.
	chainMasquerade = "FLANNEL-POSTRTG"
	chainForward    = "FLANNEL-FWD"
	chainKeepSource = "WEFT-KEEP-SOURCE"
	chainDocker     = "WEFT-DOCKER"

	// chainDockerUser is dockerd's chain for the rules of others. dockerd puts it in front of its
	// own chains whenever it starts, and never empties it.
	chainDockerUser = "DOCKER-USER"

	commentMasquerade = "flanneld masq"
	commentForward    = "flanneld forward"
	commentKeepSource = "weft keep source"
	commentNoTrack    = "weft notrack" // followed by the network
	commentTunnelPort = "weft tunnel port"
	commentDocker     = "weft docker"
)

// layout is the part of an iptables table that can hold managed rules.
type layout struct {
	table     string
	hooks     []string // chains of others, most built in, that may hold single managed rules
	ownChains []string // chains that hold only managed rules, in the order packets traverse them
}

func layouts() []layout {
	return []layout{
		{tableNAT, []string{hookPostrouting}, []string{chainKeepSource, chainMasquerade}},
		{tableFilter, []string{hookForward, chainDockerUser},
			[]string{chainDocker, chainForward}},
		{tableRaw, []string{hookPrerouting, hookOutput}, nil},
		{tableMangle, []string{hookForward, hookInput}, nil},
	}
}

// verdict is the action of a rule on the packets that match.
type verdict uint8

const (
	// verdictJump continues in the chain rule.to.
	verdictJump verdict = iota + 1
	// verdictReturn returns to the calling chain, or to the policy.
	verdictReturn
	// verdictAccept ends the table.
	verdictAccept
	// verdictKeepSource ends source translation: no later rule of any program may rewrite the
	// packet's source.
	verdictKeepSource
	// verdictMasquerade rewrites the source to an address of the outgoing device.
	verdictMasquerade
	// verdictMasqueradeRandom is verdictMasquerade with a random source port. Without it, flows
	// translated at the same time may race for a port, and the loser's packet is dropped.
	verdictMasqueradeRandom
	// verdictNoTrack exempts the packet from connection tracking.
	verdictNoTrack
	// verdictDrop counts and drops the packet.
	verdictDrop
)

// addrMatch matches a source or destination address. The zero value matches every address.
type addrMatch struct {
	prefix netip.Prefix
	not    bool
}

func is(p netip.Prefix) addrMatch    { return addrMatch{prefix: p} }
func isNot(p netip.Prefix) addrMatch { return addrMatch{prefix: p, not: true} }

// isAddr matches a single address, or every address if a is unspecified or invalid.
func isAddr(a netip.Addr) addrMatch {
	if a = a.Unmap(); !a.IsValid() || a.IsUnspecified() {
		return addrMatch{}
	}
	return is(netip.PrefixFrom(a, a.BitLen()))
}

// overlaps reports whether m matches some address of p.
func (m addrMatch) overlaps(p netip.Prefix) bool {
	switch {
	case !m.prefix.IsValid():
		return true
	case m.not:
		return !contains(m.prefix, p)
	default:
		return m.prefix.Overlaps(p)
	}
}

// within reports whether m matches only addresses of p.
func (m addrMatch) within(p netip.Prefix) bool {
	return m.prefix.IsValid() && !m.not && contains(p, m.prefix)
}

// contains reports whether inner is a subset of outer.
func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// rule is a packet filter rule as a comparable value. Both appliers write these rules and parse the
// kernel's rules into them.
type rule struct {
	table, chain string
	src, dst     addrMatch
	mark         uint32 // bits of the packet mark that must be set; 0 matches every mark
	udpPort      uint16 // UDP destination port; 0 matches every protocol
	verdict      verdict
	to           string // target chain of verdictJump
	comment      string
}
