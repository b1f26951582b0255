package ctrl

import (
	"errors"
	"net/netip"
	"regexp"
	"strings"
	"testing"
)

// host is a machine with two underlay interfaces, a bridge and an old overlay device.
func host() netView {
	return netView{
		links: []Link{
			{Name: "lo", Index: 1, MTU: 65536, Up: true}, {Name: "eth0", Index: 2, MTU: 1500, Up: true},
			{Name: "eth1", Index: 3, MTU: 9000, Up: true}, {Name: "flannel0", Index: 4, MTU: 1472, Up: true},
			{Name: "bad0", Index: 5, MTU: 0}, {Name: "ll0", Index: 6, MTU: 1500},
		},
		addrs: []ifaceAddr{
			{dev: "lo", addr: addr("127.0.0.1"), permanent: true},
			{dev: "eth0", addr: addr("fe80::2"), permanent: true},
			{dev: "eth0", addr: addr("2a00::bad"), deprecated: true},
			{dev: "eth0", addr: addr("2a00::2"), temporary: true},
			{dev: "eth0", addr: addr("2a00::1")},
			{dev: "eth0", addr: addr("2a00::99"), permanent: true},
			{dev: "eth0", addr: addr("169.254.0.1"), permanent: true},
			{dev: "eth0", addr: addr("10.0.0.7")},
			{dev: "eth0", addr: addr("10.0.0.5"), permanent: true},
			{dev: "eth1", addr: addr("192.168.7.1"), permanent: true},
			{dev: "eth1", addr: addr("192.168.7.2"), permanent: true},
			{dev: "eth1", addr: addr("fd07::1"), permanent: true},
			{dev: "flannel0", addr: addr("192.168.99.0"), permanent: true},
			{dev: "bad0", addr: addr("10.66.0.1"), permanent: true},
			{dev: "ll0", addr: addr("fe80::6"), permanent: true},
		},
		routes: []Route{
			{Dst: prefix("0.0.0.0/0"), Via: addr("192.168.7.254"), Dev: "eth1", Metric: 600},
			{Dst: prefix("0.0.0.0/0"), Via: addr("10.0.0.254"), Dev: "eth0", Metric: 100},
			{Dst: prefix("10.0.0.0/24"), Dev: "eth0", Protocol: 2},
			{Dst: prefix("10.5.0.0/16"), Dev: "eth0", Protocol: RouteProtocol},
			{Dst: prefix("10.8.0.0/16"), Via: addr("10.0.0.1"), Dev: "eth0"},
			{Dst: prefix("2a00::/64"), Dev: "eth0"},
			{Dst: prefix("::/0"), Via: addr("fd07::254"), Dev: "eth1"},
		},
	}
}

func TestChoose(t *testing.T) {
	re := func(s ...string) []*regexp.Regexp {
		var out []*regexp.Regexp
		for _, x := range s {
			out = append(out, regexp.MustCompile(x))
		}
		return out
	}
	v4 := IfaceOptions{IPv4: true}
	tests := []struct {
		name    string
		o       IfaceOptions
		v       func(*netView)
		want    string // name addr addr6 public public6
		because string
		err     string
	}{
		{name: "default route, lowest metric; address permanent and global", o: v4, want: "eth0 10.0.0.5 - 10.0.0.5 -", because: "default route"},
		{name: "IPv6 only", o: IfaceOptions{IPv6: true}, want: "eth1 - fd07::1 - fd07::1"},
		{name: "both: the interface that has a default route of each", o: IfaceOptions{IPv4: true, IPv6: true}, want: "eth1 192.168.7.1 fd07::1 192.168.7.1 fd07::1"},
		{
			name: "both, on different interfaces", o: IfaceOptions{IPv4: true, IPv6: true}, v: func(v *netView) { v.routes = v.routes[1:] },
			err: "default route (that of IPv4 uses eth0, that of IPv6 uses eth1)",
		},
		{name: "no default route", o: v4, v: func(v *netView) { v.routes = nil }, err: "no interface: tried default route (there is none for IPv4); there are lo 127.0.0.1, eth0 "},
		{name: "a default route that refuses", o: v4, v: func(v *netView) { v.routes = []Route{{Kind: Blackhole, Dst: prefix("0.0.0.0/0")}} }, err: "default route (there is none for IPv4)"},
		{name: "no default route of IPv6", o: IfaceOptions{IPv6: true}, v: func(v *netView) { v.routes = v.routes[:2] }, err: "there is none for IPv6"},
		{name: "our own device has a default route", o: v4, v: func(v *netView) { v.routes[1].Dev = "flannel0" }, want: "eth1 192.168.7.1 - 192.168.7.1 -"},
		{name: "nothing at all", o: v4, v: func(v *netView) { *v = netView{} }, err: "there are no interfaces at all"},

		{name: "by name", o: IfaceOptions{IPv4: true, Iface: []string{"eth1"}}, want: "eth1 192.168.7.1 - 192.168.7.1 -", because: "--iface=eth1"},
		{
			name: "by name, the first that fits", o: IfaceOptions{IPv4: true, Iface: []string{"eth9", "ll0", "eth1"}}, want: "eth1 192.168.7.1 - 192.168.7.1 -",
			because: "--iface=eth1 (after --iface=eth9 (no such interface), --iface=ll0 (ll0 has no IPv4 address that other nodes could reach))",
		},
		{name: "by address, which becomes ours", o: IfaceOptions{IPv4: true, IPv6: true, Iface: []string{"192.168.7.2"}}, want: "eth1 192.168.7.2 fd07::1 192.168.7.2 fd07::1"},
		{name: "by IPv6 address", o: IfaceOptions{IPv4: true, IPv6: true, Iface: []string{"2a00::1"}}, want: "eth0 10.0.0.5 2a00::1 10.0.0.5 2a00::1"},
		{name: "by address nobody has", o: IfaceOptions{IPv4: true, Iface: []string{"1.2.3.4"}}, err: "--iface=1.2.3.4 (no interface has this address)"},
		{name: "IPv6 address order", o: IfaceOptions{IPv6: true, Iface: []string{"eth0"}}, want: "eth0 - 2a00::99 - 2a00::99"},
		{name: "IPv6 address order, without a permanent one", o: IfaceOptions{IPv6: true, Iface: []string{"eth0"}},
			v: func(v *netView) { v.addrs[5].addr = addr("10.9.9.9") }, want: "eth0 - 2a00::1 - 2a00::1"},
		{name: "only link-local", o: IfaceOptions{IPv6: true, Iface: []string{"ll0"}}, want: "ll0 - fe80::6 - fe80::6"},
		{name: "names are not patterns", o: IfaceOptions{IPv4: true, Iface: []string{"eth"}}, err: "--iface=eth (no such interface)"},
		{name: "no MTU", o: IfaceOptions{IPv4: true, Iface: []string{"bad0"}}, err: "interface bad0 has no MTU"},

		{name: "regex on addresses, before names", o: IfaceOptions{IPv4: true, Regex: re(`^192\.168\..*\.2$`)}, want: "eth1 192.168.7.2 - 192.168.7.2 -", because: `--iface-regex=^192\.168\..*\.2$`},
		{name: "regex on names", o: IfaceOptions{IPv4: true, Regex: re("h1$")}, want: "eth1 192.168.7.1 - 192.168.7.1 -"},
		{name: "regex passes over overlay devices", o: IfaceOptions{IPv4: true, Regex: re(`192\.168\.99`, "flannel")}, err: "(matches no address and no name)"},
		{name: "regex in order", o: IfaceOptions{IPv4: true, Regex: re("nothing", "eth1", "eth0")}, want: "eth1 192.168.7.1 - 192.168.7.1 -"},
		{name: "iface before regex", o: IfaceOptions{IPv4: true, Regex: re("eth1"), Iface: []string{"eth0"}}, want: "eth0 10.0.0.5 - 10.0.0.5 -"},
		{name: "regex on an address of a family that is off", o: IfaceOptions{IPv4: true, Regex: re("fe80::6")}, err: "matches no address and no name"},
		{name: "regex on a name, and on an address of a family that is off", o: IfaceOptions{IPv4: true, Regex: re("^2|h1$")}, want: "eth1 192.168.7.1 - 192.168.7.1 -"},
		{name: "regex on everything passes over loopback", o: IfaceOptions{IPv4: true, Regex: re(".*")}, want: "eth0 10.0.0.5 - 10.0.0.5 -"},
		{name: "loopback by name", o: IfaceOptions{IPv4: true, Iface: []string{"lo"}}, err: "lo has no IPv4 address that other nodes could reach"},
		{name: "loopback by address, as asked", o: IfaceOptions{IPv4: true, Iface: []string{"127.0.0.1"}}, want: "lo 127.0.0.1 - 127.0.0.1 -"},
		{name: "regex on a name without the needed family", o: IfaceOptions{IPv4: true, Regex: re("^ll0")}, err: "ll0 has no IPv4 address"},

		{name: "can reach", o: IfaceOptions{IPv4: true, CanReach: addr("192.168.0.9")}, want: "eth1 192.168.7.2 - 192.168.7.2 -", because: "--iface-can-reach=192.168.0.9"},
		{name: "can reach, no source told", o: IfaceOptions{IPv4: true, CanReach: addr("10.9.9.9")}, want: "eth0 10.0.0.5 - 10.0.0.5 -"},
		{name: "cannot reach", o: IfaceOptions{IPv4: true, CanReach: addr("8.8.8.8")}, err: "--iface-can-reach=8.8.8.8 (network is unreachable)"},
		{name: "can reach comes last", o: IfaceOptions{IPv4: true, CanReach: addr("192.168.0.9"), Iface: []string{"eth0"}}, want: "eth0 10.0.0.5 - 10.0.0.5 -"},

		{name: "public address of an interface", o: IfaceOptions{IPv4: true, PublicIP: addr("192.168.7.2")}, want: "eth1 192.168.7.2 - 192.168.7.2 -", because: "it has the public address 192.168.7.2"},
		{
			name: "public address behind NAT", o: IfaceOptions{IPv4: true, PublicIP: addr("9.9.9.9")}, want: "eth0 10.0.0.5 - 9.9.9.9 -",
			because: "default route (after public address 9.9.9.9 (no interface has this address))",
		},
		{name: "public IPv6 address alone", o: IfaceOptions{IPv6: true, PublicIPv6: addr("2a00::1")}, want: "eth0 - 2a00::1 - 2a00::1"},
		{name: "public address with an interface", o: IfaceOptions{IPv4: true, PublicIP: addr("9.9.9.9"), Iface: []string{"eth1"}}, want: "eth1 192.168.7.1 - 9.9.9.9 -"},
		{name: "public address of a family that is off", o: IfaceOptions{IPv4: true, PublicIPv6: addr("2a00::1"), Iface: []string{"eth1"}}, want: "eth1 192.168.7.1 - 192.168.7.1 -"},
	}
	reach := func(a netip.Addr) (string, netip.Addr, error) {
		switch {
		case a == addr("192.168.0.9"):
			return "eth1", addr("192.168.7.2"), nil
		case a == addr("10.9.9.9"):
			return "eth0", netip.Addr{}, nil
		}
		return "", netip.Addr{}, errors.New("network is unreachable")
	}
	text := func(a netip.Addr) string {
		if !a.IsValid() {
			return "-"
		}
		return a.String()
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := host()
			if tt.v != nil {
				tt.v(&v)
			}
			i, err := choose(tt.o, v, reach)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v\nwant %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join([]string{i.Name, text(i.Addr), text(i.Addr6), text(i.Public), text(i.Public6)}, " "); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if tt.because != "" && i.Reason != tt.because {
				t.Errorf("reason %q, want %q", i.Reason, tt.because)
			}
		})
	}
}

func TestChooseTellsOnLink(t *testing.T) {
	wan := []netip.Prefix{prefix("10.0.0.0/24")}
	tests := []struct {
		name string
		add  Route // to the host's
		o    IfaceOptions
		want string
	}{
		{"of the family that is on", Route{Dst: prefix("fe80::/64"), Dev: "eth0"}, IfaceOptions{IPv4: true}, "10.0.0.0/24"},
		{"of both", Route{}, IfaceOptions{IPv4: true, IPv6: true}, "10.0.0.0/24 2a00::/64"},
		{"default route without a gateway", Route{Dst: prefix("0.0.0.0/0"), Dev: "eth0"}, IfaceOptions{IPv4: true}, "10.0.0.0/24"},
		{"ours", ours("10.1.0.0/24", "", "eth0"), IfaceOptions{IPv4: true}, "10.0.0.0/24"},
		{"a peer by a gateway", Route{Dst: prefix("10.0.0.9/32"), Via: addr("10.0.0.1"), Dev: "eth0"}, IfaceOptions{IPv4: true}, "10.0.0.0/24 but not 10.0.0.9/32"},
		{"a peer by another device", Route{Dst: prefix("10.0.0.9/32"), Dev: "eth1"}, IfaceOptions{IPv4: true}, "10.0.0.0/24 but not 10.0.0.9/32"},
		{"a peer that is refused", Route{Dst: prefix("10.0.0.9/32"), Kind: "prohibit"}, IfaceOptions{IPv4: true}, "10.0.0.0/24 but not 10.0.0.9/32"},
		{"the same once more, by a gateway", Route{Dst: prefix("10.0.0.0/24"), Via: addr("10.0.0.1"), Dev: "eth0", Metric: 9}, IfaceOptions{IPv4: true}, "10.0.0.0/24"},
		{"by a gateway, elsewhere", Route{Dst: prefix("10.9.0.0/32"), Via: addr("10.0.0.1"), Dev: "eth0"}, IfaceOptions{IPv4: true}, "10.0.0.0/24"},
		{"ours to a node", ours("10.0.0.128/25", "10.0.0.9", "eth0"), IfaceOptions{IPv4: true}, "10.0.0.0/24"},
		{"a pod", Route{Dst: prefix("10.0.0.9/32"), Dev: "veth1"}, IfaceOptions{IPv4: true, Overlay: wan}, "10.0.0.0/24"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := host()
			v.routes = append(v.routes, tt.add)
			tt.o.Iface = []string{"eth0"}
			i, err := choose(tt.o, v, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := i.OnLink.String(); got != tt.want || i.Index != 2 || i.MTU != 1500 {
				t.Errorf("on link %q, want %q: %+v", got, tt.want, i)
			}
		})
	}
}

func TestPrefixSet(t *testing.T) {
	a := NewPrefixSet(prefix("10.0.0.0/24"), prefix("fd00::/64"), prefix("10.0.0.9/24"))
	if b := NewPrefixSet(prefix("fd00::/64"), prefix("10.0.0.0/24")); a != b {
		t.Errorf("%v and %v differ", a, b)
	}
	for s, want := range map[string]bool{"10.0.0.255": true, "10.0.1.0": false, "fd00::9": true, "fd01::": false} {
		if got := a.Contains(addr(s)); got != want {
			t.Errorf("%v contains %s: %v", a, s, got)
		}
	}
	// The longest decides, as in a routing table.
	b := NewPrefixSet(prefix("10.0.0.0/24"), prefix("10.0.0.9/32")).Except(prefix("10.0.0.8/29"))
	for s, want := range map[string]bool{"10.0.0.7": true, "10.0.0.8": false, "10.0.0.9": true, "10.0.0.15": false, "10.0.0.16": true} {
		if got := b.Contains(addr(s)); got != want {
			t.Errorf("%v contains %s: %v", b, s, got)
		}
	}
	if none := (PrefixSet{}); none.Contains(addr("10.0.0.1")) || none.String() != "no prefix" {
		t.Errorf("got %v", none)
	}
}

func TestOverlayName(t *testing.T) {
	for name, want := range map[string]bool{
		"flannel0": true, "flannel12": true, "flannel.1": true, "flannel-v6.1": true, "flannel.ipip": true, "flannel-wg": true, "flannel-wg-v6": true,
		"flannel": false, "flannelx": false, "flannel-probe": false, "eth0": false, "": false, "xflannel0": false, "flannel0x": false,
	} {
		if overlayName(name) != want {
			t.Errorf("%q: got %v", name, !want)
		}
	}
}
