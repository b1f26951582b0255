package agent

import (
	"bytes"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// testLog returns a logger and what it has written.
func testLog() (*slog.Logger, *bytes.Buffer) {
	var b bytes.Buffer
	return slog.New(slog.NewTextHandler(&b, nil)), &b
}

// The bytes are those that flannel v0.28.9 wrote for the same configs.
func TestSubnetEnvBytes(t *testing.T) {
	p := netip.MustParsePrefix
	tests := []struct {
		name string
		env  subnetEnv
		want string
	}{
		{"IPv4", subnetEnv{network: p("10.5.0.0/16"), subnet: p("10.5.77.0/24"), mtu: 1472},
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.77.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"},
		{"both", subnetEnv{p("10.5.0.0/16"), p("fd00:5::/48"), p("10.5.77.0/24"), p("fd00:5:0:40::/64"), 1450, true},
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.77.1/24\n" +
				"FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:40::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"},
		{"IPv6 alone, the network's other family is off",
			subnetEnv{network: p("10.5.0.0/16"), network6: p("fd00:5::/48"), subnet6: p("fd00:5:0:40::/64"), mtu: 1450},
			"FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:40::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := string(test.env.bytes()); got != test.want {
				t.Errorf("got\n%swant\n%s", got, test.want)
			}
			log, logged := testLog()
			got, err := parseSubnetEnv(test.env.bytes(), log)
			want := test.env
			want.mtu, want.ipMasq = 0, false
			if !want.subnet.IsValid() {
				want.network = netip.Prefix{}
			}
			if err != nil || got != want || logged.Len() > 0 {
				t.Errorf("read back %+v, %v, %q; want %+v", got, err, logged.String(), want)
			}
		})
	}
}

func TestSubnetEnvWrite(t *testing.T) {
	old := syscall.Umask(0o077)
	t.Cleanup(func() { syscall.Umask(old) })
	path := filepath.Join(t.TempDir(), "run", "flannel", "subnet.env")
	e := subnetEnv{network: netip.MustParsePrefix("10.5.0.0/16"), subnet: netip.MustParsePrefix("10.5.1.0/24"), mtu: 1472}

	check := func(mode fs.FileMode) {
		t.Helper()
		if err := e.write(path); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, e.bytes()) {
			t.Errorf("the file says %q, %v", got, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("mode %v, %v; want %v", info.Mode(), err, mode)
		}
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil || len(entries) != 1 {
			t.Errorf("%d files in the folder, %v; want the one", len(entries), err)
		}
	}
	check(0o644)
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	e.mtu = 1400
	check(0o600)

	blocked := filepath.Join(path, "is", "a", "file")
	if err := e.write(blocked); err == nil || !strings.Contains(err.Error(), blocked) {
		t.Errorf("write below a file: %v; want an error that names it", err)
	}
	if err := e.write(filepath.Dir(path)); err == nil {
		t.Error("write over a folder succeeded")
	}
}

func TestSubnetEnvRead(t *testing.T) {
	p := netip.MustParsePrefix
	tests := []struct {
		name, text string
		want       subnetEnv
		logged     []string
	}{
		{"host bits go", "FLANNEL_SUBNET=10.5.77.1/24", subnetEnv{subnet: p("10.5.77.0/24")}, nil},
		{"shell syntax", "# c\nexport FLANNEL_SUBNET=\"10.5.77.1/24\" # d\nX='y'\n", subnetEnv{subnet: p("10.5.77.0/24")}, nil},
		{"bad entries of a list are skipped",
			"FLANNEL_SUBNET=10.5.1.1,10.5.77.1/24,,fd00::1/64,x\nFLANNEL_IPV6_SUBNET=10.5.1.0/24, fd00::1/64",
			subnetEnv{subnet: p("10.5.77.0/24"), subnet6: p("fd00::/64")}, []string{"entry=10.5.1.1", "entry=fd00::1/64", "entry=x", "entry=10.5.1.0/24"}},
		{"two are none", "FLANNEL_NETWORK=10.5.0.0/16,10.6.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24,10.6.1.1/24", subnetEnv{}, nil},
		{"only bad ones are none", "FLANNEL_SUBNET=bad", subnetEnv{}, []string{"entry=bad"}},
		{"empty", "", subnetEnv{}, nil},
		{"not a file of variables", "<html>\n", subnetEnv{}, []string{"cannot read the previous subnet"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			log, logged := testLog()
			path := filepath.Join(t.TempDir(), "subnet.env")
			if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := readSubnetEnv(path, log); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			for _, want := range test.logged {
				if !strings.Contains(logged.String(), want) {
					t.Errorf("logged %q, want %q in it", logged.String(), want)
				}
			}
			if lines := strings.Count(logged.String(), "\n"); lines != len(test.logged) {
				t.Errorf("logged %d lines, want %d: %q", lines, len(test.logged), logged.String())
			}
		})
	}
	t.Run("a missing file is no news, an unreadable one is", func(t *testing.T) {
		log, logged := testLog()
		if got := readSubnetEnv(filepath.Join(t.TempDir(), "none"), log); got != (subnetEnv{}) || logged.Len() > 0 {
			t.Errorf("got %+v, logged %q", got, logged.String())
		}
		if got := readSubnetEnv(t.TempDir(), log); got != (subnetEnv{}) || logged.Len() == 0 {
			t.Errorf("got %+v, logged %q", got, logged.String())
		}
	})
}

func TestSubnetEnvFormerNetworks(t *testing.T) {
	p := netip.MustParsePrefix
	was := subnetEnv{network: p("10.5.0.0/16"), network6: p("fd00:5::/48")}
	tests := []struct {
		name          string
		was           subnetEnv
		present, want []netip.Prefix
	}{
		{"none", subnetEnv{}, []netip.Prefix{p("10.5.0.0/16")}, nil},
		{"the same", was, []netip.Prefix{p("10.5.0.0/16"), p("fd00:5::/48")}, nil},
		{"wider and narrower", was, []netip.Prefix{p("10.0.0.0/8"), p("fd00:5:0:1::/64")}, nil},
		{"a family less", was, []netip.Prefix{p("10.5.0.0/16")}, []netip.Prefix{p("fd00:5::/48")}},
		{"others", was, []netip.Prefix{p("10.6.0.0/16"), p("fd00:6::/48")}, []netip.Prefix{p("10.5.0.0/16"), p("fd00:5::/48")}},
	}
	for _, test := range tests {
		if got := test.was.former(test.present); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func FuzzParseSubnetEnv(f *testing.F) {
	f.Add([]byte("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.77.1/24,bad\n"))
	f.Add([]byte("FLANNEL_IPV6_SUBNET=\"fd00::1/64\"\nexport A='$FLANNEL_SUBNET'"))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := parseSubnetEnv(text, slog.New(slog.DiscardHandler))
		for _, p := range []netip.Prefix{e.network, e.subnet, e.network6, e.subnet6} {
			if p.IsValid() && (err != nil || p != p.Masked()) {
				t.Errorf("%q: %v, %v", text, p, err)
			}
		}
	})
}
