package deploy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/deploy/lab"
	"weft/lease/etcd/testetcd"
	"weft/lease/subnetenv"
)

// readSettings reads a file of KEY=value lines, as systemd and supervisord use them. Keys may
// repeat.
func readSettings(t *testing.T, path string) map[string][]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if key, value, ok := strings.Cut(line, "="); ok && !strings.ContainsAny(line[:1], "#;") {
			s[key] = append(s[key], value)
		}
	}
	return s
}

// startEtcd runs an etcd with a network config on a node's loopback address.
func startEtcd(t *testing.T, n *lab.Node) *testetcd.Server {
	t.Helper()
	var server *testetcd.Server
	err := n.Do(func() (err error) {
		server, err = testetcd.Start(testetcd.Config{Dir: filepath.Join(t.TempDir(), "etcd"),
			Listen: netip.MustParseAddrPort("127.0.0.1:2379")})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	if err := server.Put("/coreos.com/network/config", `{"Network": "10.5.0.0/16"}`); err != nil {
		t.Fatal(err)
	}
	return server
}

// installedRoot returns a directory with the daemon at its install path.
func installedRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "usr", "local", "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(buildImageDir(t), "opt", "bin", "flanneld"),
		filepath.Join(root, "usr", "local", "bin", "weftd")); err != nil {
		t.Fatal(err)
	}
	return root
}

// TestNetnsSystemdUnit runs the unit's command line with the unit's privileges and acts as systemd.
func TestNetnsSystemdUnit(t *testing.T) {
	lab.SkipWithoutTUN(t)
	unit := readSettings(t, "systemd/weftd.service")
	n := lab.Start(t, lab.Options{Nodes: 1}).Nodes[0]
	startEtcd(t, n)
	for name := range strings.FieldsSeq(unit["RuntimeDirectory"][0]) {
		if err := os.MkdirAll(n.Path(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: n.Path("flannel/notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	c := container{Root: installedRoot(t), Argv: strings.Fields(unit["ExecStart"][0])}
	c.ReadOnlyRoot, c.NoNewPrivs = unit["ProtectSystem"][0] == "strict", unit["NoNewPrivileges"][0] == "yes"
	for name := range strings.FieldsSeq(unit["CapabilityBoundingSet"][0]) {
		c.Capabilities = append(c.Capabilities, strings.TrimPrefix(name, "CAP_"))
	}
	for name := range strings.FieldsSeq(unit["RuntimeDirectory"][0]) {
		c.Mounts = append(c.Mounts, mount{"/run/" + name, "/run/" + name, false})
	}
	for _, device := range unit["DeviceAllow"] {
		path, _, _ := strings.Cut(device, " ")
		c.Mounts = append(c.Mounts, mount{path, path, false})
	}
	const limit = 2 * time.Second // shorter than the unit's WatchdogSec, to keep the test short
	c.Env = append(strings.Fields(unit["Environment"][0]), "NOTIFY_SOCKET=/run/flannel/notify",
		fmt.Sprintf("WATCHDOG_USEC=%d", limit.Microseconds()))
	p := c.start(t, n, t.TempDir())

	firstSeen := map[string]time.Time{}
	for beats := 0; beats < 5 || firstSeen["READY=1"].IsZero(); {
		message := readNotification(t, socket, waitTimeout)
		if strings.HasPrefix(message, "FDSTORE") {
			continue // TestNetnsRestartKeepsPackets of cmd/weftd
		}
		if _, seen := firstSeen[message]; !seen {
			firstSeen[message] = time.Now()
		}
		switch message {
		case "READY=1":
			if _, err := subnetenv.Read(n.Path("flannel/subnet.env")); err != nil {
				t.Errorf("ready without subnet.env: %v", err)
			}
		case "WATCHDOG=1":
			beats++
		default:
			t.Errorf("unexpected notification %q", message)
		}
	}
	stopped := time.Now()
	if code, err := p.Stop(t.Context()); err != nil || code != 0 {
		t.Errorf("exit status %d, %v", code, err)
	}
	if took := time.Since(stopped); took > 10*time.Second {
		t.Errorf("exit took %v", took)
	}
	for message := ""; message != "STOPPING=1"; {
		message = readNotification(t, socket, time.Second)
	}
	if _, err := subnetenv.Read(n.Path("flannel/subnet.env")); err != nil {
		t.Errorf("after exit: %v", err)
	}
}

// readNotification reads a notification to systemd (sd_notify(3)).
func readNotification(t *testing.T, socket *net.UnixConn, limit time.Duration) string {
	t.Helper()
	if err := socket.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 256)
	n, err := socket.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// TestSystemdAnalyze checks the unit with systemd-analyze. The exposure threshold is in tenths; the
// unit had 27 when written.
func TestSystemdAnalyze(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	b, err := os.ReadFile("systemd/weftd.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "weftd.service")
	writeFile(t, unit, strings.Replace(string(b), "/usr/local/bin/weftd", "/bin/true", 1))
	for _, args := range [][]string{{"verify", "--man=no", unit},
		{"security", "--offline=true", "--threshold=30", unit}} {
		cmd := exec.Command(analyze, args...)
		out, err := cmd.CombinedOutput()
		if err != nil || args[0] == "verify" && len(out) > 0 {
			t.Errorf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// TestNetnsSupervisor runs the command of the supervisord example.
func TestNetnsSupervisor(t *testing.T) {
	lab.SkipWithoutTUN(t)
	program := readSettings(t, "supervisor/weftd.conf")
	n := lab.Start(t, lab.Options{Nodes: 1}).Nodes[0]
	startEtcd(t, n)
	argv := strings.Fields(program["command"][0])
	argv[0] = filepath.Join(installedRoot(t), argv[0])
	p, err := n.Start(argv)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "subnet.env", func() error {
		if !p.Running() {
			t.Fatal("the daemon has exited")
		}
		_, err := subnetenv.Read(n.Path("flannel/subnet.env"))
		return err
	})
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Second, errors.New("longer than stopwaitsecs"))
	defer cancel()
	if code, err := p.Stop(ctx); err != nil || code != 0 {
		t.Errorf("exit status %d, %v", code, err)
	}
}
