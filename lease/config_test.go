package lease

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func mustParseNetwork(t testing.TB, config string) Network {
	t.Helper()
	n, err := ParseNetwork([]byte(config))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestParseNetworkDefaults compares with values read from a running flannel.
func TestParseNetworkDefaults(t *testing.T) {
	tests := []struct {
		config             string
		subnetLen          int
		subnetMin, max     string
		v6Len              int
		v6Min, v6Max, kind string
	}{
		{config: `{"network":"10.3.0.0/16"}`, subnetLen: 24, subnetMin: "10.3.1.0", max: "10.3.255.0", kind: "udp"},
		{config: `{"Network":"10.3.0.77/16"}`, subnetLen: 24, subnetMin: "10.3.1.0", max: "10.3.255.0", kind: "udp"},
		{config: `{"Network":"10.5.0.0/20"}`, subnetLen: 24, subnetMin: "10.5.1.0", max: "10.5.15.0", kind: "udp"},
		{config: `{"Network":"10.5.0.0/22"}`, subnetLen: 24, subnetMin: "10.5.1.0", max: "10.5.3.0", kind: "udp"},
		{config: `{"Network":"10.5.0.0/23"}`, subnetLen: 25, subnetMin: "10.5.0.128", max: "10.5.1.128", kind: "udp"},
		{config: `{"Network":"10.5.0.0/28"}`, subnetLen: 30, subnetMin: "10.5.0.4", max: "10.5.0.12", kind: "udp"},
		{config: `{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0","SubnetLen":28}`,
			subnetLen: 28, subnetMin: "10.3.5.0", max: "10.3.8.0", kind: "udp"},
		{config: `{"Network":"10.3.0.0/16","SubnetMin":"0.0.0.0","SUBNETMAX":"0.0.0.0"}`,
			subnetLen: 24, subnetMin: "10.3.1.0", max: "10.3.255.0", kind: "udp"},
		{config: `{"EnableIPv4":false,"enableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"VXLAN","VNI":7}}`,
			v6Len: 64, v6Min: "fc00:0:0:1::", v6Max: "fc00:0:0:ffff::", kind: "vxlan"},
		{config: `{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/64","backend":{}}`,
			subnetLen: 24, subnetMin: "10.3.1.0", max: "10.3.255.0",
			v6Len: 66, v6Min: "fc00::4000:0:0:0", v6Max: "fc00::c000:0:0:0"},
		{config: `{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/124","Backend":null}`,
			subnetLen: 24, subnetMin: "10.3.1.0", max: "10.3.255.0", v6Len: 126, v6Min: "fc00::4", v6Max: "fc00::c"},
		{config: `{"Network":"224.0.0.0/3","Other":{"unknown":[1]}}`,
			subnetLen: 24, subnetMin: "224.0.1.0", max: "255.255.255.0", kind: "udp"},
	}
	for _, test := range tests {
		n, err := ParseNetwork([]byte(test.config))
		if err == nil {
			err = n.Check()
		}
		if err != nil {
			t.Errorf("%s: %v", test.config, err)
			continue
		}
		got := []any{n.SubnetLen, text(n.SubnetMin), text(n.SubnetMax), n.IPv6SubnetLen, text(n.IPv6SubnetMin),
			text(n.IPv6SubnetMax), n.Backend.Type}
		want := []any{test.subnetLen, test.subnetMin, test.max, test.v6Len, test.v6Min, test.v6Max, test.kind}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("%s: got %v, want %v", test.config, got, want)
				break
			}
		}
		if n.Network != n.Network.Masked() {
			t.Errorf("%s: network %s is not masked", test.config, n.Network)
		}
	}
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func TestParseNetworkBackend(t *testing.T) {
	n := mustParseNetwork(t, `{"Network":"10.3.0.0/16","Backend":{"Type":"udp","Port":9000}}`)
	if string(n.Backend.Raw) != `{"Type":"udp","Port":9000}` {
		t.Errorf("got %s", n.Backend.Raw)
	}
	if n = mustParseNetwork(t, `{"Network":"10.3.0.0/16"}`); n.Backend.Raw != nil || n.Backend.Type != "udp" {
		t.Errorf("without a Backend key: %+v", n.Backend)
	}
	if n = mustParseNetwork(t, `{"EnableNFTables":true}`); !n.EnableNFTables || !n.EnableIPv4 || n.EnableIPv6 {
		t.Errorf("got %+v", n)
	}
}

func TestParseNetworkErrors(t *testing.T) {
	tests := []struct{ config, want string }{
		{``, "unexpected end"},
		{`{"Network":"10.3.0.0/16"`, "unexpected end"},
		{`{"Network":`, "unexpected end"},
		{`5`, "decode network config: 5 is not an object"},
		{`{"Network":"10.3.0.0/16"} x`, "text after the object: x"},
		{`{"Network":"fc00::/48"}`, "Network: fc00::/48 is of the wrong address family"},
		{`{"EnableIPv6":true,"IPv6Network":"10.0.0.0/8"}`, "IPv6Network: 10.0.0.0/8 is of the wrong address family"},
		{`{"Network":"::ffff:10.3.0.0/112"}`, "wrong address family"},
		{`{"Network":"10.3.0.0"}`,
			`decode network config: Network is "10.3.0.0", want a network such as 10.5.0.0/16`},
		{`{"Network":7}`, "decode network config: Network is 7, want a network such as 10.5.0.0/16"},
		{`{"Network":["10.3.0.0/16"]}`, `Network is ["10.3.0.0/16"], want a network`},
		{`{"SubnetMin":"fc00::"}`, "SubnetMin: fc00:: is of the wrong address family"},
		{`{"SubnetMin":"10.3"}`, `SubnetMin is "10.3", want an IP address`},
		{`{"EnableIPv6":true,"IPv6SubnetMax":"fe80::1%eth0"}`, "IPv6SubnetMax"},
		{`{"SubnetLen":-1}`, "SubnetLen is -1, want a whole number from 0"},
		{`{"SubnetLen":"24"}`, `SubnetLen is "24", want a whole number from 0`},
		{`{"enableipv6":"true"}`, `enableipv6 is "true", want true or false`},
		{`{"Backend":"udp"}`, `error decoding Backend property of config: "udp" is not an object, want {"Type": ...}`},
		{`{"Backend":{"Type":5}}`, "error decoding Backend property of config: Type is 5, want a string"},
	}
	for _, test := range tests {
		if _, err := ParseNetwork([]byte(test.config)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.config, err, test.want)
		}
	}
}

// TestDisabledFamilyHasNoEffect compares with the config without the keys.
func TestDisabledFamilyHasNoEffect(t *testing.T) {
	for config, want := range map[string]string{
		`{"Network":"10.3.0.0/16","IPv6Network":"fd00::/104","IPv6SubnetLen":7,"IPv6SubnetMin":"x"}`: `{"Network":"10.3.0.0/16"}`,
		`{"EnableIPv4":false,"EnableIPv6":true,"Network":"x","SubnetLen":"y","SubnetMin":1,"SubnetMax":[],` +
			`"IPv6Network":"fd00::/48"}`: `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"}`,
	} {
		if got := mustParseNetwork(t, config); !reflect.DeepEqual(got, mustParseNetwork(t, want)) {
			t.Errorf("%s: got %+v", config, got)
		}
	}
}

func TestUnknownKeys(t *testing.T) {
	n := mustParseNetwork(t, `{"MTU":1450,"network":"10.3.0.0/16","IPTables":false,"Backend":{"Type":"udp","Prot":1}}`)
	if !slices.Equal(n.Unknown, []string{"MTU", "IPTables"}) {
		t.Errorf("got %q", n.Unknown)
	}
	err := mustParseNetwork(t, `{"Netwrok":"10.3.0.0/16","MTU":1}`).Check()
	want := `please define a correct Network parameter in the flannel config: unknown key "Netwrok", did you mean "Network"?`
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

// TestCheckErrors expects flannel's texts, with the exceptions listed at Check.
func TestCheckErrors(t *testing.T) {
	const v6 = `"EnableIPv4":false,"EnableIPv6":true,`
	tests := []struct{ config, want string }{
		{`{}`, "please define a correct Network parameter in the flannel config"},
		{`{"Network":"0.0.0.0/0"}`, "please define a correct Network parameter in the flannel config"},
		{`{"Network":"10.3.0.0/16","SubnetLen":31}`, "SubnetLen must be less than /31"},
		{`{"Network":"10.3.0.0/16","SubnetLen":4000000000}`, "SubnetLen must be less than /31"},
		{`{"Network":"10.3.0.0/16","SubnetLen":17}`, "network must be able to accommodate at least four subnets"},
		{`{"Network":"10.3.0.0/16","SubnetLen":8}`, "network must be able to accommodate at least four subnets"},
		{`{"Network":"10.3.0.0/29"}`, "network is too small. Minimum useful network prefix is /28"},
		{`{"Network":"10.3.0.0/32"}`, "network is too small. Minimum useful network prefix is /28"},
		{`{"Network":"10.3.0.0/16","SubnetMin":"10.4.0.0"}`, "SubnetMin is not in the range of the Network"},
		{`{"Network":"10.3.0.0/16","SubnetMax":"10.2.0.0"}`, "SubnetMax is not in the range of the Network"},
		{`{"Network":"10.3.0.0/16","SubnetMin":"10.3.0.1"}`, "SubnetMin is not on a SubnetLen boundary: 10.3.0.1"},
		{`{"Network":"10.3.0.0/16","SubnetMax":"10.3.9.1"}`, "SubnetMax is not on a SubnetLen boundary: 10.3.9.1"},
		{`{"Network":"10.3.0.0/16","SubnetMin":"10.3.9.0","SubnetMax":"10.3.5.0"}`,
			"SubnetMin 10.3.9.0 is above SubnetMax 10.3.5.0: no subnet is left"},
		{`{` + v6 + `"Network":"10.3.0.0/16"}`, "please define a correct IPv6Network parameter in the flannel config"},
		{`{` + v6 + `"IPv6Network":"::/0"}`, "please define a correct IPv6Network parameter in the flannel config"},
		{`{` + v6 + `"IPv6Network":"fc00::/48","IPv6SubnetLen":127}`, "SubnetLen must be less than /127"},
		{`{` + v6 + `"IPv6Network":"fc00::/48","IPv6SubnetLen":49}`,
			"network must be able to accommodate at least four subnets"},
		{`{` + v6 + `"IPv6Network":"fc00::/125"}`, "IPv6Network is too small. Minimum useful network prefix is /124"},
		{`{` + v6 + `"IPv6Network":"fc00::/48","IPv6SubnetMin":"fc01::"}`,
			"IPv6SubnetMin is not in the range of the IPv6Network"},
		{`{` + v6 + `"IPv6Network":"fc00::/48","IPv6SubnetMax":"fc01::"}`,
			"IPv6SubnetMax is not in the range of the IPv6Network"},
		{`{` + v6 + `"IPv6Network":"fc00::/48","IPv6SubnetMin":"fc00::1"}`,
			"IPv6SubnetMin is not on a SubnetLen boundary: fc00::1"},
		{`{` + v6 + `"IPv6Network":"fc00::/48","IPv6SubnetMax":"fc00::1"}`,
			"IPv6SubnetMax is not on a SubnetLen boundary: fc00::1"},
		{`{"EnableIPv4":false}`, "none defined stack: enable at least one of EnableIPv4 and EnableIPv6"},
	}
	for _, test := range tests {
		err := mustParseNetwork(t, test.config).Check()
		if err == nil || err.Error() != test.want {
			t.Errorf("%s:\n got %v\nwant %s", test.config, err, test.want)
		}
	}
}

func TestFits(t *testing.T) {
	v4 := mustParseNetwork(t, `{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0"}`)
	dual := mustParseNetwork(t, `{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}`)
	tests := []struct {
		network         Network
		subnet, subnet6 string
		want            bool
	}{
		{v4, "10.3.5.0/24", "", true},
		{v4, "10.3.8.0/24", "", true},
		{v4, "10.3.4.0/24", "", false},
		{v4, "10.3.9.0/24", "", false},
		{v4, "10.3.6.0/25", "", false},
		{v4, "10.3.6.1/24", "", false},
		{v4, "", "", false},
		{v4, "10.3.6.0/24", "fc00:0:0:1::/64", false},
		{dual, "10.3.6.0/24", "fc00:0:0:1::/64", true},
		{dual, "10.3.6.0/24", "", false},
		{dual, "", "fc00:0:0:1::/64", false},
		{dual, "10.3.6.0/24", "fc00::/64", false},
	}
	for _, test := range tests {
		if got := test.network.Fits(prefix(test.subnet), prefix(test.subnet6)); got != test.want {
			t.Errorf("%q %q in %s: got %v", test.subnet, test.subnet6, test.network.Network, got)
		}
	}
}

// prefix parses s; "" is the zero Prefix.
func prefix(s string) netip.Prefix {
	if s == "" {
		return netip.Prefix{}
	}
	return netip.MustParsePrefix(s)
}

func FuzzParseNetwork(f *testing.F) {
	f.Add([]byte(`{"Network":"10.3.0.0/16","SubnetLen":24,"SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0",` +
		`"Backend":{"Type":"udp"}}`))
	f.Add([]byte(`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":64}`))
	f.Add([]byte(`{"Network":"255.255.255.240/28","Backend":null}`))
	f.Add([]byte(`{"EnableIPv6":true,"IPv6Network":"ffff::/16","IPv6SubnetMin":"ffff:ffff::"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := ParseNetwork(b)
		if err != nil || n.Check() != nil {
			return
		}
		// A valid network has subnets to allocate, from Min to Max.
		for _, p := range n.pools() {
			for _, a := range []netip.Addr{p.min, p.max} {
				if s := netip.PrefixFrom(a, p.length); !p.fits(s) || !p.network.Contains(lastAddr(s)) {
					t.Errorf("%s: %s does not fit %+v", b, s, p)
				}
			}
			if free := p.free(nil, 1); len(free) != 1 || free[0].Addr() != p.min {
				t.Errorf("%s: first free subnet %v", b, free)
			}
		}
		if _, err := Choose(Request{Network: n}, nil, func(n int) int { return n - 1 }); err != nil {
			t.Errorf("%s: %v", b, err)
		}
	})
}
