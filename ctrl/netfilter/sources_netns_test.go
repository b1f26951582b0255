package netfilter

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"weft/deploy/lab"
	"weft/lease/subnetenv"
)

// natRule describes a source-rewriting rule like dockerd's.
type natRule struct {
	name    string
	variant string // suffix of the iptables programs; "table" means a foreign nftables table
	chain   string // chain of the rule, as with CNI plugins and firewalld; empty for POSTROUTING
}

// testOverlay has two nodes with two pods each, connected by plain routes. The lab's root is the
// outside.
type testOverlay struct {
	*lab.Lab
	nets [2][]Net // by node
}

var (
	podNetwork4 = netip.MustParsePrefix("10.5.0.0/16")
	podNetwork6 = netip.MustParsePrefix("fc00:5::/48")
)

func newTestOverlay(t *testing.T) *testOverlay {
	t.Helper()
	underlay6 := []netip.Prefix{netip.MustParsePrefix("fd31::/64")}
	o := &testOverlay{Lab: lab.Start(t, lab.Options{PodsPerNode: 2, Underlay6: underlay6})}
	for i, n := range o.Nodes {
		env := subnetenv.File{Network: podNetwork4, Network6: podNetwork6, MTU: 1500,
			Subnet:  netip.MustParsePrefix(fmt.Sprintf("10.5.%d.1/24", i+1)),
			Subnet6: netip.MustParsePrefix(fmt.Sprintf("fc00:5:0:%d::1/64", i+1))}
		if err := n.Attach(env); err != nil {
			t.Fatal(err)
		}
		o.nets[i] = []Net{{podNetwork4, env.Subnet}, {podNetwork6, env.Subnet6}}
	}
	for i, n := range o.Nodes {
		other := o.Nodes[1-i]
		for _, from := range []*lab.NS{other.NS, o.Root.NS} {
			route(t, from, o.nets[i][0].Subnet.Masked(), n.Addr)
			route(t, from, o.nets[i][1].Subnet.Masked(), n.Addr6)
		}
	}
	// The outside reaches one pod of the second node through the first node.
	pod := o.Nodes[1].Pods[1]
	route(t, o.Root.NS, netip.PrefixFrom(pod.Addr, 32), o.Nodes[0].Addr)
	route(t, o.Root.NS, netip.PrefixFrom(pod.Addr6, 128), o.Nodes[0].Addr6)
	return o
}

func route(t *testing.T, ns *lab.NS, to netip.Prefix, via netip.Addr) {
	t.Helper()
	if err := ns.AddRoute(to, via, ""); err != nil {
		t.Fatal(err)
	}
}

// seenSource sends a datagram and returns the source address that the receiver sees.
func seenSource(from, to *lab.NS, dst netip.Addr) (src netip.Addr, err error) {
	var receiver *net.UDPConn
	err = to.Do(func() (err error) {
		receiver, err = net.ListenUDP("udp", &net.UDPAddr{IP: dst.AsSlice()})
		return err
	})
	if err != nil {
		return src, err
	}
	defer receiver.Close()
	port := receiver.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	err = from.Do(func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, port)))
		if err != nil {
			return err
		}
		_, err = c.Write([]byte("source?"))
		return errors.Join(err, c.Close())
	})
	if err != nil {
		return src, err
	}
	if err := receiver.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return src, err
	}
	_, at, err := receiver.ReadFromUDPAddrPort(make([]byte, 64))
	return at.Addr().Unmap(), err
}

// setNATRule adds or removes a rule like dockerd's on the first node: packets that pods send by a
// device other than their bridge get the node's address.
func (o *testOverlay) setNATRule(t *testing.T, r natRule, present bool) {
	t.Helper()
	node := o.Nodes[0].NS
	if r.variant == "table" {
		inNS(t, node, func() error { return foreignTable(o.nets[0], present) })
		return
	}
	for i, f := range families() {
		nat := func(args ...string) {
			runIn(t, node, firewall{variant: r.variant}.program(f), append([]string{"-t", "nat"}, args...)...)
		}
		command := "-D"
		if present {
			command = "-I"
		}
		rule := []string{"-s", o.nets[0][i].Subnet.Masked().String(), "!", "-o", "cni0", "-j", "MASQUERADE"}
		if r.chain == "" {
			nat(append([]string{command, "POSTROUTING"}, rule...)...)
			continue
		}
		if present {
			nat("-N", r.chain)
			nat(append([]string{"-A", r.chain}, rule...)...)
		}
		nat(command, "POSTROUTING", "-j", r.chain)
		if !present {
			nat("-F", r.chain)
			nat("-X", r.chain)
		}
	}
}

// foreignTable implements setNATRule with a separate nftables table, at the hook and priority of
// iptables' rules.
func foreignTable(nets []Net, present bool) error {
	conn, err := dialNFT()
	if err != nil {
		return err
	}
	for i, f := range families() {
		t := &nftables.Table{Name: "foreign", Family: nftFamily(f)}
		conn.AddTable(t)
		if !present {
			conn.DelTable(t)
			continue
		}
		c := conn.AddChain(&nftables.Chain{Name: "post", Table: t, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		device := make([]byte, unix.IFNAMSIZ)
		copy(device, "cni0")
		exprs := encodeAddr(f, true, is(nets[i].Subnet.Masked()))
		exprs = append(exprs, &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: register},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: device}, &expr.Masq{})
		conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: exprs})
	}
	return conn.Flush()
}

// TestNetnsSourceAddresses sends packets in every combination and checks the source address that
// arrives.
func TestNetnsSourceAddresses(t *testing.T) {
	none := natRule{name: "no docker"}
	natRules := map[string][]natRule{
		"nftables": {none, {name: "docker by iptables-nft", variant: "-nft"},
			{name: "docker by iptables-legacy", variant: "-legacy"}, {name: "docker by nftables", variant: "table"}},
		"iptables-nft":    {none, {name: "docker", variant: "-nft"}, {"a chain", "-nft", "CNI-0123"}},
		"iptables-legacy": {none, {name: "docker", variant: "-legacy"}, {"a chain", "-legacy", "CNI-0123"}},
	}
	for _, fw := range firewalls() {
		t.Run(fw.name, func(t *testing.T) {
			fw.require(t)
			o := newTestOverlay(t)
			m := fw.manager()
			for _, nat := range natRules[fw.name] {
				for _, masquerade := range []bool{true, false} {
					t.Run(fmt.Sprintf("%s, masquerade %v", nat.name, masquerade), func(t *testing.T) {
						d := Desired{Nets: o.nets[0], Masquerade: masquerade, KeepSource: true, Forward: true,
							NFTables: fw.nft}
						withNAT := nat.name != "no docker"
						if withNAT && nat.variant != "table" {
							requireProgram(t, "iptables"+nat.variant)
						}
						if withNAT {
							o.setNATRule(t, nat, true)
							defer o.setNATRule(t, nat, false)
						}
						set(t, o.Nodes[0].NS, m, d)
						o.checkSources(t, masquerade, withNAT)
					})
				}
			}
		})
	}
}

// checkSources checks the source address of every flow. The rules and the NAT rule are on the first
// node.
func (o *testOverlay) checkSources(t *testing.T, masquerade, withNAT bool) {
	t.Helper()
	near, far := o.Nodes[0], o.Nodes[1]
	type host struct {
		ns    *lab.NS
		addrs [2]netip.Addr
	}
	pod, sameNode := near.Pods[0], near.Pods[1]
	podHost := host{pod.NS, [2]netip.Addr{pod.Addr, pod.Addr6}}
	outside := host{o.Root.NS, [2]netip.Addr{o.Root.Addr, o.Root.Addr6}}
	nearHost := host{near.NS, [2]netip.Addr{near.Addr, near.Addr6}}
	gateway := func(n *lab.Node, i int) host {
		return host{n.NS, [2]netip.Addr{o.nets[i][0].Subnet.Addr(), o.nets[i][1].Subnet.Addr()}}
	}
	rewrittenIf := func(yes bool, otherwise host) host {
		if yes {
			return nearHost
		}
		return otherwise
	}
	for _, tt := range []struct {
		name     string
		from, to host
		want     host
	}{
		{"pod to pod on another node", podHost,
			host{far.Pods[0].NS, [2]netip.Addr{far.Pods[0].Addr, far.Pods[0].Addr6}}, podHost},
		{"pod to pod on the same node", podHost,
			host{sameNode.NS, [2]netip.Addr{sameNode.Addr, sameNode.Addr6}}, podHost},
		{"pod from another node", host{far.Pods[0].NS, [2]netip.Addr{far.Pods[0].Addr, far.Pods[0].Addr6}}, podHost,
			host{far.Pods[0].NS, [2]netip.Addr{far.Pods[0].Addr, far.Pods[0].Addr6}}},
		{"pod to its own host", podHost, nearHost, podHost},
		{"pod to its gateway", podHost, gateway(near, 0), podHost},
		{"pod to another host's pod address", podHost, gateway(far, 1), podHost},
		{"pod to outside", podHost, outside, rewrittenIf(masquerade || withNAT, podHost)},
		{"pod to another host's own address", podHost, host{far.NS, [2]netip.Addr{far.Addr, far.Addr6}},
			rewrittenIf(masquerade || withNAT, podHost)},
		{"outside to pod, directly to its node", outside, podHost, outside},
		{"outside to pod, through another node", outside,
			host{far.Pods[1].NS, [2]netip.Addr{far.Pods[1].Addr, far.Pods[1].Addr6}},
			rewrittenIf(masquerade, outside)},
	} {
		for i, f := range families() {
			got, err := seenSource(tt.from.ns, tt.to.ns, tt.to.addrs[i])
			if err != nil {
				t.Errorf("%s, %s: %v", tt.name, f, err)
			} else if got != tt.want.addrs[i] {
				t.Errorf("%s, %s: source %v, want %v", tt.name, f, got, tt.want.addrs[i])
			}
		}
	}
}
