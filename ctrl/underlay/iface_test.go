package underlay

import (
	"errors"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"weft/ctrl"
)

// host is a machine with two underlay interfaces, a bridge and an old overlay device.
func host() hostNet {
	return hostNet{
		links: []ctrl.Link{
			{Name: "lo", Index: 1, MTU: 65536, Up: true}, {Name: "eth0", Index: 2, MTU: 1500, Up: true},
			{Name: "eth1", Index: 3, MTU: 9000, Up: true}, {Name: "flannel0", Index: 4, MTU: 1472, Up: true},
			{Name: "bad0", Index: 5, MTU: 0}, {Name: "ll0", Index: 6, MTU: 1500},
		},
		addrs: []ctrl.IfaceAddr{
			{Dev: "lo", Addr: addr("127.0.0.1"), Permanent: true},
			{Dev: "eth0", Addr: addr("fe80::2"), Permanent: true},
			{Dev: "eth0", Addr: addr("2a00::bad"), Deprecated: true},
			{Dev: "eth0", Addr: addr("2a00::2"), Secondary: true},
			{Dev: "eth0", Addr: addr("2a00::1")},
			{Dev: "eth0", Addr: addr("2a00::99"), Permanent: true},
			{Dev: "eth0", Addr: addr("169.254.0.1"), Permanent: true},
			{Dev: "eth0", Addr: addr("10.0.0.7")},
			{Dev: "eth0", Addr: addr("10.0.0.5"), Permanent: true},
			{Dev: "eth1", Addr: addr("192.168.7.1"), Permanent: true},
			{Dev: "eth1", Addr: addr("192.168.7.2"), Permanent: true},
			{Dev: "eth1", Addr: addr("fd07::1"), Permanent: true},
			{Dev: "flannel0", Addr: addr("192.168.99.0"), Permanent: true},
			{Dev: "bad0", Addr: addr("10.66.0.1"), Permanent: true},
			{Dev: "ll0", Addr: addr("fe80::6"), Permanent: true},
		},
		routes: []ctrl.Route{
			{Dst: prefix("0.0.0.0/0"), Via: addr("192.168.7.254"), Dev: "eth1", Metric: 600},
			{Dst: prefix("0.0.0.0/0"), Via: addr("10.0.0.254"), Dev: "eth0", Metric: 100},
			{Dst: prefix("10.0.0.0/24"), Dev: "eth0", Protocol: 2},
			{Dst: prefix("10.5.0.0/16"), Dev: "eth0", Protocol: ctrl.RouteProtocol},
			{Dst: prefix("10.8.0.0/16"), Via: addr("10.0.0.1"), Dev: "eth0"},
			{Dst: prefix("2a00::/64"), Dev: "eth0"},
			{Dst: prefix("::/0"), Via: addr("fd07::254"), Dev: "eth1"},
		},
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

func TestChoose(t *testing.T) {
	re := func(s ...string) []*regexp.Regexp {
		var out []*regexp.Regexp
		for _, x := range s {
			out = append(out, regexp.MustCompile(x))
		}
		return out
	}
	v4 := Options{IPv4: true}
	tests := []struct {
		name    string
		o       Options
		v       func(*hostNet)
		want    string // name addr addr6 public public6
		because string
		err     string
	}{
		{name: "default route, lowest metric; address permanent and global", o: v4, want: "eth0 10.0.0.5 - 10.0.0.5 -",
			because: "default route"},
		{name: "IPv6 only", o: Options{IPv6: true}, want: "eth1 - fd07::1 - fd07::1"},
		{name: "both: the interface that has a default route of each", o: Options{IPv4: true, IPv6: true},
			want: "eth1 192.168.7.1 fd07::1 192.168.7.1 fd07::1"},
		{
			name: "both, on different interfaces", o: Options{IPv4: true, IPv6: true},
			v: func(v *hostNet) {
				v.routes = v.routes[1:]
				v.addrs = slices.DeleteFunc(v.addrs, func(a ctrl.IfaceAddr) bool {
					return a.Dev == "eth0" && a.Addr.Is6() && a.Addr.IsGlobalUnicast() ||
						a.Dev == "eth1" && a.Addr.Is4()
				})
			},
			err: "default route (IPv4 uses eth0, IPv6 uses eth1)",
		},
		{name: "no default route", o: v4, v: func(v *hostNet) { v.routes = nil },
			err: "no interface found: tried default route (no IPv4 default route); existing: lo 127.0.0.1, eth0 "},
		{name: "a default route that refuses", o: v4,
			v:   func(v *hostNet) { v.routes = []ctrl.Route{{Kind: ctrl.Blackhole, Dst: prefix("0.0.0.0/0")}} },
			err: "default route (no IPv4 default route)"},
		{name: "no default route of IPv6", o: Options{IPv6: true}, v: func(v *hostNet) { v.routes = v.routes[:2] },
			err: "no IPv6 default route"},
		{name: "our own device has a default route", o: v4, v: func(v *hostNet) { v.routes[1].Dev = "flannel0" },
			want: "eth1 192.168.7.1 - 192.168.7.1 -"},
		{name: "nothing at all", o: v4, v: func(v *hostNet) { *v = hostNet{} }, err: "existing: none"},

		{name: "by name", o: Options{IPv4: true, Iface: []string{"eth1"}}, want: "eth1 192.168.7.1 - 192.168.7.1 -",
			because: "--iface=eth1"},
		{
			name: "by name, the first that fits", o: Options{IPv4: true, Iface: []string{"eth9", "ll0", "eth1"}},
			want:    "eth1 192.168.7.1 - 192.168.7.1 -",
			because: "--iface=eth1 (after --iface=eth9 (no such interface), --iface=ll0 (ll0 has no IPv4 address that other nodes could reach))",
		},
		{name: "by address, which becomes ours", o: Options{IPv4: true, IPv6: true, Iface: []string{"192.168.7.2"}},
			want: "eth1 192.168.7.2 fd07::1 192.168.7.2 fd07::1"},
		{name: "by IPv6 address", o: Options{IPv4: true, IPv6: true, Iface: []string{"2a00::1"}},
			want: "eth0 10.0.0.5 2a00::1 10.0.0.5 2a00::1"},
		{name: "by unknown address", o: Options{IPv4: true, Iface: []string{"1.2.3.4"}},
			err: "--iface=1.2.3.4 (no interface has this address)"},
		{name: "IPv6 address order", o: Options{IPv6: true, Iface: []string{"eth0"}},
			want: "eth0 - 2a00::99 - 2a00::99"},
		{name: "IPv6 address order, without a permanent one", o: Options{IPv6: true, Iface: []string{"eth0"}},
			v: func(v *hostNet) { v.addrs[5].Addr = addr("10.9.9.9") }, want: "eth0 - 2a00::1 - 2a00::1"},
		{name: "only link-local", o: Options{IPv6: true, Iface: []string{"ll0"}}, want: "ll0 - fe80::6 - fe80::6"},
		{name: "names are not patterns", o: Options{IPv4: true, Iface: []string{"eth"}},
			err: "--iface=eth (no such interface)"},
		{name: "no MTU", o: Options{IPv4: true, Iface: []string{"bad0"}}, err: "interface bad0 has no MTU"},

		{name: "regex on addresses, before names", o: Options{IPv4: true, Regex: re(`^192\.168\..*\.2$`)},
			want: "eth1 192.168.7.2 - 192.168.7.2 -", because: `--iface-regex=^192\.168\..*\.2$`},
		{name: "regex on names", o: Options{IPv4: true, Regex: re("h1$")}, want: "eth1 192.168.7.1 - 192.168.7.1 -"},
		{name: "regex passes over overlay devices", o: Options{IPv4: true, Regex: re(`192\.168\.99`, "flannel")},
			err: "(matches no address and no name)"},
		{name: "regex in order", o: Options{IPv4: true, Regex: re("nothing", "eth1", "eth0")},
			want: "eth1 192.168.7.1 - 192.168.7.1 -"},
		{name: "iface before regex", o: Options{IPv4: true, Regex: re("eth1"), Iface: []string{"eth0"}},
			want: "eth0 10.0.0.5 - 10.0.0.5 -"},
		{name: "regex on an address of a family that is off", o: Options{IPv4: true, Regex: re("fe80::6")},
			err: "matches no address and no name"},
		{name: "regex on a name, and on an address of a family that is off",
			o: Options{IPv4: true, Regex: re("^2|h1$")}, want: "eth1 192.168.7.1 - 192.168.7.1 -"},
		{name: "regex on everything passes over loopback", o: Options{IPv4: true, Regex: re(".*")},
			want: "eth0 10.0.0.5 - 10.0.0.5 -"},
		{name: "loopback by name", o: Options{IPv4: true, Iface: []string{"lo"}},
			err: "lo has no IPv4 address that other nodes could reach"},
		{name: "loopback by address, as asked", o: Options{IPv4: true, Iface: []string{"127.0.0.1"}},
			want: "lo 127.0.0.1 - 127.0.0.1 -"},
		{name: "regex on a name without the needed family", o: Options{IPv4: true, Regex: re("^ll0")},
			err: "ll0 has no IPv4 address"},

		{name: "can reach", o: Options{IPv4: true, CanReach: addr("192.168.0.9")},
			want: "eth1 192.168.7.2 - 192.168.7.2 -", because: "--iface-can-reach=192.168.0.9"},
		{name: "can reach, no source told", o: Options{IPv4: true, CanReach: addr("10.9.9.9")},
			want: "eth0 10.0.0.5 - 10.0.0.5 -"},
		{name: "cannot reach", o: Options{IPv4: true, CanReach: addr("8.8.8.8")},
			err: "--iface-can-reach=8.8.8.8 (network is unreachable)"},
		{name: "can reach comes last", o: Options{IPv4: true, CanReach: addr("192.168.0.9"), Iface: []string{"eth0"}},
			want: "eth0 10.0.0.5 - 10.0.0.5 -"},

		{name: "public address of an interface", o: Options{IPv4: true, PublicIP: addr("192.168.7.2")},
			want: "eth1 192.168.7.2 - 192.168.7.2 -", because: "has the public address 192.168.7.2"},
		{
			name: "public address behind NAT", o: Options{IPv4: true, PublicIP: addr("9.9.9.9")},
			want:    "eth0 10.0.0.5 - 9.9.9.9 -",
			because: "default route (after public address 9.9.9.9 (no interface has this address))",
		},
		{name: "public IPv6 address alone", o: Options{IPv6: true, PublicIPv6: addr("2a00::1")},
			want: "eth0 - 2a00::1 - 2a00::1"},
		{name: "public address with an interface", o: Options{IPv4: true, PublicIP: addr("9.9.9.9"),
			Iface: []string{"eth1"}}, want: "eth1 192.168.7.1 - 9.9.9.9 -"},
		{name: "public address of a family that is off",
			o:    Options{IPv4: true, PublicIPv6: addr("2a00::1"), Iface: []string{"eth1"}},
			want: "eth1 192.168.7.1 - 192.168.7.1 -"},
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
			i, err := choose(tt.o, v, reach, Iface{})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v\nwant %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join([]string{i.Name, text(i.Addr), text(i.Addr6), text(i.Public), text(i.Public6)},
				" "); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if tt.because != "" && i.Reason != tt.because {
				t.Errorf("reason %q, want %q", i.Reason, tt.because)
			}
		})
	}
}

func TestChooseOnLink(t *testing.T) {
	wan := []netip.Prefix{prefix("10.0.0.0/24")}
	tests := []struct {
		name string
		add  ctrl.Route // to the host's
		o    Options
		want string
	}{
		{"of the family that is on", ctrl.Route{Dst: prefix("fe80::/64"), Dev: "eth0"}, Options{IPv4: true},
			"10.0.0.0/24"},
		{"of both", ctrl.Route{}, Options{IPv4: true, IPv6: true}, "10.0.0.0/24 2a00::/64"},
		{"default route without a gateway", ctrl.Route{Dst: prefix("0.0.0.0/0"), Dev: "eth0"}, Options{IPv4: true},
			"10.0.0.0/24"},
		{"ours", ctrl.Route{Dst: prefix("10.1.0.0/24"), Dev: "eth0", Protocol: ctrl.RouteProtocol}, Options{IPv4: true},
			"10.0.0.0/24"},
		{"a peer by a gateway", ctrl.Route{Dst: prefix("10.0.0.9/32"), Via: addr("10.0.0.1"), Dev: "eth0"},
			Options{IPv4: true}, "10.0.0.0/24 but not 10.0.0.9/32"},
		{"a peer by another device", ctrl.Route{Dst: prefix("10.0.0.9/32"), Dev: "eth1"}, Options{IPv4: true},
			"10.0.0.0/24 but not 10.0.0.9/32"},
		{"a peer that is refused", ctrl.Route{Dst: prefix("10.0.0.9/32"), Kind: "prohibit"}, Options{IPv4: true},
			"10.0.0.0/24 but not 10.0.0.9/32"},
		{"the same once more, by a gateway", ctrl.Route{Dst: prefix("10.0.0.0/24"), Via: addr("10.0.0.1"), Dev: "eth0",
			Metric: 9}, Options{IPv4: true}, "10.0.0.0/24"},
		{"by a gateway, elsewhere", ctrl.Route{Dst: prefix("10.9.0.0/32"), Via: addr("10.0.0.1"), Dev: "eth0"},
			Options{IPv4: true}, "10.0.0.0/24"},
		{"ours to a node", ctrl.Route{Dst: prefix("10.0.0.128/25"), Via: addr("10.0.0.9"), Dev: "eth0",
			Protocol: ctrl.RouteProtocol}, Options{IPv4: true}, "10.0.0.0/24"},
		{"a pod", ctrl.Route{Dst: prefix("10.0.0.9/32"), Dev: "veth1"}, Options{IPv4: true, Overlay: wan},
			"10.0.0.0/24"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := host()
			v.routes = append(v.routes, tt.add)
			tt.o.Iface = []string{"eth0"}
			i, err := choose(tt.o, v, nil, Iface{})
			if err != nil {
				t.Fatal(err)
			}
			if got := i.OnLink.String(); got != tt.want || i.Index != 2 || i.MTU != 1500 {
				t.Errorf("on link %q, want %q: %+v", got, tt.want, i)
			}
		})
	}
}
