package backend

import (
	"net/netip"
	"strings"
	"testing"

	"weft/ctrl"
	"weft/ctrl/underlay"
)

func TestNewInvalid(t *testing.T) {
	tests := []struct {
		name, backend string
		self          func(*LocalNode)
		want          string
	}{
		{"no type", `{}`, nil,
			`unknown backend type "", want one of ali-vpc, alloc, aws-vpc, extension, gce, host-gw, ipip, ipsec, tencent-vpc, udp, vxlan, wireguard`},
		{"unknown type", `{"Type":"Tunnel"}`, nil, `unknown backend type "tunnel", want one of`},
		{"udp port", `{"Type":"udp","Port":65536}`, nil, "udp backend: config key Port is 65536, want 1 to 65535"},
		{"wrong form", `{"Type":"udp","Port":"x"}`, nil,
			"udp backend: config key Port is \"x\", want a whole number"},
		{"wrong form of a switch", `{"Type":"vxlan","DirectRouting":"yes"}`, nil,
			"vxlan backend: config key DirectRouting is \"yes\", want true or false"},
		{"wrong form of a text", `{"Type":"wireguard","Mode":1}`, nil,
			"wireguard backend: config key Mode is 1, want a string"},
		{"udp carrier", `{"Type":"udp","Carrier":"pigeon"}`, nil,
			`config key Carrier is "pigeon", want userspace, kernel or auto`},
		{"udp without fou", `{"Type":"udp","Carrier":"kernel"}`, func(s *LocalNode) { s.FOUUnavailable = "no module" },
			"config key Carrier is kernel, but the kernel cannot carry the udp backend: no module"},
		{"udp in the kernel with IPv6", `{"Type":"udp","Carrier":"kernel"}`, func(s *LocalNode) { s.FOU = true },
			"carries IPv4 only, but IPv6Network is set"},
		{"vxlan VNI", `{"Type":"vxlan","VNI":16777216}`, nil, "config key VNI is 16777216, want 0 to 16777215"},
		{"vxlan two errors", `{"Type":"vxlan","VNI":-1,"Port":-1}`, nil,
			"config key VNI is -1, want 0 to 16777215\nconfig key Port is -1"},
		{"vxlan MTU", `{"Type":"vxlan","MTU":110}`, nil,
			"MTU 110 of the config leaves less than the 68 bytes that IPv4 needs, after 50 of overhead"},
		{"host-gw behind NAT", `{"Type":"host-gw"}`, func(s *LocalNode) { s.Iface.Public = addr("9.9.9.9") },
			"public address 9.9.9.9 fd31::1 is not address 172.31.0.1 fd31::1 of interface eth0: nodes behind NAT cannot route to each other"},
		{"host-gw behind NAT, one family", `{"Type":"host-gw"}`, func(s *LocalNode) {
			s.Iface = underlay.Iface{Name: "eth0", Addr: addr("10.0.0.1"), Public: addr("9.9.9.9")}
		},
			"public address 9.9.9.9 is not address 10.0.0.1 of interface eth0"},
		{"ipip MTU", `{"Type":"ipip"}`, func(s *LocalNode) { s.Iface.MTU = 20 },
			"leaves less than the 68 bytes that IPv4 needs, after 20 of overhead"},
		{"ipip form", `{"Type":"ipip","DirectRouting":1}`, nil, "config key DirectRouting is 1, want true or false"},
		{"wireguard port", `{"Type":"wireguard","ListenPort":0}`, nil, "config key ListenPort is 0"},
		{"wireguard mode", `{"Type":"wireguard","Mode":"both"}`, nil,
			`config key Mode is "both", want separate, auto, ipv4 or ipv6`},
		{"wireguard psk", `{"Type":"wireguard","PSK":"!"}`, nil, "config key PSK: key is not base64"},
		{"wireguard key", `{"Type":"wireguard"}`, func(s *LocalNode) { s.PrivateKey = ctrl.Key{} }, "no private key"},
		{"wireguard MTU", `{"Type":"wireguard","MTU":100}`, nil, "after 80 of overhead"},
		{"aws-vpc table form", `{"Type":"aws-vpc","RouteTableID":7}`, nil,
			"aws-vpc backend: config key RouteTableID is 7, want a string or a list of strings"},
		{"aws-vpc tables form", `{"Type":"aws-vpc","RouteTableID":["rtb-1",7]}`, nil,
			`config key RouteTableID is ["rtb-1",7], want a string or a list of strings`},
		{"aws-vpc empty table", `{"Type":"aws-vpc","RouteTableID":["rtb-1",""]}`, nil,
			"config key RouteTableID has an empty ID"},
		{"gce form", `{"Type":"gce","Zone":1}`, nil, "gce backend: config key Zone is 1, want a string"},
		{"ali-vpc with IPv6", `{"Type":"ali-vpc"}`, nil, "ali-vpc backend: carries IPv4 only, but IPv6Network is set"},
		{"ali-vpc half a key", `{"Type":"ali-vpc","AccessKeyID":"LTAI"}`, nil,
			"config keys AccessKeyID and AccessKeySecret belong together, and only one is set"},
		{"tencent-vpc secret form", `{"Type":"tencent-vpc","AccessKeyID":"a","accesskeysecret":731}`, nil,
			"tencent-vpc backend: config key accesskeysecret is not a string"},
		{"extension quotation", `{"Type":"extension","SubnetAddCommand":"echo 'x"}`, nil,
			"config key SubnetAddCommand: command has an unclosed ' quotation"},
		{"extension form", `{"Type":"extension","SubnetAddCommand":1}`, nil, "config key SubnetAddCommand is 1, want a string"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := me()
			if tt.self != nil {
				tt.self(&s)
			}
			_, err := New(network(t, tt.backend), s)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestNewInvalidJSON(t *testing.T) {
	n := network(t, `{"Type":"udp"}`)
	n.Backend.Raw = []byte(`{`)
	if _, err := New(n, me()); err == nil || !strings.Contains(err.Error(), "decode config") {
		t.Errorf("got %v", err)
	}
	n.Backend.Raw = nil
	if _, err := New(n, me()); err != nil {
		t.Errorf("without an object: %v", err)
	}
}

// TestDerivedVTEP checks that a derived address is stable, differs by node, VNI and family, and is
// a unicast, locally administered address.
func TestDerivedVTEP(t *testing.T) {
	seen := map[string]string{}
	for _, public := range []string{"172.31.0.1", "172.31.0.2"} {
		for _, cfg := range []string{`{"Type":"vxlan"}`, `{"Type":"vxlan","VNI":2}`} {
			s := me()
			s.VTEP, s.VTEP6 = ctrl.MAC{}, ctrl.MAC{}
			s.Iface.Public, s.Iface.Public6 = addr(public), addr("fd31::"+public[len(public)-1:])
			first, err := New(network(t, cfg), s)
			if err != nil {
				t.Fatal(err)
			}
			again, err := New(network(t, cfg), s)
			if err != nil {
				t.Fatal(err)
			}
			if string(first.Advertisement().Attrs.BackendData) != string(again.Advertisement().Attrs.BackendData) {
				t.Errorf("%s then %s", first.Advertisement().Attrs.BackendData, again.Advertisement().Attrs.BackendData)
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
		w := wireGuard{mode: tt.mode, local: LocalNode{Iface: underlay.Iface{Public6: tt.ours}}}
		if got := w.outer(tt.a4, tt.a6); got != tt.want {
			t.Errorf("%s, ours %v, theirs %v and %v: got %v, want %v", tt.mode, tt.ours, tt.a4, tt.a6, got, tt.want)
		}
	}
}
