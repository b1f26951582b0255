package netfilter

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// kubeProxyMark is the packet mark bit with which kube-proxy requests masquerading
// (--iptables-masquerade-bit=14). kube-proxy has its own rule for it; masquerading twice would be
// wrong.
const kubeProxyMark = 0x4000

// Net is the pod network of one address family.
type Net struct {
	// Network is the network of the whole cluster, Subnet this node's part of it. Host bits are
	// ignored.
	Network, Subnet netip.Prefix
}

// Desired is the complete set of rules that this host should have. Rules it does not ask for are
// removed.
type Desired struct {
	// Nets holds one entry per address family in use.
	Nets []Net

	// Masquerade rewrites the source of packets that pods send out of the cluster network, and of
	// packets that enter it from outside (flannel's --ip-masq).
	Masquerade bool
	// NoRandomPorts masquerades without random source ports: the port stays the same where possible
	// (--ip-masq-fully-random-disable).
	NoRandomPorts bool
	// Forward accepts forwarded packets from and to the cluster network (--iptables-forward-rules).
	Forward bool
	// KeepSource preserves pods' source addresses between nodes where other programs' rules would
	// rewrite them. The most common one is dockerd's MASQUERADE rule for packets that leave by a
	// device other than its bridge.
	KeepSource bool
	// NoTrack holds this daemon's UDP address and port, one per address family of the underlay.
	// Packets that the node sends to that port or receives on it bypass connection tracking. An
	// unspecified address (0.0.0.0 or ::) means any address of its family. A firewall on the host
	// must then accept the port explicitly, since replies no longer match a connection. If it drops
	// ICMP errors in conntrack state INVALID, the packets stay in connection tracking.
	NoTrack []netip.AddrPort
	// TunnelPorts holds the addresses and UDP ports of tunnels to which pods must not send. A pod's
	// packet to such a port of another node would arrive there with this node's address, so that
	// node would take its payload for a packet of this node. Packets from pods to these ports of
	// any address outside the network, and of this node, are dropped.
	TunnelPorts []netip.AddrPort

	// NFTables requests nftables (EnableNFTables in the network config). Otherwise iptables is used
	// if it works, else nftables.
	NFTables bool
}

// equal reports whether d and e ask for the same rules.
func (d Desired) equal(e Desired) bool {
	if !slices.Equal(d.Nets, e.Nets) || !slices.Equal(d.NoTrack, e.NoTrack) ||
		!slices.Equal(d.TunnelPorts, e.TunnelPorts) {
		return false
	}
	return d.Masquerade == e.Masquerade && d.NoRandomPorts == e.NoRandomPorts &&
		d.Forward == e.Forward && d.KeepSource == e.KeepSource && d.NFTables == e.NFTables
}

// validate returns an error if d cannot be expressed as rules.
func (d Desired) validate() error {
	seen := map[family]bool{}
	for _, n := range d.Nets {
		if !n.Network.IsValid() {
			return errors.New("network is not set")
		}
		f := familyOf(n.Network.Addr())
		if seen[f] {
			return fmt.Errorf("more than one %s network: %v", f, n.Network)
		}
		seen[f] = true
		needsSubnet := d.Masquerade || d.KeepSource
		if needsSubnet && (!n.Subnet.IsValid() || familyOf(n.Subnet.Addr()) != f) {
			return fmt.Errorf("network %v: no %s subnet for this node", n.Network, f)
		}
	}
	for _, a := range d.NoTrack {
		if !a.Addr().IsValid() || a.Port() == 0 {
			return fmt.Errorf("invalid NoTrack address and port: %v", a)
		}
	}
	for _, a := range d.TunnelPorts {
		if !a.Addr().IsValid() || a.Port() == 0 {
			return fmt.Errorf("invalid TunnelPorts address and port: %v", a)
		}
	}
	return nil
}

// rules returns the wanted rules of one family, in evaluation order within each chain. The numbers
// in the comments below refer to the table in the package documentation.
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
			if subnet.IsValid() {
				rs = append(rs, dockerRules(network, subnet)...)
			}
		}
		rs = append(rs, tunnelPortRules(network, d.tunnelPorts(f))...)
	}
	for _, a := range d.NoTrack {
		if familyOf(a.Addr()) == f {
			rs = append(rs, noTrackRules(a, d.noTrackComment())...)
		}
	}
	return rs
}

// masqueradeRules returns rules 1 to 7, which are flannel's.
func masqueradeRules(network, subnet, multicast netip.Prefix, noRandomPorts bool) []rule {
	in := func(r rule) rule {
		r.table, r.chain, r.comment = tableNAT, chainMasquerade, commentMasquerade
		return r
	}
	verdict := verdictMasqueradeRandom
	if noRandomPorts {
		verdict = verdictMasquerade
	}
	return []rule{
		jumpTo(chainMasquerade),
		in(rule{mark: kubeProxyMark, verdict: verdictReturn}),
		in(rule{src: is(subnet), dst: is(network), verdict: verdictReturn}),
		in(rule{src: is(network), dst: is(subnet), verdict: verdictReturn}),
		// Traffic from outside that another node forwarded here keeps its source, so that the pod
		// sees the real client.
		in(rule{src: isNot(network), dst: is(subnet), verdict: verdictReturn}),
		in(rule{src: is(network), dst: isNot(multicast), verdict: verdict}),
		in(rule{src: isNot(network), dst: is(network), verdict: verdict}),
	}
}

// forwardRules returns rules 8 to 10, which are flannel's.
func forwardRules(network netip.Prefix) []rule {
	in := func(r rule) rule {
		r.table, r.chain, r.comment = tableFilter, chainForward, commentForward
		return r
	}
	return []rule{
		jumpTo(chainForward),
		in(rule{src: is(network), verdict: verdictAccept}),
		in(rule{dst: is(network), verdict: verdictAccept}),
	}
}

// dockerRules returns rules 20 to 22, which flannel does not have. dockerd drops packets to
// unpublished ports before rule 8 is reached. They accept packets of other nodes' pods only:
// dockerd decides about those of its other networks and between containers of this node.
func dockerRules(network, subnet netip.Prefix) []rule {
	in := func(r rule) rule {
		r.table, r.chain, r.comment = tableFilter, chainDocker, commentDocker
		return r
	}
	return []rule{
		jumpTo(chainDocker),
		in(rule{src: is(subnet), dst: is(subnet), verdict: verdictReturn}),
		in(rule{src: is(network), dst: is(subnet), verdict: verdictAccept}),
	}
}

// keepSourceRules returns rules 11 to 15, which flannel does not have. They skip packets that
// kube-proxy marked and packets that stay on this node: a container that reaches itself through its
// own published port is masqueraded by dockerd, and must be.
func keepSourceRules(network, subnet netip.Prefix) []rule {
	in := func(r rule) rule {
		r.table, r.chain, r.comment = tableNAT, chainKeepSource, commentKeepSource
		return r
	}
	return []rule{
		jumpTo(chainKeepSource),
		in(rule{mark: kubeProxyMark, verdict: verdictReturn}),
		in(rule{src: is(subnet), dst: is(subnet), verdict: verdictReturn}),
		in(rule{src: is(subnet), dst: is(network), verdict: verdictKeepSource}),
		in(rule{src: is(network), dst: is(subnet), verdict: verdictKeepSource}),
	}
}

// noTrackRules returns rules 16 and 17, which flannel does not have. They match the local address,
// so that a pod's traffic to the same port number elsewhere is still tracked and masqueraded.
func noTrackRules(local netip.AddrPort, comment string) []rule {
	addr, port := isAddr(local.Addr()), local.Port()
	return []rule{
		{table: tableRaw, chain: hookPrerouting, dst: addr, udpPort: port,
			verdict: verdictNoTrack, comment: comment},
		{table: tableRaw, chain: hookOutput, src: addr, udpPort: port,
			verdict: verdictNoTrack, comment: comment},
	}
}

// tunnelPorts returns the distinct ports of one family.
func (d Desired) tunnelPorts(f family) []uint16 {
	var ports []uint16
	for _, a := range d.TunnelPorts {
		if familyOf(a.Addr()) == f && !slices.Contains(ports, a.Port()) {
			ports = append(ports, a.Port())
		}
	}
	return ports
}

// tunnelPortRules returns rules 18 and 19, which flannel does not have. Table mangle sees packets
// after destination translation, such as a Service's, and before the filter table, whose rules may
// accept all packets of a bridge. Packets between pods are not concerned: they are inside a tunnel.
func tunnelPortRules(network netip.Prefix, ports []uint16) []rule {
	var rs []rule
	for _, port := range ports {
		r := rule{table: tableMangle, src: is(network), udpPort: port, verdict: verdictDrop,
			comment: commentTunnelPort}
		out, in := r, r
		out.chain, out.dst = hookForward, isNot(network)
		in.chain = hookInput
		rs = append(rs, out, in)
	}
	return rs
}

// noTrackComment returns the comment of rules 16 and 17. It names the network, which identifies the
// daemon on this host.
func (d Desired) noTrackComment() string {
	if len(d.Nets) == 0 {
		return commentNoTrack
	}
	return commentNoTrack + " " + d.Nets[0].Network.Masked().String()
}

// jumpTo returns the rule that jumps to one of the own chains, from a built-in chain or dockerd's.
func jumpTo(chain string) rule {
	r := rule{table: tableNAT, chain: hookPostrouting, verdict: verdictJump, to: chain,
		comment: commentMasquerade}
	switch chain {
	case chainForward:
		r.table, r.chain, r.comment = tableFilter, hookForward, commentForward
	case chainDocker:
		r.table, r.chain, r.comment = tableFilter, chainDockerUser, commentDocker
	case chainKeepSource:
		r.comment = commentKeepSource
	}
	return r
}
