package netfilter

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// TestNetnsRulesMatchFlannel compares the listing with flannel's, byte by byte.
func TestNetnsRulesMatchFlannel(t *testing.T) {
	for _, fw := range iptablesFirewalls() {
		t.Run(fw.name, func(t *testing.T) {
			fw.require(t)
			ns, m := newNS(t), fw.manager()
			d := Desired{Nets: []Net{net4, net6}, Masquerade: true, Forward: true, KeepSource: true}
			set(t, ns, m, d)
			forward6 := strings.ReplaceAll(flannelForward, "10.5.0.0/16", "fc00::/48")
			for f, want := range map[family]string{
				ipv4: flannelMasquerade + flannelForward[1:],
				ipv6: flannelMasquerade6 + forward6[1:],
			} {
				if got := fw.sorted(fw.listRules(t, ns, f)); got != fw.sorted(want) {
					t.Errorf("%s: got%s\nwant%s", f, got, want)
				}
			}
			d.NoRandomPorts, d.Forward, d.Nets = true, false, d.Nets[:1]
			set(t, ns, m, d)
			plain := strings.ReplaceAll(flannelMasquerade, " --random-fully", "")
			if got := fw.listRules(t, ns, ipv4); got != plain {
				t.Errorf("no random ports: got%s\nwant%s", got, plain)
			}
			if got := fw.listRules(t, ns, ipv6); got != "\n" {
				t.Errorf("IPv6 disabled: got%s", got)
			}
			set(t, ns, m, Desired{Nets: d.Nets})
			if got := fw.listRules(t, ns, ipv4); got != "\n" {
				t.Errorf("no rules wanted: got%s", got)
			}
		})
	}
}

// TestNetnsListingMatchesFlannel compares the output of nft with flannel's (e2e/rules.go in
// flannel). The mark and the fourth rule of postrtg differ; see the package documentation.
func TestNetnsListingMatchesFlannel(t *testing.T) {
	requireNFTables(t)
	requireProgram(t, "nft")
	ns, m := newNS(t), firewall{nft: true}.manager()
	set(t, ns, m, Desired{Nets: []Net{net4, net6}, Masquerade: true, Forward: true, NFTables: true})
	const postrtg = `table ip flannel-ipv4 {
	chain postrtg {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return
		ip saddr 10.5.77.0/24 ip daddr 10.5.0.0/16 return
		ip saddr 10.5.0.0/16 ip daddr 10.5.77.0/24 return
		ip saddr != 10.5.0.0/16 ip daddr 10.5.77.0/24 return
		ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random
	}
}
`
	const forward = `table ip flannel-ipv4 {
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr 10.5.0.0/16 accept
		ip daddr 10.5.0.0/16 accept
	}
}
`
	ip6 := strings.NewReplacer("ip flannel-ipv4", "ip6 flannel-ipv6", "ip saddr", "ip6 saddr", "ip daddr", "ip6 daddr",
		"10.5.77.0/24", "fc00:0:0:77::/64", "10.5.0.0/16", "fc00::/48", "224.0.0.0/4", "ff00::/8")
	for chain, want := range map[string]string{"postrtg": postrtg, "forward": forward} {
		if got := runIn(t, ns, "nft", "list", "chain", "ip", "flannel-ipv4", chain); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		want = ip6.Replace(want)
		if got := runIn(t, ns, "nft", "list", "chain", "ip6", "flannel-ipv6", chain); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
}

// TestNetnsLogNamesFamily checks that each logged change names the family.
func TestNetnsLogNamesFamily(t *testing.T) {
	for _, fw := range firewalls() {
		t.Run(fw.name, func(t *testing.T) {
			fw.require(t)
			var log bytes.Buffer
			m := newManager(fw.host(), Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
			set(t, newNS(t), m, allRulesIn(fw))
			for _, f := range families() {
				want := fw.program(f) + " nat FLANNEL-POSTRTG: 6 rules set;"
				if fw.nft {
					want = "table " + tableName(f) + " postrtg: 6 rules set;"
				}
				if !strings.Contains(log.String(), want) {
					t.Errorf("%q not logged: %s", want, &log)
				}
			}
		})
	}
}

// TestNetnsNoTrack sends to the exempt port and to another one, and checks which flow is tracked.
func TestNetnsNoTrack(t *testing.T) {
	for _, fw := range firewalls() {
		t.Run(fw.name, func(t *testing.T) {
			fw.require(t)
			ns, m := newNS(t), fw.manager()
			if _, err := ns.ReadSysctl("netfilter/nf_conntrack_count"); err != nil {
				t.Skipf("NOT TESTED: %v", err)
			}
			own := netip.MustParseAddrPort("127.0.0.1:8285")
			set(t, ns, m, Desired{Nets: []Net{net4}, Masquerade: true, NFTables: fw.nft,
				NoTrack: []netip.AddrPort{own}})
			tracked := func() (count string) {
				count, err := ns.ReadSysctl("netfilter/nf_conntrack_count")
				if err != nil {
					t.Fatal(err)
				}
				return count
			}
			for _, tt := range []struct {
				port uint16
				want string
			}{{8285, "0"}, {8286, "1"}} {
				inNS(t, ns, func() error {
					c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(own.Addr(), tt.port)))
					if err != nil {
						return err
					}
					_, err = c.Write([]byte("x"))
					return errors.Join(err, c.Close())
				})
				if got := tracked(); got != tt.want {
					t.Errorf("port %d: %s flows tracked, want %s", tt.port, got, tt.want)
				}
			}
		})
	}
}
