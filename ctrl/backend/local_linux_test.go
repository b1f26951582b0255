package backend

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/ctrl"
	"weft/lease"
)

// vxlanLink is the device of the vxlan backend with an Ethernet address.
func vxlanLink(m ctrl.MAC) ctrl.Link {
	return ctrl.Link{Name: "flannel.1", Kind: ctrl.KindVXLAN, MTU: 1450, MAC: m, Up: true,
		VXLAN: ctrl.VXLAN{VNI: 1, Port: 8472, Local: addr("172.31.0.1"), Parent: "eth0"}}
}

// TestNetnsPrepareNode checks that the state kept over restarts is found again.
func TestNetnsPrepareNode(t *testing.T) {
	addBridge(t, "eth0", "172.31.0.1/24")
	k := open(t)
	i := me().Iface
	o := LocalOptions{KeyFile: filepath.Join(t.TempDir(), "a", "wgkey"), Blackhole: true}
	self := func(backend string) LocalNode {
		t.Helper()
		s, err := PrepareNode(k, network(t, backend), i, o)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := self(`{"Type":"vxlan"}`); s.VTEP != (ctrl.MAC{}) || !s.Iface.Equal(i) || !s.Blackhole {
		t.Errorf("without devices: %+v", s)
	}
	if err := errors.Join(k.Apply(context.Background(),
		[]ctrl.Op{{Verb: ctrl.Create, Object: vxlanLink(macB)}})...); err != nil {
		t.Fatal(err)
	}
	if s := self(`{"Type":"vxlan"}`); s.VTEP != macB || s.VTEP6 != (ctrl.MAC{}) {
		t.Errorf("with a device: %+v", s)
	}
	if err := errors.Join(k.Apply(context.Background(),
		[]ctrl.Op{{Verb: ctrl.Delete, Object: vxlanLink(macB)}})...); err != nil {
		t.Fatal(err)
	}
	first := self(`{"Type":"wireguard"}`).PrivateKey
	if again := self(`{"Type":"wireguard"}`).PrivateKey; again != first || again == (ctrl.Key{}) {
		t.Error("another key after a restart")
	}
	if s := self(`{"Type":"extension","PreStartupCommand":"echo '  hi '"}`); s.Startup != "hi" {
		t.Errorf("got %q", s.Startup)
	}
	if s := self(`{"Type":"udp"}`); s.FOU || s.FOUUnavailable != "not requested" {
		t.Errorf("got %+v", s)
	}
	for backend, want := range map[string]string{
		`{"Type":"vxlan","VNI":-1}`:                            "VNI",
		`{"Type":"udp","Carrier":1}`:                           "Carrier",
		`{"Type":"extension","PreStartupCommand":"'"}`:         "PreStartupCommand",
		`{"Type":"extension","PreStartupCommand":"sh -c no9"}`: "PreStartupCommand",
	} {
		if _, err := PrepareNode(k, network(t, backend), i, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", backend, err)
		}
	}
}

func TestPrivateKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "wgkey")
	k, err := privateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o400 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	b, err := os.ReadFile(path)
	if err != nil || string(b) != k.Base64() {
		t.Errorf("file holds %q, %v", b, err)
	}
	other := filepath.Join(t.TempDir(), "key")
	for text, ok := range map[string]bool{k.Base64(): true, k.Base64() + "\n": true, "": false, "x": false,
		"AAAA": false} {
		if err := os.WriteFile(other, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := privateKey(other)
		if ok != (err == nil) || ok && got != k {
			t.Errorf("%q: got %v", text, err)
		}
		if err != nil && text != "" && strings.Contains(err.Error(), text+`"`) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
	if _, err := privateKey(t.TempDir()); err == nil {
		t.Error("a directory is accepted as key file")
	}
	if _, err := privateKey(filepath.Join(other, "below", "key")); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("below a file: %v", err)
	}
}

// FuzzPlan passes arbitrary published data to the backends: they must return a plan.
func FuzzPlan(f *testing.F) {
	for _, s := range []string{vxlanData2, wgData(2, 51820), `"printed"`, `null`, `{}`, `{"VtepMAC":1}`,
		`{"PublicKey":"AAAA","Port":-1}`} {
		f.Add(s, s)
	}
	n4, err := lease.ParseNetwork([]byte(`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd10:5::/48"}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data, data6 string) {
		for _, typ := range []string{"vxlan", "wireguard", "extension", "host-gw", "ipip", "udp"} {
			n := n4
			n.Backend = lease.Backend{Type: typ, Raw: []byte(`{"Mode":"auto","SubnetAddCommand":"x"}`)}
			b, err := New(n, me())
			if err != nil {
				t.Fatal(err)
			}
			peer := node(2, typ, data, data6)
			s := b.Plan(node(1, typ, "", ""), []lease.Lease{peer})
			for _, u := range s.Unreachable {
				if u.Node == "" || u.Reason == "" {
					t.Errorf("%s: %+v", typ, u)
				}
			}
		}
	})
}
