package netfilter

import (
	"fmt"
	"net/netip"
)

// family is the address family of one set of rules.
type family uint8

const (
	ipv4 family = 4
	ipv6 family = 6
)

// families is the loop over both.
func families() []family { return []family{ipv4, ipv6} }

func (f family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// familyOf tells the family of an address; an IPv4 address mapped into IPv6 counts as IPv4.
func familyOf(a netip.Addr) family {
	if a.Unmap().Is4() {
		return ipv4
	}
	return ipv6
}

// multicast is what never leaves masqueraded: 224.0.0.0/4 (RFC 5771), ff00::/8 (RFC 4291 section 2.7).
func (f family) multicast() netip.Prefix {
	if f == ipv4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4)
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8)
}

// Tables and chains of the kernel's iptables that we hang rules into, and the chains that are ours. Each rule says its
// place in these words; the nftables applier translates them.
const (
	tableNAT    = "nat"
	tableFilter = "filter"
	tableRaw    = "raw"

	hookPostrouting = "POSTROUTING"
	hookForward     = "FORWARD"
	hookPrerouting  = "PREROUTING"
	hookOutput      = "OUTPUT"

	// chainMasquerade and chainForward have flannel's names (pkg/trafficmngr/iptables), so that either daemon finds and
	// replaces what the other one left.
	chainMasquerade = "FLANNEL-POSTRTG"
	chainForward    = "FLANNEL-FWD"
	chainKeepSource = "WEFT-KEEP-SOURCE"

	commentMasquerade = "flanneld masq"
	commentForward    = "flanneld forward"
	commentKeepSource = "weft keep source"
	commentNoTrack    = "weft notrack" // with the network behind it
)

// layout is the part of an iptables table that concerns us.
type layout struct {
	table string
	hooks []string // built-in chains that may hold single rules of ours
	own   []string // chains of ours, in the order in which packets come to them
}

func layouts() []layout {
	return []layout{
		{tableNAT, []string{hookPostrouting}, []string{chainKeepSource, chainMasquerade}},
		{tableFilter, []string{hookForward}, []string{chainForward}},
		{tableRaw, []string{hookPrerouting, hookOutput}, nil},
	}
}

// verdict is what happens to a packet that a rule matches.
type verdict uint8

const (
	// jump goes through the chain rule.to.
	jump verdict = iota + 1
	// back returns to the calling chain, or to the policy.
	back
	// accept ends the table.
	accept
	// keepSource ends address translation: no later rule, whoever wrote it, may rewrite the packet's source.
	keepSource
	// masquerade rewrites the source to an address of the device the packet leaves by.
	masquerade
	// masqueradeRandom also draws the source port at random, which avoids the port races that lose a packet when many
	// flows are translated at once.
	masqueradeRandom
	// noTrack hides the packet from connection tracking.
	noTrack
)

// addrMatch restricts a source or destination; the zero value matches every address.
type addrMatch struct {
	prefix netip.Prefix
	not    bool
}

func is(p netip.Prefix) addrMatch    { return addrMatch{prefix: p} }
func isNot(p netip.Prefix) addrMatch { return addrMatch{prefix: p, not: true} }

// isHost matches one address, or all when it is not a definite one.
func isHost(a netip.Addr) addrMatch {
	if a = a.Unmap(); !a.IsValid() || a.IsUnspecified() {
		return addrMatch{}
	}
	return is(netip.PrefixFrom(a, a.BitLen()))
}

// mayMatch tells whether some address of p is matched.
func (m addrMatch) mayMatch(p netip.Prefix) bool {
	switch {
	case !m.prefix.IsValid():
		return true
	case m.not:
		return !contains(m.prefix, p)
	default:
		return m.prefix.Overlaps(p)
	}
}

// within tells whether only addresses of p are matched.
func (m addrMatch) within(p netip.Prefix) bool {
	return m.prefix.IsValid() && !m.not && contains(p, m.prefix)
}

// contains tells whether all of inner lies in outer.
func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// rule is one packet filter rule as a value, with == for equality. Both appliers write these and read the kernel's rules
// back into these.
type rule struct {
	table, chain string
	src, dst     addrMatch
	mark         uint32 // bits of the packet mark that must be set; 0: not looked at
	udpPort      uint16 // UDP destination port; 0: any protocol
	verdict      verdict
	to           string // the chain of a jump
	comment      string
}
