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

// docker is a way in which a source rewriting rule like dockerd's may be there.
type natRule struct {
	name    string
	variant string // of the iptables programs; "table" is a foreign nftables table
	chain   string // that POSTROUTING leads to and that has the rule, as CNI plugins and firewalld do it; empty: none
}

// overlay is two nodes with two pods each that reach each other by plain routes, and the lab's root as the outside.
type testOverlay struct {
	*lab.Lab
	nets [2][]Net // of each node
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
	// One pod of the second node is reached from outside by way of the first node.
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

// seen sends a datagram and returns the source that the receiver sees.
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
		_, err = c.Write([]byte("whose source?"))
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

// dockerRule puts a rule like dockerd's on the first node, or takes it away: what pods send out by another device than
// their bridge gets the node's address.
func (o *testOverlay) setNATRule(t *testing.T, d natRule, present bool) {
	t.Helper()
	node := o.Nodes[0].NS
	if d.variant == "table" {
		inNS(t, node, func() error { return foreignTable(o.nets[0], present) })
		return
	}
	for i, f := range families() {
		nat := func(args ...string) {
			runIn(t, node, firewall{variant: d.variant}.program(f), append([]string{"-t", "nat"}, args...)...)
		}
		command := "-D"
		if present {
			command = "-I"
		}
		rule := []string{"-s", o.nets[0][i].Subnet.Masked().String(), "!", "-o", "cni0", "-j", "MASQUERADE"}
		if d.chain == "" {
			nat(append([]string{command, "POSTROUTING"}, rule...)...)
			continue
		}
		if present {
			nat("-N", d.chain)
			nat(append([]string{"-A", d.chain}, rule...)...)
		}
		nat(command, "POSTROUTING", "-j", d.chain)
		if !present {
			nat("-F", d.chain)
			nat("-X", d.chain)
		}
	}
}

// foreignTable is dockerRule in an nftables table of somebody else's, where iptables would have it.
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

// TestNetnsSources sends real packets over every combination and looks at the source that arrives.
func TestNetnsSources(t *testing.T) {
	none := natRule{name: "no docker"}
	dockers := map[string][]natRule{
		"nftables": {none, {name: "docker by iptables-nft", variant: "-nft"},
			{name: "docker by iptables-legacy", variant: "-legacy"}, {name: "docker by nftables", variant: "table"}},
		"iptables-nft":    {none, {name: "docker", variant: "-nft"}, {"a chain", "-nft", "CNI-0123"}},
		"iptables-legacy": {none, {name: "docker", variant: "-legacy"}, {"a chain", "-legacy", "CNI-0123"}},
	}
	for _, w := range firewalls() {
		t.Run(w.name, func(t *testing.T) {
			w.require(t)
			o := newTestOverlay(t)
			m := w.manager()
			for _, docked := range dockers[w.name] {
				for _, masquerade := range []bool{true, false} {
					t.Run(fmt.Sprintf("%s, masquerade %v", docked.name, masquerade), func(t *testing.T) {
						d := Desired{Nets: o.nets[0], Masquerade: masquerade, KeepSource: true, Forward: true,
							NFTables: w.nft}
						withDocker := docked.name != "no docker"
						if withDocker && docked.variant != "table" {
							requireProgram(t, "iptables"+docked.variant)
						}
						if withDocker {
							o.setNATRule(t, docked, true)
							defer o.setNATRule(t, docked, false)
						}
						set(t, o.Nodes[0].NS, m, d)
						o.checkSources(t, masquerade, withDocker)
					})
				}
			}
		})
	}
}

// checkSources knows who is to see whom. The rules and the docker rule are on the first node.
func (o *testOverlay) checkSources(t *testing.T, masquerade, withDocker bool) {
	t.Helper()
	near, far := o.Nodes[0], o.Nodes[1]
	type host struct {
		ns    *lab.NS
		addrs [2]netip.Addr
	}
	pod, sibling := near.Pods[0], near.Pods[1]
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
		{"pod to pod on the same node", podHost, host{sibling.NS, [2]netip.Addr{sibling.Addr, sibling.Addr6}}, podHost},
		{"pod from another node", host{far.Pods[0].NS, [2]netip.Addr{far.Pods[0].Addr, far.Pods[0].Addr6}}, podHost,
			host{far.Pods[0].NS, [2]netip.Addr{far.Pods[0].Addr, far.Pods[0].Addr6}}},
		{"pod to its own host", podHost, nearHost, podHost},
		{"pod to its gateway", podHost, gateway(near, 0), podHost},
		{"pod to another host's pod address", podHost, gateway(far, 1), podHost},
		{"pod to outside", podHost, outside, rewrittenIf(masquerade || withDocker, podHost)},
		{"pod to another host's own address", podHost, host{far.NS, [2]netip.Addr{far.Addr, far.Addr6}},
			rewrittenIf(masquerade || withDocker, podHost)},
		{"outside to pod, straight to its node", outside, podHost, outside},
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
