package deploy_test

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weft/dataplane/capture"
)

// datagrams returns a file with one datagram of the overlay per payload.
func datagrams(t *testing.T, port uint16, payloads ...[]byte) string {
	t.Helper()
	s, err := capture.NewSession(1, capture.Options{Outer: true})
	if err != nil {
		t.Fatal(err)
	}
	from := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)
	to := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), port)
	for _, p := range payloads {
		s.Ring(0).Datagram(&capture.Meta{}, from, to, p)
	}
	var file bytes.Buffer
	w, err := capture.NewWriter(&file, s.File("test"))
	if err == nil {
		err = s.Run(t.Context(), w, len(payloads))
	}
	path := filepath.Join(t.TempDir(), "weft.pcapng")
	if err == nil {
		err = os.WriteFile(path, file.Bytes(), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestWiresharkDissector dissects good and bad datagrams with the script.
func TestWiresharkDissector(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("NOT TESTED: the Wireshark dissector: no tshark")
	}
	v4 := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 5, 1, 2, 10, 5, 2, 2, 8, 0, 0xf7, 0xf7, 0, 1, 0, 7}
	v6 := make([]byte, 48)
	v6[0], v6[5], v6[6], v6[8], v6[24] = 0x60, 8, 17, 0xfd, 0xfd
	v6[45] = 8
	payloads := [][]byte{v4, v6, {0x75, 0, 0, 0}, append(slices.Clone(v4), 0), {0x45, 0}}
	want := []struct{ fields, problem string }{
		{"raw:ip:udp:weft:ip:icmp;4;28;", ""},
		{"raw:ip:udp:weft:ipv6:udp;6;48;", ""},
		{"raw:ip:udp:weft;7;;", "The inner packet is neither IPv4 nor IPv6"},
		{"raw:ip:udp:weft:ip:icmp;4;28;", "The datagram and the inner packet differ in length"},
		{"raw:ip:udp:weft;4;;", "The datagram and the inner packet differ in length"},
	}
	for _, port := range []uint16{8285, 9999} {
		args := []string{"-X", "lua_script:wireshark/weft.lua", "-r", datagrams(t, port, payloads...),
			"-T", "fields", "-E", "separator=;", "-e", "frame.protocols", "-e", "weft.version", "-e", "weft.length",
			"-e", "_ws.expert.message"}
		if port != 8285 {
			args = append(args, "-o", "weft.port:9999")
		}
		var problems bytes.Buffer
		cmd := exec.Command(tshark, args...)
		cmd.Stderr = &problems
		out, err := cmd.Output()
		if err != nil || strings.Contains(problems.String(), "Lua") {
			t.Fatalf("tshark: %v: %s", err, &problems)
		}
		got := strings.Split(strings.TrimSpace(string(out)), "\n")
		if len(got) != len(want) {
			t.Fatalf("port %d: tshark prints\n%s", port, out)
		}
		for i := range want {
			if !strings.HasPrefix(got[i], want[i].fields) || !strings.Contains(got[i], want[i].problem) {
				t.Errorf("port %d: datagram %d is %s, want %v", port, i, got[i], want[i])
			}
		}
	}
}
