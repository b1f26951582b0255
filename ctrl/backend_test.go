package ctrl

import (
	"net/netip"
	"strings"
	"testing"

	"weft/lease"
)

func TestNewBackendRefuses(t *testing.T) {
	tests := []struct {
		name, backend string
		self          func(*Self)
		want          string
	}{
		{"no type", `{}`, nil, `unknown backend type ""; known are alloc, extension, host-gw, ipip, udp, vxlan, wireguard`},
		{"unknown type", `{"Type":"IPSec"}`, nil, `unknown backend type "ipsec"; known are`},
		{"udp port", `{"Type":"udp","Port":65536}`, nil, "udp backend: config key Port is 65536, allowed are 1 to 65535"},
		{"wrong form", `{"Type":"udp","Port":"x"}`, nil, "udp backend: config key Port is a string, it has to be a whole number"},
		{"wrong form of a switch", `{"Type":"vxlan","DirectRouting":"yes"}`, nil, "vxlan backend: config key DirectRouting is a string, it has to be a true or false"},
		{"wrong form of a text", `{"Type":"wireguard","Mode":1}`, nil, "wireguard backend: config key Mode is a number, it has to be a string"},
		{"udp carrier", `{"Type":"udp","Carrier":"pigeon"}`, nil, `config key Carrier is "pigeon", allowed are userspace, kernel, auto`},
		{"udp without fou", `{"Type":"udp","Carrier":"kernel"}`, func(s *Self) { s.NoFOU = "no module" }, "config key Carrier is kernel, but this kernel cannot: no module"},
		{"udp in the kernel with IPv6", `{"Type":"udp","Carrier":"kernel"}`, func(s *Self) { s.FOU = true }, "carries IPv4 only, but IPv6Network is set"},
		{"udp MTU", `{"Type":"udp"}`, func(s *Self) { s.Iface.MTU = 90 }, "MTU 90 of interface eth0 leaves less than the 1280 bytes that IPv6 needs, after 28 of overhead"},
		{"udp MTU one too small for IPv6", `{"Type":"udp"}`, func(s *Self) { s.Iface.MTU = 1307 }, "MTU 1307 of interface eth0 leaves less than the 1280 bytes"},
		{"vxlan VNI", `{"Type":"vxlan","VNI":16777216}`, nil, "config key VNI is 16777216, allowed are 0 to 16777215"},
		{"vxlan two errors", `{"Type":"vxlan","VNI":-1,"Port":-1}`, nil, "config key VNI is -1, allowed are 0 to 16777215\nconfig key Port is -1"},
		{"vxlan MTU", `{"Type":"vxlan","MTU":110}`, nil, "MTU 110 of the config leaves less than the 1280 bytes that IPv6 needs, after 50 of overhead"},
		{"vxlan MTU for IPv6", `{"Type":"vxlan","MTU":1340}`, nil, "MTU 1340 of the config leaves less than the 1280 bytes that IPv6 needs, after 70 of overhead"},
		{"host-gw behind NAT", `{"Type":"host-gw"}`, func(s *Self) { s.Iface.Public = addr("9.9.9.9") },
			"the public address 9.9.9.9 fd31::1 is not the address 172.31.0.1 fd31::1 of interface eth0: nodes behind NAT cannot route to each other"},
		{"host-gw behind NAT, one family", `{"Type":"host-gw"}`, func(s *Self) { s.Iface = Iface{Name: "eth0", Addr: addr("10.0.0.1"), Public: addr("9.9.9.9")} },
			"the public address 9.9.9.9 is not the address 10.0.0.1 of interface eth0"},
		{"ipip MTU", `{"Type":"ipip"}`, func(s *Self) { s.Iface.MTU = 20 }, "leaves less than the 1280 bytes that IPv6 needs, after 20 of overhead"},
		{"ipip form", `{"Type":"ipip","DirectRouting":1}`, nil, "config key DirectRouting is a number"},
		{"wireguard port", `{"Type":"wireguard","ListenPort":0}`, nil, "config key ListenPort is 0"},
		{"wireguard mode", `{"Type":"wireguard","Mode":"both"}`, nil, `config key Mode is "both", allowed are separate, auto, ipv4, ipv6`},
		{"wireguard psk", `{"Type":"wireguard","PSK":"!"}`, nil, "config key PSK: key is not base64"},
		{"wireguard key", `{"Type":"wireguard"}`, func(s *Self) { s.PrivateKey = Key{} }, "no private key"},
		{"wireguard MTU", `{"Type":"wireguard","MTU":100}`, nil, "after 80 of overhead"},
		{"extension quotation", `{"Type":"extension","SubnetAddCommand":"echo 'x"}`, nil, "config key SubnetAddCommand: command has an open ' quotation"},
		{"extension form", `{"Type":"extension","SubnetAddCommand":1}`, nil, "config key SubnetAddCommand is a number"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := me()
			if tt.self != nil {
				tt.self(&s)
			}
			_, err := NewBackend(network(t, tt.backend), s)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestNewBackendWithBrokenObject(t *testing.T) {
	n := network(t, `{"Type":"udp"}`)
	n.Backend.Raw = []byte(`{`)
	if _, err := NewBackend(n, me()); err == nil || !strings.Contains(err.Error(), "decode config") {
		t.Errorf("got %v", err)
	}
	n.Backend.Raw = nil
	if _, err := NewBackend(n, me()); err != nil {
		t.Errorf("without an object: %v", err)
	}
}

func TestSpec(t *testing.T) {
	tests := []struct {
		name    string
		network lease.Network
		self    func(*Self)
		want    Spec
	}{
		{"udp", network(t, `{"Type":"UDP"}`), nil, Spec{Type: "udp", MTU: 1472, Userspace: true, Port: 8285}},
		{"udp auto without fou", only4(network(t, `{"Type":"udp","Carrier":"auto"}`)), nil, Spec{Type: "udp", MTU: 1472, Userspace: true, Port: 8285}},
		{"udp auto", only4(network(t, `{"Type":"udp","Carrier":"auto"}`)), func(s *Self) { s.FOU = true }, Spec{Type: "udp", MTU: 1472, Port: 8285}},
		{"udp auto with IPv6", network(t, `{"Type":"udp","Carrier":"auto"}`), func(s *Self) { s.FOU = true }, Spec{Type: "udp", MTU: 1472, Userspace: true, Port: 8285}},
		{"udp over IPv6", network(t, `{"Type":"udp"}`), func(s *Self) { s.Iface.Addr = netip.Addr{} }, Spec{Type: "udp", MTU: 1452, Userspace: true, Port: 8285}},
		{"udp as small as IPv6 may be", network(t, `{"Type":"udp"}`), func(s *Self) { s.Iface.MTU = 1308 }, Spec{Type: "udp", MTU: 1280, Userspace: true, Port: 8285}},
		{"udp as small as IPv4 may be", only4(network(t, `{"Type":"udp"}`)), func(s *Self) { s.Iface.MTU = 96 }, Spec{Type: "udp", MTU: 68, Userspace: true, Port: 8285}},
		{"alloc", network(t, `{"Type":"alloc"}`), nil, Spec{Type: "alloc", MTU: 1500}},
		{"host-gw", network(t, `{"Type":"host-gw"}`), nil, Spec{Type: "host-gw", LeaseType: "host-gw", MTU: 1500}},
		{"ipip", network(t, `{"Type":"ipip"}`), nil, Spec{Type: "ipip", LeaseType: "ipip", MTU: 1480}},
		{"vxlan", network(t, `{"Type":"vxlan","MTU":9000}`), nil, Spec{Type: "vxlan", LeaseType: "vxlan", MTU: 1450,
			Data: []byte(`{"VNI":1,"VtepMAC":"02:00:00:00:00:0a"}`), DataV6: []byte(`{"VNI":1,"VtepMAC":"02:00:00:00:00:0c"}`)}},
		{"vxlan IPv6 only", only6(network(t, `{"Type":"vxlan"}`)), nil, Spec{Type: "vxlan", LeaseType: "vxlan", MTU: 1430,
			DataV6: []byte(`{"VNI":1,"VtepMAC":"02:00:00:00:00:0c"}`)}},
		{"wireguard", network(t, `{"Type":"wireguard"}`), nil, Spec{Type: "wireguard", LeaseType: "wireguard", MTU: 1420,
			Data: []byte(`{"PublicKey":"` + ownPublic(t) + `","Port":51820}`), DataV6: []byte(`{"PublicKey":"` + ownPublic(t) + `","Port":51821}`)}},
		{"wireguard in one device", network(t, `{"Type":"wireguard","Mode":"ipv4"}`), nil, Spec{Type: "wireguard", LeaseType: "wireguard", MTU: 1420,
			Data: []byte(`{"PublicKey":"` + ownPublic(t) + `","Port":51820}`), DataV6: []byte(`{"PublicKey":"` + ownPublic(t) + `","Port":51820}`)}},
		{"wireguard IPv6 only", only6(network(t, `{"Type":"wireguard"}`)), nil, Spec{Type: "wireguard", LeaseType: "wireguard", MTU: 1420,
			DataV6: []byte(`{"PublicKey":"` + ownPublic(t) + `","Port":51821}`)}},
		{"extension", network(t, `{"Type":"extension","PreStartupCommand":"p"}`), func(s *Self) { s.Startup = `a"b` },
			Spec{Type: "extension", LeaseType: "extension", MTU: 1500, Data: []byte(`"a\"b"`)}},
		{"extension without a command", network(t, `{"Type":"extension"}`), nil, Spec{Type: "extension", LeaseType: "extension", MTU: 1500}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := me()
			if tt.self != nil {
				tt.self(&s)
			}
			b, err := NewBackend(tt.network, s)
			if err != nil {
				t.Fatal(err)
			}
			got := b.Spec()
			if got.Type != tt.want.Type || got.LeaseType != tt.want.LeaseType || got.MTU != tt.want.MTU || got.Userspace != tt.want.Userspace ||
				got.Port != tt.want.Port || string(got.Data) != string(tt.want.Data) || string(got.DataV6) != string(tt.want.DataV6) {
				t.Errorf("got  %+v %s %s\nwant %+v %s %s", got, got.Data, got.DataV6, tt.want, tt.want.Data, tt.want.DataV6)
			}
		})
	}
}

// TestVTEPDerived holds what makes a made-up tunnel end fit for use: it is the same each time, differs by node, VNI and
// family, and is a unicast, locally administered address.
func TestVTEPDerived(t *testing.T) {
	seen := map[string]string{}
	for _, public := range []string{"172.31.0.1", "172.31.0.2"} {
		for _, cfg := range []string{`{"Type":"vxlan"}`, `{"Type":"vxlan","VNI":2}`} {
			s := me()
			s.VTEP, s.VTEP6 = MAC{}, MAC{}
			s.Iface.Public, s.Iface.Public6 = addr(public), addr("fd31::"+public[len(public)-1:])
			first, err := NewBackend(network(t, cfg), s)
			if err != nil {
				t.Fatal(err)
			}
			again, err := NewBackend(network(t, cfg), s)
			if err != nil {
				t.Fatal(err)
			}
			if string(first.Spec().Data) != string(again.Spec().Data) {
				t.Errorf("%s then %s", first.Spec().Data, again.Spec().Data)
			}
			for _, l := range first.Plan(node(1, "", "", ""), nil).Links {
				if l.MAC[0]&1 != 0 || l.MAC[0]&2 == 0 {
					t.Errorf("%v is not unicast and local", l.MAC)
				}
				id := public + cfg + l.Name
				if other, taken := seen[l.MAC.String()]; taken {
					t.Errorf("%s and %s both have %v", id, other, l.MAC)
				}
				seen[l.MAC.String()] = id
			}
		}
	}
}

func TestWireGuardOuter(t *testing.T) {
	v4, v6, priv4, priv6 := addr("8.8.8.8"), addr("2a00::1"), addr("10.0.0.1"), addr("fd00::1")
	none := netip.Addr{}
	tests := []struct {
		mode         string
		ours, a4, a6 netip.Addr
		want         netip.Addr
	}{
		{"ipv4", v6, v4, v6, v4},
		{"ipv6", v6, v4, v6, v6},
		{"auto", v6, none, v6, v6},
		{"auto", v6, v4, none, v4},
		{"auto", v6, v4, v6, v4},
		{"auto", v6, priv4, v6, v6},
		{"auto", priv6, priv4, v6, priv4},
		{"auto", none, priv4, v6, priv4},
		{"auto", v6, priv4, priv6, priv4},
	}
	for _, tt := range tests {
		w := wireGuard{mode: tt.mode, self: Self{Iface: Iface{Public6: tt.ours}}}
		if got := w.outer(tt.a4, tt.a6); got != tt.want {
			t.Errorf("%s, ours %v, theirs %v and %v: got %v, want %v", tt.mode, tt.ours, tt.a4, tt.a6, got, tt.want)
		}
	}
}

// TestKeyHidden keeps secrets out of logs.
func TestKeyHidden(t *testing.T) {
	k := Key{1, 2, 3}
	if got := k.String(); got != "(hidden)" {
		t.Errorf("got %q", got)
	}
	if got := (Key{}).String(); got != "(none)" {
		t.Errorf("got %q", got)
	}
	back, err := ParseKey(k.Base64())
	if err != nil || back != k {
		t.Errorf("got %v, %v", back, err)
	}
	if _, err := (Key{}).public(); err == nil {
		t.Error("no private key has a public one")
	}
}
