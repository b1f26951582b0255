package netfilter

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// kubeProxyMark is the packet mark bit by which kube-proxy asks for masquerading (--iptables-masquerade-bit=14); it does
// that itself, and twice would be wrong.
const kubeProxyMark = 0x4000

// Net is the pod network of one address family.
type Net struct {
	// Network is the whole cluster's, Subnet this node's own part of it. Bits behind the prefix length do not matter.
	Network, Subnet netip.Prefix
}

// Desired says which rules this host is to have. It is a complete state: what it does not ask for is taken away.
type Desired struct {
	// Nets holds one entry for each address family in use.
	Nets []Net

	// Masquerade rewrites the source of what pods send out of the cluster network, and of what comes into it from
	// elsewhere (flannel's --ip-masq).
	Masquerade bool
	// NoRandomPorts masquerades without random source ports: the port stays the same where possible
	// (--ip-masq-fully-random-disable).
	NoRandomPorts bool
	// Forward accepts forwarded packets from and to the cluster network (--iptables-forward-rules).
	Forward bool
	// KeepSource protects pods' source addresses between nodes from source rewriting that others do, above all from the
	// MASQUERADE rule of a dockerd for everything that leaves by another device than its bridge. Usually set along with
	// Masquerade.
	KeepSource bool
	// NoTrack holds our own UDP address and port, one for each address family of the underlay: what is sent to that port
	// by us or to us goes past connection tracking. An unspecified address (0.0.0.0 or ::) means any of its family. A
	// firewall of the host must then accept the port itself (answers are no longer known as such), and ICMP errors about
	// our packets even where it drops what conntrack calls invalid.
	NoTrack []netip.AddrPort

	// NFTables asks for nftables (EnableNFTables in the network config). Otherwise iptables is taken where it works, and
	// nftables where only that does.
	NFTables bool
}

// equal tells whether both ask for the same.
func (d Desired) equal(e Desired) bool {
	if !slices.Equal(d.Nets, e.Nets) || !slices.Equal(d.NoTrack, e.NoTrack) {
		return false
	}
	return d.Masquerade == e.Masquerade && d.NoRandomPorts == e.NoRandomPorts && d.Forward == e.Forward &&
		d.KeepSource == e.KeepSource && d.NFTables == e.NFTables
}

// check finds what no rules can be made of.
func (d Desired) check() error {
	seen := map[family]bool{}
	for _, n := range d.Nets {
		if !n.Network.IsValid() {
			return errors.New("a network is not set")
		}
		f := familyOf(n.Network.Addr())
		if seen[f] {
			return fmt.Errorf("%s has two networks, the second is %v", f, n.Network)
		}
		seen[f] = true
		needsSubnet := d.Masquerade || d.KeepSource
		if needsSubnet && (!n.Subnet.IsValid() || familyOf(n.Subnet.Addr()) != f) {
			return fmt.Errorf("network %v has no %s subnet of this node", n.Network, f)
		}
	}
	for _, a := range d.NoTrack {
		if !a.Addr().IsValid() || a.Port() == 0 {
			return fmt.Errorf("%v is no address and port to leave untracked", a)
		}
	}
	return nil
}

// rules lists everything wanted for one family, in the order of evaluation within each chain. The numbers in the
// comments are those of the table in this package's documentation.
func (d Desired) rules(f family) []rule {
	var rs []rule
	for _, n := range d.Nets {
		if familyOf(n.Network.Addr()) != f {
			continue
		}
		network, subnet := n.Network.Masked(), n.Subnet.Masked()
		if d.KeepSource {
			rs = append(rs, keepSourceRules(network, subnet)...)
		}
		if d.Masquerade {
			rs = append(rs, masqueradeRules(network, subnet, f.multicast(), d.NoRandomPorts)...)
		}
		if d.Forward {
			rs = append(rs, forwardRules(network)...)
		}
	}
	for _, a := range d.NoTrack {
		if familyOf(a.Addr()) == f {
			rs = append(rs, noTrackRules(a, d.noTrackComment())...)
		}
	}
	return rs
}

// masqueradeRules are flannel's, rules 1 to 7.
func masqueradeRules(network, subnet, multicast netip.Prefix, plainPorts bool) []rule {
	in := func(r rule) rule {
		r.table, r.chain, r.comment = tableNAT, chainMasquerade, commentMasquerade
		return r
	}
	out := masqueradeRandom
	if plainPorts {
		out = masquerade
	}
	return []rule{
		entrance(chainMasquerade),
		in(rule{mark: kubeProxyMark, verdict: back}),
		in(rule{src: is(subnet), dst: is(network), verdict: back}),
		in(rule{src: is(network), dst: is(subnet), verdict: back}),
		// Traffic from outside that a node sent on to this one keeps its source, so that the pod sees the real client.
		in(rule{src: isNot(network), dst: is(subnet), verdict: back}),
		in(rule{src: is(network), dst: isNot(multicast), verdict: out}),
		in(rule{src: isNot(network), dst: is(network), verdict: out}),
	}
}

// forwardRules are flannel's, rules 8 to 10.
func forwardRules(network netip.Prefix) []rule {
	in := func(r rule) rule {
		r.table, r.chain, r.comment = tableFilter, chainForward, commentForward
		return r
	}
	return []rule{
		entrance(chainForward),
		in(rule{src: is(network), verdict: accept}),
		in(rule{dst: is(network), verdict: accept}),
	}
}

// keepSourceRules are ours, rules 11 to 15. What kube-proxy marked and what stays on this node is left to those who
// handle it: a container that reaches itself through its own published port is masqueraded by dockerd, and must be.
func keepSourceRules(network, subnet netip.Prefix) []rule {
	in := func(r rule) rule {
		r.table, r.chain, r.comment = tableNAT, chainKeepSource, commentKeepSource
		return r
	}
	return []rule{
		entrance(chainKeepSource),
		in(rule{mark: kubeProxyMark, verdict: back}),
		in(rule{src: is(subnet), dst: is(subnet), verdict: back}),
		in(rule{src: is(subnet), dst: is(network), verdict: keepSource}),
		in(rule{src: is(network), dst: is(subnet), verdict: keepSource}),
	}
}

// noTrackRules are ours, rules 16 and 17. They name the local address, so that a pod that talks to the same port number
// elsewhere is still tracked and masqueraded.
func noTrackRules(own netip.AddrPort, comment string) []rule {
	host := isHost(own.Addr())
	return []rule{
		{table: tableRaw, chain: hookPrerouting, dst: host, udpPort: own.Port(), verdict: noTrack, comment: comment},
		{table: tableRaw, chain: hookOutput, src: host, udpPort: own.Port(), verdict: noTrack, comment: comment},
	}
}

// noTrackComment says whose a rule against tracking is, by the network that tells daemons on one host apart.
func (d Desired) noTrackComment() string {
	if len(d.Nets) == 0 {
		return commentNoTrack
	}
	return commentNoTrack + " " + d.Nets[0].Network.Masked().String()
}

// entrance is the rule of a built-in chain that leads to one of ours.
func entrance(chain string) rule {
	r := rule{table: tableNAT, chain: hookPostrouting, verdict: jump, to: chain, comment: commentMasquerade}
	switch chain {
	case chainForward:
		r.table, r.chain, r.comment = tableFilter, hookForward, commentForward
	case chainKeepSource:
		r.comment = commentKeepSource
	}
	return r
}
