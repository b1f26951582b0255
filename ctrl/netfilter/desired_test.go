package netfilter

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

var (
	net4 = Net{Network: netip.MustParsePrefix("10.5.0.0/16"), Subnet: netip.MustParsePrefix("10.5.77.1/24")}
	net6 = Net{Network: netip.MustParsePrefix("fc00::/48"), Subnet: netip.MustParsePrefix("fc00:0:0:77::/64")}
	own4 = netip.MustParseAddrPort("192.0.2.7:8285")
	own6 = netip.MustParseAddrPort("[2001:db8::7]:8285")
)

// allRules returns a Desired that asks for all rules, in both families.
func allRules() Desired {
	return Desired{Nets: []Net{net4, net6}, Masquerade: true, Forward: true, KeepSource: true,
		NoTrack: []netip.AddrPort{own4, own6}, TunnelPorts: []netip.AddrPort{own4, own6}}
}

// Rules of flannel v0.28 and of Weft in the format of iptables-save, with the table in front.
const (
	flannelMasquerade = `
nat -A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
nat -A FLANNEL-POSTRTG -s 10.5.77.0/24 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN
nat -A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.77.0/24 -m comment --comment "flanneld masq" -j RETURN
nat -A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.77.0/24 -m comment --comment "flanneld masq" -j RETURN
nat -A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
nat -A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
`
	flannelForward = `
filter -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
filter -A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
filter -A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
`
	flannelMasquerade6 = `
nat -A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
nat -A FLANNEL-POSTRTG -s fc00:0:0:77::/64 -d fc00::/48 -m comment --comment "flanneld masq" -j RETURN
nat -A FLANNEL-POSTRTG -s fc00::/48 -d fc00:0:0:77::/64 -m comment --comment "flanneld masq" -j RETURN
nat -A FLANNEL-POSTRTG ! -s fc00::/48 -d fc00:0:0:77::/64 -m comment --comment "flanneld masq" -j RETURN
nat -A FLANNEL-POSTRTG -s fc00::/48 ! -d ff00::/8 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
nat -A FLANNEL-POSTRTG ! -s fc00::/48 -d fc00::/48 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
`
	keepSource4 = `
nat -A POSTROUTING -m comment --comment "weft keep source" -j WEFT-KEEP-SOURCE
nat -A WEFT-KEEP-SOURCE -m mark --mark 0x4000/0x4000 -m comment --comment "weft keep source" -j RETURN
nat -A WEFT-KEEP-SOURCE -s 10.5.77.0/24 -d 10.5.77.0/24 -m comment --comment "weft keep source" -j RETURN
nat -A WEFT-KEEP-SOURCE -s 10.5.77.0/24 -d 10.5.0.0/16 -m comment --comment "weft keep source" -j ACCEPT
nat -A WEFT-KEEP-SOURCE -s 10.5.0.0/16 -d 10.5.77.0/24 -m comment --comment "weft keep source" -j ACCEPT
`
	noTrack4 = `
raw -A PREROUTING -d 192.0.2.7/32 -p udp -m udp --dport 8285 -m comment --comment "weft notrack 10.5.0.0/16" -j CT --notrack
raw -A OUTPUT -s 192.0.2.7/32 -p udp -m udp --dport 8285 -m comment --comment "weft notrack 10.5.0.0/16" -j CT --notrack
`
	docker4 = `
filter -A DOCKER-USER -m comment --comment "weft docker" -j WEFT-DOCKER
filter -A WEFT-DOCKER -s 10.5.77.0/24 -d 10.5.77.0/24 -m comment --comment "weft docker" -j RETURN
filter -A WEFT-DOCKER -s 10.5.0.0/16 -d 10.5.77.0/24 -m comment --comment "weft docker" -j ACCEPT
`
	tunnelPort4 = `
mangle -A FORWARD -s 10.5.0.0/16 ! -d 10.5.0.0/16 -p udp -m udp --dport 8285 -m comment --comment "weft tunnel port" -j DROP
mangle -A INPUT -s 10.5.0.0/16 -p udp -m udp --dport 8285 -m comment --comment "weft tunnel port" -j DROP
`
)

// saveText formats rules like the texts above.
func saveText(rs []rule) string {
	var b strings.Builder
	b.WriteByte('\n')
	for _, r := range rs {
		b.WriteString(r.table + " -A " + r.chain + " " + r.spec() + "\n")
	}
	return b.String()
}

func TestRules(t *testing.T) {
	joined := func(parts ...string) string {
		return "\n" + strings.ReplaceAll(strings.Join(parts, ""), "\n\n", "\n")[1:]
	}
	untagged := strings.ReplaceAll(noTrack4, "weft notrack 10.5.0.0/16", "weft notrack")
	for _, tt := range []struct {
		name   string
		change func(*Desired)
		family family
		want   string
	}{
		{"everything", func(*Desired) {}, ipv4, joined(keepSource4, flannelMasquerade, flannelForward, docker4,
			tunnelPort4, noTrack4)},
		{"as flannel, masquerade", func(d *Desired) { d.KeepSource, d.NoTrack, d.Forward = false, nil, false }, ipv4,
			flannelMasquerade},
		{"as flannel, masquerade, IPv6", func(d *Desired) { d.KeepSource, d.NoTrack, d.Forward = false, nil, false },
			ipv6, flannelMasquerade6},
		{"as flannel, forward", func(d *Desired) { d.KeepSource, d.NoTrack, d.Masquerade = false, nil, false }, ipv4,
			flannelForward + docker4[1:]},
		{"forward without a subnet", func(d *Desired) {
			*d = Desired{Nets: []Net{{Network: net4.Network}}, Forward: true}
		}, ipv4, flannelForward},
		{"no random ports", func(d *Desired) {
			d.KeepSource, d.NoTrack, d.Forward, d.NoRandomPorts = false, nil, false, true
		}, ipv4, strings.ReplaceAll(flannelMasquerade, " --random-fully", "")},
		{"IPv4 network alone, the other family", func(d *Desired) { d.Nets, d.NoTrack = []Net{net4}, nil }, ipv6, "\n"},
		{"tunnel ports, once each", func(d *Desired) {
			any4 := netip.MustParseAddrPort("0.0.0.0:8285")
			*d = Desired{Nets: d.Nets, TunnelPorts: []netip.AddrPort{own4, own6, any4}}
		}, ipv4, tunnelPort4},
		{"tunnel port of the other family", func(d *Desired) {
			*d = Desired{Nets: d.Nets, TunnelPorts: []netip.AddrPort{own6}}
		}, ipv4, "\n"},
		{"untracked port at any address", func(d *Desired) {
			d.Nets, d.NoTrack = nil, []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:8285")}
		}, ipv4, strings.NewReplacer("-d 192.0.2.7/32 ", "", "-s 192.0.2.7/32 ", "").Replace(untagged)},
		{"untracked port of the other family", func(d *Desired) { d.Nets, d.NoTrack = nil, []netip.AddrPort{own6} },
			ipv4, "\n"},
		{"untracked port, mapped address", func(d *Desired) {
			d.Nets, d.NoTrack = nil, []netip.AddrPort{netip.MustParseAddrPort("[::ffff:192.0.2.7]:8285")}
		}, ipv4, untagged},
		{"nothing", func(d *Desired) { *d = Desired{Nets: d.Nets} }, ipv4, "\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := allRules()
			if tt.name != "everything" {
				d.TunnelPorts = nil
			}
			tt.change(&d)
			if err := d.validate(); err != nil {
				t.Fatal(err)
			}
			if got := saveText(d.rules(tt.family)); got != tt.want {
				t.Errorf("got%s\nwant%s", got, tt.want)
			}
		})
	}
}

// TestRulesInLayout checks that every rule stands in a chain that is listed later.
func TestRulesInLayout(t *testing.T) {
	for _, f := range families() {
		for _, r := range allRules().rules(f) {
			i := slices.IndexFunc(layouts(), func(l layout) bool { return l.table == r.table })
			if i < 0 {
				t.Fatalf("%s: table unknown", r.spec())
			}
			l := layouts()[i]
			if !slices.Contains(l.ownChains, r.chain) && !slices.Contains(l.hooks, r.chain) {
				t.Errorf("%s: chain %s unknown in %s", r.spec(), r.chain, r.table)
			}
			p, _ := parse(r.table, "-A "+r.chain+" "+r.spec())
			if slices.Contains(l.hooks, r.chain) && !isManaged(l, p) {
				t.Errorf("%s in %s is not recognized as managed", r.spec(), r.chain)
			}
		}
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Desired)
		want   string
	}{
		{"fine", func(*Desired) {}, ""},
		{"no network", func(d *Desired) { d.Nets = []Net{{Subnet: net4.Subnet}} }, "network is not set"},
		{"two of a family", func(d *Desired) { d.Nets = []Net{net4, net6, net4} },
			"more than one IPv4 network: 10.5.0.0/16"},
		{"no subnet to masquerade", func(d *Desired) { d.Nets[1].Subnet, d.KeepSource = netip.Prefix{}, false },
			"network fc00::/48: no IPv6 subnet for this node"},
		{"no subnet to protect", func(d *Desired) { d.Nets[0].Subnet, d.Masquerade = netip.Prefix{}, false },
			"network 10.5.0.0/16: no IPv4 subnet for this node"},
		{"subnet of the other family", func(d *Desired) { d.Nets[0].Subnet = net6.Subnet },
			"network 10.5.0.0/16: no IPv4 subnet for this node"},
		{"no subnet, none needed",
			func(d *Desired) { d.Nets[0].Subnet, d.Masquerade, d.KeepSource = netip.Prefix{}, false, false }, ""},
		{"no port", func(d *Desired) { d.NoTrack = []netip.AddrPort{netip.AddrPortFrom(own4.Addr(), 0)} },
			"invalid NoTrack address and port: 192.0.2.7:0"},
		{"no tunnel port", func(d *Desired) { d.TunnelPorts = []netip.AddrPort{{}} },
			"invalid TunnelPorts address and port: invalid AddrPort"},
		{"no address", func(d *Desired) { d.NoTrack = []netip.AddrPort{netip.AddrPortFrom(netip.Addr{}, 8285)} },
			"invalid NoTrack address and port: invalid AddrPort"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := allRules()
			tt.change(&d)
			got := ""
			if err := d.validate(); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestAddrMatch(t *testing.T) {
	network, subnet := net4.Network, net4.Subnet.Masked()
	other := netip.MustParsePrefix("192.168.0.0/16")
	host := isAddr(netip.MustParseAddr("10.5.77.2"))
	for _, tt := range []struct {
		name             string
		m                addrMatch
		overlaps, within bool // network; subnet
	}{
		{"any", addrMatch{}, true, false},
		{"the subnet", is(subnet), true, true},
		{"a pod", host, true, true},
		{"the network", is(network), true, false},
		{"all", is(netip.MustParsePrefix("0.0.0.0/0")), true, false},
		{"elsewhere", is(other), false, false},
		{"not elsewhere", isNot(other), true, false},
		{"not the subnet", isNot(subnet), true, false},
		{"not the network", isNot(network), false, false},
		{"not more than the network", isNot(netip.MustParsePrefix("10.0.0.0/8")), false, false},
	} {
		if got := tt.m.overlaps(network); got != tt.overlaps {
			t.Errorf("%s: overlaps %v", tt.name, got)
		}
		if got := tt.m.within(subnet); got != tt.within {
			t.Errorf("%s: within %v", tt.name, got)
		}
	}
}
