package backend

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"weft/ctrl"
	"weft/lease"
)

func TestUnknownKeys(t *testing.T) {
	for config, want := range map[string]string{
		`{"Network":"10.5.0.0/16","MTU":1450,"IPTables":false,` +
			`"Backend":{"Type":"vxlan","vni":4096,"Port":4789,"DirectRouting":true}}`: `[MTU (did you mean Backend.MTU?) IPTables]`,
		`{"Netwrok":"x","Backend":{"Type":"vxlan","Vni":5,"Prot":8472}}`: `[Netwrok (did you mean Network?) ` +
			`Backend.Prot (did you mean Backend.Port?)]`,
		`{"Backend":{"Type":"udp","SubnetLen":24,"MTU":1400}}`: `[Backend.SubnetLen (did you mean SubnetLen?) Backend.MTU]`,
		`{"Backend":{"Type":"host-gw","DirectRouting":true}}`:  `[Backend.DirectRouting]`,
		`{"Backend":{"Type":"alloc","Tpye":1}}`:                `[Backend.Tpye (did you mean Backend.Type?)]`,
		`{"Backend":{"Type":"ipip","DirectRoutin":true}}`:      `[Backend.DirectRoutin (did you mean Backend.DirectRouting?)]`,
		`{"Backend":{"Type":"wireguard","PSK":"x","PersistentKeepaliveInterval":1,"Mode":"auto","ListenPort":1,"ListenPortV6":2,"MTU":1}}`: `[]`,
		`{"Backend":{"Type":"extension","PreStartupCommand":"","PostStartupCommand":"","SubnetAddCommand":"","SubnetRemoveCommand":"",` +
			`"ShutdownCommand":"","StopCommand":""}}`: `[Backend.StopCommand]`,
		`{"Backend":{"Type":"aws-vpc","RouteTableID":[],"RouteTable":""}}`:           `[Backend.RouteTable (did you mean Backend.RouteTableID?)]`,
		`{"Backend":{"Type":"gce","Project":"","Network":"","Zone":"","Region":""}}`: `[Backend.Region]`,
		`{"Backend":{"Type":"ali-vpc","accessKeyId":"","AccessKeySecret":""}}`:       `[]`,
		`{"Backend":null}`: `[]`,
		`{}`:               `[]`,
	} {
		n, err := lease.ParseNetwork([]byte(config))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(UnknownKeys(n)); got != want {
			t.Errorf("%s\n got %s\nwant %s", config, got, want)
		}
	}
}

func TestSettingsHidePSK(t *testing.T) {
	b, err := json.Marshal(Settings(network(t, `{"Type":"WireGuard","psk":"secret","MTU":1400}`)))
	if want := `{"MTU":1400,"Type":"wireguard","psk":"(hidden)"}`; err != nil || string(b) != want {
		t.Errorf("got %s, %v; want %s", b, err, want)
	}
}

func TestSettingsHideCloudKeys(t *testing.T) {
	for _, typ := range []string{"ali-vpc", "tencent-vpc"} {
		n := network(t, `{"Type":"`+typ+`","accesskeyid":"LTAI-id","AccessKeySecret":"the-secret"}`)
		b, err := json.Marshal(Settings(n))
		if want := `{"AccessKeySecret":"(hidden)","Type":"` + typ + `","accesskeyid":"(hidden)"}`; err != nil || string(b) != want {
			t.Errorf("got %s, %v; want %s", b, err, want)
		}
	}
}

// TestDisabledFamilyHasNoEffect sets the range of IPv6, which is not enabled.
func TestDisabledFamilyHasNoEffect(t *testing.T) {
	for _, backend := range []string{
		`{"Type":"vxlan","MTU":1300}`, `{"Type":"udp","Carrier":"kernel"}`, `{"Type":"ipip"}`, `{"Type":"wireguard","MTU":1300}`,
		`{"Type":"host-gw"}`, `{"Type":"extension"}`, `{"Type":"ali-vpc"}`, `{"Type":"alloc"}`,
	} {
		var got [2]Advertisement
		for i, family := range []string{"", `"IPv6Network":"fd00:10::/104",`} {
			n, err := lease.ParseNetwork([]byte(`{"Network":"10.5.0.0/16",` + family + `"Backend":` + backend + `}`))
			if err != nil {
				t.Fatal(err)
			}
			l := me()
			l.FOU = true
			b, err := New(n, l)
			if err != nil {
				t.Fatalf("%s: %v", backend, err)
			}
			got[i] = b.Advertisement()
		}
		if fmt.Sprintf("%+v", got[0]) != fmt.Sprintf("%+v", got[1]) {
			t.Errorf("%s: got %+v, want %+v", backend, got[1], got[0])
		}
	}
}

func TestDualStackOnSmallUnderlay(t *testing.T) {
	for _, tt := range []struct {
		backend string
		mtu     int
		off     string
	}{
		{`{"Type":"udp"}`, 1280, ""}, // in outer fragments
		{`{"Type":"vxlan"}`, 1230, "MTU 1280 of interface eth0 leaves less than the 1280 bytes that IPv6 needs, after 50 of overhead"},
		{`{"Type":"vxlan","MTU":1200}`, 1150, "MTU 1200 of the config leaves less than the 1280 bytes"},
		{`{"Type":"ipip"}`, 1260, "after 20 of overhead"},
		{`{"Type":"wireguard"}`, 1200, "after 80 of overhead"},
		{`{"Type":"host-gw"}`, 1280, ""},
	} {
		l := me()
		l.Iface.MTU = 1280
		n := network(t, tt.backend)
		b, err := New(n, l)
		if err != nil {
			t.Errorf("%s: %v", tt.backend, err)
			continue
		}
		a := b.Advertisement()
		if a.MTU != tt.mtu || !strings.Contains(a.IPv6Off, tt.off) || (a.IPv6Off == "") != (tt.off == "") ||
			a.Attrs.PublicIPv6.IsValid() != (tt.off == "") || len(a.Attrs.BackendV6Data) > 0 {
			t.Errorf("%s: got %+v", tt.backend, a)
		}
		s := b.Plan(node(1, "", "", ""), []lease.Lease{node(1, "", "", ""), node(2, a.Attrs.BackendType, vxlanData2, "")})
		off := slices.ContainsFunc(s.Unreachable, func(u ctrl.Unreachable) bool {
			return u.Subnet == prefix("fd10:5:0:2::/64") && strings.Contains(u.Reason, "IPv6 is off: MTU 1")
		})
		if off != (tt.off != "") || !slices.Equal(s.Networks, nets) {
			t.Errorf("%s: unreachable %+v, networks %v", tt.backend, s.Unreachable, s.Networks)
		}
		if _, err := New(only6(n), l); (err == nil) != (tt.off == "") {
			t.Errorf("%s, IPv6 only: %v", tt.backend, err)
		}
	}
}
