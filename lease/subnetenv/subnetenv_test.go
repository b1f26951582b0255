package subnetenv

import (
	"bytes"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// The bytes are those that flannel v0.28.9 wrote for the same configs.
func TestFileBytes(t *testing.T) {
	tests := []struct {
		name string
		file File
		want string
	}{
		{"IPv4", File{Network: prefix("10.5.0.0/16"), Subnet: prefix("10.5.77.1/24"), MTU: 1472},
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.77.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"},
		{"dual-stack", File{prefix("10.5.0.0/16"), prefix("fd00:5::/48"), prefix("10.5.77.1/24"),
			prefix("fd00:5:0:40::1/64"), 1450, true},
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.77.1/24\n" +
				"FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:40::1/64\n" +
				"FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"},
		{"IPv6 only, IPv4 network without a subnet",
			File{Network: prefix("10.5.0.0/16"), Network6: prefix("fd00:5::/48"), Subnet6: prefix("fd00:5:0:40::1/64"),
				MTU: 1450},
			"FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:40::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := string(test.file.Bytes()); got != test.want {
				t.Errorf("got\n%swant\n%s", got, test.want)
			}
			got, invalid, err := Parse(test.file.Bytes())
			want := test.file
			if !want.Subnet.IsValid() {
				want.Network = netip.Prefix{}
			}
			if err != nil || got != want || len(invalid) > 0 {
				t.Errorf("Parse: got %+v, %v, %v; want %+v", got, invalid, err, want)
			}
		})
	}
}

func TestGateway(t *testing.T) {
	for subnet, want := range map[netip.Prefix]netip.Prefix{
		prefix("10.5.77.0/24"):      prefix("10.5.77.1/24"),
		prefix("fd00:5:0:40::9/64"): prefix("fd00:5:0:40::1/64"),
		{}:                          {},
	} {
		if got := Gateway(subnet); got != want {
			t.Errorf("Gateway(%v) = %v, want %v", subnet, got, want)
		}
	}
}

func TestFileWrite(t *testing.T) {
	old := syscall.Umask(0o077)
	t.Cleanup(func() { syscall.Umask(old) })
	path := filepath.Join(t.TempDir(), "run", "flannel", "subnet.env")
	f := File{Network: prefix("10.5.0.0/16"), Subnet: prefix("10.5.1.1/24"), MTU: 1472}

	check := func(mode fs.FileMode) {
		t.Helper()
		if err := f.Write(path); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, f.Bytes()) {
			t.Errorf("read back %q, %v", got, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("mode %v, %v; want %v", info.Mode(), err, mode)
		}
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil || len(entries) != 1 {
			t.Errorf("%d files in the directory, %v; want 1", len(entries), err)
		}
	}
	check(0o644)
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f.MTU = 1400
	check(0o600)

	blocked := filepath.Join(path, "is", "a", "file")
	if err := f.Write(blocked); err == nil || !strings.Contains(err.Error(), blocked) {
		t.Errorf("write below a file: %v; want an error that names it", err)
	}
	if err := f.Write(filepath.Dir(path)); err == nil {
		t.Error("write over a directory succeeded")
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		name, text string
		want       File
		invalid    []InvalidValue
		err        bool
	}{
		{"network is masked", "FLANNEL_NETWORK=10.5.1.1/16\nFLANNEL_SUBNET=10.5.77.1/24",
			File{Network: prefix("10.5.0.0/16"), Subnet: prefix("10.5.77.1/24")}, nil, false},
		{"shell syntax", "# c\nexport FLANNEL_SUBNET=\"10.5.77.1/24\" # d\nX='y'\n",
			File{Subnet: prefix("10.5.77.1/24")}, nil, false},
		{"invalid list entries are skipped",
			"FLANNEL_SUBNET=10.5.1.1,10.5.77.1/24,,fd00::1/64,x\nFLANNEL_IPV6_SUBNET=10.5.1.0/24, fd00::1/64",
			File{Subnet: prefix("10.5.77.1/24"), Subnet6: prefix("fd00::1/64")},
			[]InvalidValue{{SubnetVar, "10.5.1.1"}, {SubnetVar, "fd00::1/64"}, {SubnetVar, "x"},
				{Subnet6Var, "10.5.1.0/24"}}, false},
		{"two prefixes are ambiguous",
			"FLANNEL_NETWORK=10.5.0.0/16,10.6.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24,10.6.1.1/24", File{}, nil, false},
		{"all invalid", "FLANNEL_SUBNET=bad\nFLANNEL_MTU=x\nFLANNEL_IPMASQ=x", File{},
			[]InvalidValue{{SubnetVar, "bad"}, {MTUVar, "x"}, {IPMasqVar, "x"}}, false},
		{"empty", "", File{}, nil, false},
		{"not assignments", "<html>\n", File{}, nil, true},
		{"one line is not an assignment", "FLANNEL_SUBNET=10.5.77.1/24\nnonsense\n", File{}, nil, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, invalid, err := Parse([]byte(test.text))
			if got != test.want || !slices.Equal(invalid, test.invalid) || (err != nil) != test.err {
				t.Errorf("got %+v, %v, %v; want %+v, %v", got, invalid, err, test.want, test.invalid)
			}
		})
	}
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	want := File{Network: prefix("10.5.0.0/16"), Subnet: prefix("10.5.1.1/24"), MTU: 1472, IPMasq: true}
	if err := want.Write(path); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, text := range []string{"", "FLANNEL_SUBNET=10.5.1.1/24", "FLANNEL_MTU=1472",
		"FLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=x", "x"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(path); err == nil || got != (File{}) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: got %+v, %v; want an error that names the file", text, got, err)
		}
	}
}

// TestWriteKeepsIdenticalFile needs no new file, which a full disk has no room for.
func TestWriteKeepsIdenticalFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	f := File{Network: prefix("10.5.0.0/16"), Subnet: prefix("10.5.1.1/24"), MTU: 1472}
	var infos [3]os.FileInfo
	for i, mtu := range []int{1472, 1472, 1450} {
		f.MTU = mtu
		if err := f.Write(path); err != nil {
			t.Fatal(err)
		}
		var err error
		if infos[i], err = os.Stat(path); err != nil {
			t.Fatal(err)
		}
	}
	if !os.SameFile(infos[0], infos[1]) {
		t.Error("an identical file was replaced")
	}
	if os.SameFile(infos[1], infos[2]) {
		t.Error("a different file was not replaced")
	}
}

func TestVariablesSkipsInvalidLines(t *testing.T) {
	got, err := Variables([]byte("A=1\nnonsense\nexport B='2'\n"))
	if err == nil || len(got) != 2 || got["A"] != "1" || got["B"] != "2" {
		t.Errorf("got %v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.77.1/24,bad\n"))
	f.Add([]byte("FLANNEL_IPV6_SUBNET=\"fd00::1/64\"\nexport A='$FLANNEL_SUBNET'"))
	f.Fuzz(func(t *testing.T, text []byte) {
		file, _, err := Parse(text)
		if err != nil && file != (File{}) {
			t.Errorf("%q: %+v with error %v", text, file, err)
		}
		for _, p := range []netip.Prefix{file.Network, file.Network6} {
			if p != p.Masked() {
				t.Errorf("%q: network %v is not masked", text, p)
			}
		}
	})
}
