package underlay

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/ctrl"
)

// noRoute knows no routes.
func noRoute(netip.Addr) (string, netip.Addr, error) {
	return "", netip.Addr{}, errors.New("network is unreachable")
}

// node is a machine with a dual-stack interface, a VPN that is down and a veth.
func node() hostNet {
	return hostNet{
		links: []ctrl.Link{
			{Name: "lo", Index: 1, MTU: 65536, Up: true}, {Name: "eth0", Index: 2, MTU: 1500, Up: true},
			{Name: "tun9", Index: 3, MTU: 1420, Up: true}, {Name: "veth7", Index: 4, MTU: 1500, Up: true},
		},
		addrs: []ctrl.IfaceAddr{
			{Dev: "lo", Addr: addr("127.0.0.1"), Bits: 8, Permanent: true},
			{Dev: "eth0", Addr: addr("10.0.0.2"), Bits: 24},
			{Dev: "eth0", Addr: addr("fd31::2"), Bits: 64, Permanent: true},
			{Dev: "tun9", Addr: addr("10.99.0.2"), Bits: 32, Permanent: true},
			{Dev: "veth7", Addr: addr("169.254.7.7"), Bits: 16, Permanent: true},
		},
		routes: []ctrl.Route{
			{Dst: prefix("0.0.0.0/0"), Via: addr("10.0.0.254"), Dev: "eth0", Metric: 100},
			{Dst: prefix("::/0"), Via: addr("fd31::ff"), Dev: "eth0"},
		},
	}
}

func (h *hostNet) addAddr(dev, p string, flags ...func(*ctrl.IfaceAddr)) {
	x := prefix(p)
	a := ctrl.IfaceAddr{Dev: dev, Addr: x.Addr(), Bits: x.Bits(), Permanent: true}
	for _, set := range flags {
		set(&a)
	}
	h.addrs = slices.Concat([]ctrl.IfaceAddr{a}, h.addrs) // the kernel lists the newest IPv6 address first
}

func (h *hostNet) deleteAddr(a string) {
	h.addrs = slices.DeleteFunc(slices.Clone(h.addrs), func(x ctrl.IfaceAddr) bool { return x.Addr == addr(a) })
}

func (h *hostNet) routeDefault(dev string, metric int) {
	h.routes = append(h.routes, ctrl.Route{Dst: prefix("0.0.0.0/0"), Dev: dev, Metric: metric})
}

func (h *hostNet) deleteDefault() { h.routes = h.routes[1:] }

func dynamic(a *ctrl.IfaceAddr)      { a.Permanent = false }
func isSecondary(a *ctrl.IfaceAddr)  { a.Secondary = true }
func isDeprecated(a *ctrl.IfaceAddr) { a.Deprecated = true }
func isTentative(a *ctrl.IfaceAddr)  { a.Tentative = true }
func isDuplicate(a *ctrl.IfaceAddr)  { a.Tentative, a.Duplicate = true, true }
func down(h *hostNet, dev string)    { setLink(h, dev, func(l *ctrl.Link) { l.Up = false }) }
func onAddr(h *hostNet, a string, set func(*ctrl.IfaceAddr)) {
	for i := range h.addrs {
		if h.addrs[i].Addr == addr(a) {
			set(&h.addrs[i])
		}
	}
}

func setLink(h *hostNet, dev string, set func(*ctrl.Link)) {
	for i := range h.links {
		if h.links[i].Name == dev {
			set(&h.links[i])
		}
	}
}

// TestChooseInUse changes a machine while eth0 is in use.
func TestChooseInUse(t *testing.T) {
	v4, v6, both := Options{IPv4: true}, Options{IPv6: true}, Options{IPv4: true, IPv6: true}
	byName := Options{IPv4: true, Iface: []string{"eth1", "eth0"}}
	tests := []struct {
		name   string
		o      Options
		change func(*hostNet)
		want   string // name and addresses
		note   string // part of the note; empty: no note
		moves  bool   // waits for the interface in use
		err    string
	}{
		{name: "nothing changed", o: both, change: func(*hostNet) {}, want: "eth0 10.0.0.2 fd31::2"},
		{name: "virtual IP", o: v4, change: func(h *hostNet) { h.addAddr("eth0", "10.0.0.100/32") }, want: "eth0 10.0.0.2"},
		{name: "virtual IP in the subnet", o: v4,
			change: func(h *hostNet) { h.addAddr("eth0", "10.0.0.100/24", isSecondary) }, want: "eth0 10.0.0.2"},
		{name: "permanent address beside the dynamic one", o: v4,
			change: func(h *hostNet) { h.addAddr("eth0", "10.9.0.1/24") }, want: "eth0 10.0.0.2",
			note: "a restart would choose eth0 10.9.0.1 (default route)"},
		{name: "virtual IPv6", o: v6, change: func(h *hostNet) { h.addAddr("eth0", "fd31::100/128") }, want: "eth0 fd31::2"},
		{name: "virtual IP by name", o: byName, change: func(h *hostNet) { h.addAddr("eth0", "10.0.0.100/32") },
			want: "eth0 10.0.0.2"},
		{name: "earlier interface of the flags", o: byName, change: func(h *hostNet) {
			h.links = append(h.links, ctrl.Link{Name: "eth1", Index: 9, MTU: 1500, Up: true})
			h.addAddr("eth1", "10.7.0.1/24")
		}, want: "eth0 10.0.0.2", note: "eth1 10.7.0.1 (--iface=eth1)"},
		{name: "VPN", o: v4, change: func(h *hostNet) { h.routeDefault("tun9", 1) }, want: "eth0 10.0.0.2",
			note: "tun9 10.99.0.2 (default route)"},
		{name: "no default route", o: v4, change: func(h *hostNet) { h.deleteDefault() }, want: "eth0 10.0.0.2",
			note: "a restart would find no interface: default route (no IPv4 default route)"},
		{name: "no default route of one family", o: both, change: func(h *hostNet) { h.routes = h.routes[:1] },
			want: "eth0 10.0.0.2 fd31::2", note: "no IPv6 default route"},
		{name: "link-local default route only", o: v4, change: func(h *hostNet) {
			h.deleteDefault()
			h.routeDefault("veth7", 205)
		}, want: "eth0 10.0.0.2", note: "veth7 169.254.7.7"},
		{name: "MTU and deprecation", o: v4, change: func(h *hostNet) {
			setLink(h, "eth0", func(l *ctrl.Link) { l.MTU = 1400 })
			onAddr(h, "10.0.0.2", isDeprecated)
		}, want: "eth0 10.0.0.2"},
		{name: "tentative again", o: v6, change: func(h *hostNet) { onAddr(h, "fd31::2", isTentative) }, want: "eth0 fd31::2"},

		{name: "renumbered", o: v4, change: func(h *hostNet) {
			h.deleteAddr("10.0.0.2")
			h.addAddr("eth0", "10.0.5.2/24", dynamic)
			h.routeDefault("tun9", 1)
		}, want: "eth0 10.0.5.2"},
		{name: "one family renumbered", o: both, change: func(h *hostNet) {
			h.deleteAddr("10.0.0.2")
			h.addAddr("eth0", "10.0.5.2/24", dynamic)
			h.addAddr("eth0", "fd31::1/64")
		}, want: "eth0 10.0.5.2 fd31::2"},
		{name: "virtual IP left", o: v4, change: func(h *hostNet) {
			h.deleteAddr("10.0.0.2")
			h.addAddr("eth0", "10.0.0.100/32")
		}, err: "only virtual IPs left: eth0 10.0.0.100"},
		{name: "deprecated virtual IP left", o: v6, change: func(h *hostNet) {
			h.deleteAddr("fd31::2")
			h.addAddr("eth0", "fd31::100/128", isDeprecated)
		}, err: "only virtual IPs left: eth0 fd31::100"},
		{name: "DHCPv6 address left", o: v6, change: func(h *hostNet) {
			h.deleteAddr("fd31::2")
			h.addAddr("eth0", "fd31::100/128", dynamic)
		}, want: "eth0 fd31::100", moves: true},
		{name: "address gone, VPN", o: v4, change: func(h *hostNet) {
			h.deleteAddr("10.0.0.2")
			h.routeDefault("tun9", 1)
		}, want: "tun9 10.99.0.2", moves: true},
		{name: "address gone, link-local default route", o: v4, change: func(h *hostNet) {
			h.deleteAddr("10.0.0.2")
			h.deleteDefault()
			h.routeDefault("veth7", 205)
		}, err: "only link-local addresses left: veth7 169.254.7.7 (default route)"},
		{name: "address gone, link-local one instead", o: v4, change: func(h *hostNet) {
			h.deleteAddr("10.0.0.2")
			h.addAddr("eth0", "169.254.3.3/16")
		}, err: "only link-local addresses left: eth0 169.254.3.3"},
		{name: "IPv6 address gone", o: v6, change: func(h *hostNet) {
			h.deleteAddr("fd31::2")
			h.addAddr("eth0", "fe80::2/64")
		}, err: "only link-local addresses left: eth0 fe80::2"},
		{name: "duplicate", o: v6, change: func(h *hostNet) { onAddr(h, "fd31::2", isDuplicate) },
			err: "(duplicates of other hosts: fd31::2)"},
		{name: "down", o: v4, change: func(h *hostNet) {
			down(h, "eth0")
			h.deleteDefault()
			h.routeDefault("tun9", 1)
		}, want: "tun9 10.99.0.2", moves: true},
		{name: "down by name", o: byName, change: func(h *hostNet) { down(h, "eth0") }, want: "eth0 10.0.0.2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := node()
			inUse, err := choose(tt.o, h, noRoute, Iface{})
			if err != nil || inUse.Name != "eth0" {
				t.Fatalf("before: %+v, %v", inUse, err)
			}
			tt.change(&h)
			i, err := choose(tt.o, h.settled(inUse), noRoute, inUse)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %+v, %v\nwant %s", i, err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := i.describe(); got != tt.want || setback(inUse, i) != tt.moves {
				t.Errorf("got %s (setback %v), want %s (%v)", got, setback(inUse, i), tt.want, tt.moves)
			}
			if !strings.Contains(i.Note, tt.note) || tt.note == "" && i.Note != "" {
				t.Errorf("note %q, want %q", i.Note, tt.note)
			}
			l, _ := h.link(i.Name)
			if i.MTU != l.MTU || i.Public != i.Addr {
				t.Errorf("got %+v", i)
			}
		})
	}
}

// TestChooseAfterLinkLocal checks that a link-local address is left for any other one.
func TestChooseAfterLinkLocal(t *testing.T) {
	h := node()
	h.deleteDefault()
	h.routeDefault("veth7", 205)
	inUse, err := choose(Options{IPv4: true}, h, noRoute, Iface{})
	if err != nil || inUse.Name != "veth7" {
		t.Fatalf("got %+v, %v", inUse, err)
	}
	i, err := choose(Options{IPv4: true}, node(), noRoute, inUse)
	if err != nil || i.describe() != "eth0 10.0.0.2" || !setback(inUse, i) {
		t.Errorf("another interface: got %+v, %v", i, err)
	}
	h.addAddr("veth7", "10.3.0.7/24", dynamic)
	i, err = choose(Options{IPv4: true}, h, noRoute, inUse)
	if err != nil || i.describe() != "veth7 10.3.0.7" || setback(inUse, i) {
		t.Errorf("another address: got %+v, %v", i, err)
	}
}

// TestChooseStart tests the choice of a first address.
func TestChooseStart(t *testing.T) {
	v4, v6, both := Options{IPv4: true}, Options{IPv6: true}, Options{IPv4: true, IPv6: true}
	previous := Options{IPv4: true, Previous: addr("10.0.0.2"), Previous6: addr("fd31::2")}
	reach := func(a string) Options { return Options{IPv4: true, CanReach: addr(a)} }
	tests := []struct {
		name   string
		o      Options
		change func(*hostNet)
		want   string
		note   string
		mtu    int // 1500 if 0
		err    string
	}{
		{name: "virtual IP", o: v4, change: func(h *hostNet) { h.addAddr("eth0", "10.0.0.100/32") }, want: "eth0 10.0.0.2"},
		{name: "virtual IPv6", o: v6, change: func(h *hostNet) { h.addAddr("eth0", "fd31::100/128") }, want: "eth0 fd31::2"},
		{name: "virtual IP in the subnet", o: v4,
			change: func(h *hostNet) { h.addAddr("eth0", "10.0.0.100/24", isSecondary) }, want: "eth0 10.0.0.2"},
		{name: "virtual IP alone", o: v4, change: func(h *hostNet) {
			h.deleteAddr("10.0.0.2")
			h.addAddr("eth0", "10.0.0.100/32")
		}, want: "eth0 10.0.0.100"},
		{name: "DHCPv6 and temporary", o: v6, change: func(h *hostNet) {
			h.deleteAddr("fd31::2")
			h.addAddr("eth0", "fd31::100/128", dynamic)
			h.addAddr("eth0", "fd31::7/64", dynamic, isSecondary)
		}, want: "eth0 fd31::100"},
		{name: "deprecated alone", o: v4, change: func(h *hostNet) { onAddr(h, "10.0.0.2", isDeprecated) },
			want: "eth0 10.0.0.2"},
		{name: "deprecated beside another", o: v4, change: func(h *hostNet) {
			onAddr(h, "10.0.0.2", isDeprecated)
			h.addAddr("eth0", "10.0.5.2/24", dynamic)
		}, want: "eth0 10.0.5.2"},
		{name: "deprecated beside temporary", o: v6, change: func(h *hostNet) {
			onAddr(h, "fd31::2", isDeprecated)
			h.addAddr("eth0", "fd31::7/64", dynamic, isSecondary)
		}, want: "eth0 fd31::7"},
		{name: "deprecated beside link-local", o: v6, change: func(h *hostNet) {
			onAddr(h, "fd31::2", isDeprecated)
			h.addAddr("eth0", "fe80::2/64")
		}, want: "eth0 fd31::2"},
		{name: "duplicate", o: v6, change: func(h *hostNet) { h.addAddr("eth0", "fd31::1/64", isDuplicate) },
			want: "eth0 fd31::2"},
		{name: "duplicate by address", o: Options{IPv6: true, Iface: []string{"fd31::1"}},
			change: func(h *hostNet) { h.addAddr("eth0", "fd31::1/64", isDuplicate) },
			err:    "fd31::1 on eth0 is a duplicate: another host has it"},
		{name: "tentative", o: v6, change: func(h *hostNet) { h.addAddr("eth0", "fd31::1/64", isTentative) },
			want: "eth0 fd31::2"},

		{name: "published before", o: previous, change: func(h *hostNet) { h.addAddr("eth0", "10.0.5.2/24") },
			want: "eth0 10.0.0.2"},
		{name: "virtual IP published before",
			o:      Options{IPv4: true, Previous: addr("10.0.0.100")},
			change: func(h *hostNet) { h.addAddr("eth0", "10.0.0.100/32") }, want: "eth0 10.0.0.2"},
		{name: "published before, no default route", o: previous, change: (*hostNet).deleteDefault, want: "eth0 10.0.0.2"},
		{name: "published before, link-local default route", o: previous, change: func(h *hostNet) {
			h.deleteDefault()
			h.routeDefault("veth7", 205)
		}, want: "eth0 10.0.0.2"},
		{name: "published before, default route elsewhere", o: previous,
			change: func(h *hostNet) { h.routeDefault("tun9", 1) }, want: "tun9 10.99.0.2", mtu: 1420},
		{name: "link-local default route first", o: v4, change: func(h *hostNet) { h.routeDefault("veth7", 1) },
			want: "eth0 10.0.0.2"},
		{name: "link-local default route alone", o: v4, change: func(h *hostNet) {
			h.deleteDefault()
			h.routeDefault("veth7", 1)
		}, want: "veth7 169.254.7.7"},
		{name: "default route by a device without an address", o: v4, change: func(h *hostNet) {
			h.deleteAddr("10.99.0.2")
			h.routeDefault("tun9", 1)
		}, want: "eth0 10.0.0.2"},

		{name: "both, without an IPv6 default route", o: both, change: func(h *hostNet) { h.routes = h.routes[:1] },
			want: "eth0 10.0.0.2 fd31::2", note: "eth0 has no IPv6 default route"},
		{name: "both, without an IPv4 default route", o: both, change: (*hostNet).deleteDefault,
			want: "eth0 10.0.0.2 fd31::2", note: "eth0 has no IPv4 default route"},
		{name: "both, IPv6 default route elsewhere", o: both, change: func(h *hostNet) { h.routes[1].Dev = "veth7" },
			want: "eth0 10.0.0.2 fd31::2", note: "eth0 has no IPv6 default route"},
		{name: "both, link-local IPv6 only", o: both, change: func(h *hostNet) {
			h.routes = h.routes[:1]
			h.deleteAddr("fd31::2")
			h.addAddr("eth0", "fe80::2/64")
		}, err: "no IPv6 default route, and eth0 has no global IPv6 address"},

		{name: "can reach itself", o: reach("10.0.0.2"), change: func(*hostNet) {}, want: "eth0 10.0.0.2"},
		{name: "can reach loopback", o: reach("127.0.0.5"), change: func(*hostNet) {},
			err: "--iface-can-reach=127.0.0.5 (the route is by the loopback device lo)"},
		{name: "loopback by name", o: Options{IPv4: true, Iface: []string{"lo"}}, change: func(*hostNet) {},
			err: "lo has no IPv4 address that other nodes could reach"},
		{name: "address of loopback", o: Options{IPv4: true, Iface: []string{"lo"}}, change: func(h *hostNet) {
			h.addAddr("lo", "10.10.10.10/32")
			setLink(h, "eth0", func(l *ctrl.Link) { l.MTU = 9000 })
		}, want: "lo 10.10.10.10", mtu: 9000},
		{name: "can reach an address of loopback", o: reach("10.10.10.10"), change: func(h *hostNet) {
			h.addAddr("lo", "10.10.10.10/32")
			h.deleteDefault()
		}, want: "lo 10.10.10.10"},
	}
	local := func(a netip.Addr) (string, netip.Addr, error) { return "lo", a, nil }
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := node()
			tt.change(&h)
			i, err := choose(tt.o, h.settled(Iface{}), local, Iface{})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %+v, %v\nwant %s", i, err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, mtu := i.describe(), cmp.Or(tt.mtu, 1500); got != tt.want || i.MTU != mtu {
				t.Errorf("got %s with MTU %d, want %s with %d", got, i.MTU, tt.want, mtu)
			}
			if !strings.Contains(i.Note, tt.note) || tt.note == "" && i.Note != "" {
				t.Errorf("note %q, want %q", i.Note, tt.note)
			}
		})
	}
}
