package agent

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weft/lease/subnetenv"
)

// testLog returns a logger and its output.
func testLog() (*slog.Logger, *bytes.Buffer) {
	var b bytes.Buffer
	return slog.New(slog.NewTextHandler(&b, nil)), &b
}

func TestReadSubnetFile(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       subnetenv.File
		logged     []string // one line each
	}{
		{"valid", "FLANNEL_SUBNET=10.5.77.1/24", subnetenv.File{Subnet: prefix("10.5.77.1/24")}, nil},
		{"invalid entries", "FLANNEL_SUBNET=bad,10.5.77.1/24,x", subnetenv.File{Subnet: prefix("10.5.77.1/24")},
			[]string{"variable=FLANNEL_SUBNET value=bad", "value=x"}},
		{"not assignments", "<html>\n", subnetenv.File{}, []string{"cannot read the previous subnet"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			log, logged := testLog()
			path := filepath.Join(t.TempDir(), "subnet.env")
			if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := readSubnetFile(path, log); got != test.want {
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
	t.Run("missing", func(t *testing.T) {
		log, logged := testLog()
		if got := readSubnetFile(filepath.Join(t.TempDir(), "none"), log); got != (subnetenv.File{}) ||
			logged.Len() > 0 {
			t.Errorf("got %+v, logged %q", got, logged.String())
		}
	})
	t.Run("unreadable", func(t *testing.T) {
		log, logged := testLog()
		if got := readSubnetFile(t.TempDir(), log); got != (subnetenv.File{}) || logged.Len() == 0 {
			t.Errorf("got %+v, logged %q", got, logged.String())
		}
	})
}

func TestAbandonedNetworks(t *testing.T) {
	previous := subnetenv.File{Network: prefix("10.5.0.0/16"), Network6: prefix("fd00:5::/48")}
	tests := []struct {
		name          string
		previous      subnetenv.File
		current, want []netip.Prefix
	}{
		{"none", subnetenv.File{}, []netip.Prefix{prefix("10.5.0.0/16")}, nil},
		{"the same", previous, []netip.Prefix{prefix("10.5.0.0/16"), prefix("fd00:5::/48")}, nil},
		{"wider and narrower", previous, []netip.Prefix{prefix("10.0.0.0/8"), prefix("fd00:5:0:1::/64")}, nil},
		{"a family less", previous, []netip.Prefix{prefix("10.5.0.0/16")}, []netip.Prefix{prefix("fd00:5::/48")}},
		{"others", previous, []netip.Prefix{prefix("10.6.0.0/16"), prefix("fd00:6::/48")},
			[]netip.Prefix{prefix("10.5.0.0/16"), prefix("fd00:5::/48")}},
	}
	for _, test := range tests {
		if got := abandonedNetworks(test.previous, test.current); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestSyncRemovedSubnetFile(t *testing.T) {
	dir := t.TempDir()
	f := subnetFile{path: filepath.Join(dir, "run", "subnet.env")}
	wanted := subnetenv.File{Network: prefix("10.5.0.0/16"), Subnet: prefix("10.5.77.1/24"), MTU: 1472}
	log, logged := testLog()
	f.sync(wanted, log)
	written, err := os.Stat(f.path)
	if err != nil {
		t.Fatal(err)
	}
	f.sync(wanted, log)
	if now, err := os.Stat(f.path); err != nil || !now.ModTime().Equal(written.ModTime()) {
		t.Errorf("an identical file was written again: %v", err)
	}
	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}
	f.sync(wanted, log)
	if got := readSubnetFile(f.path, log); got != wanted {
		t.Errorf("after the removal the file has %+v", got)
	}
	if !strings.Contains(logged.String(), "subnet file was removed") {
		t.Errorf("logged %s", logged)
	}
}
