package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/cmd/control"
	"weft/deploy/lab"
)

// readStatus reads /status.
func readStatus(t *testing.T) (st control.Status) {
	t.Helper()
	_, body, err := fetch("/status")
	if err == nil {
		err = json.Unmarshal([]byte(body), &st)
	}
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// halfOpen opens connections to the health server, each with half a header, until the test ends.
func halfOpen(t *testing.T, n int) {
	t.Helper()
	for range n {
		c, err := net.Dial("tcp", healthAddress)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_, _ = io.WriteString(c, "GET /status HTTP/1.1\r\n") // may be closed already
	}
}

// limitedCgroup returns a cgroup of version 1 with limits.
func limitedCgroup(t *testing.T, controller string, limits map[string]string) string {
	t.Helper()
	mount := t.TempDir()
	if err := unix.Mount("cgroup", mount, "cgroup", 0, controller); err != nil {
		t.Skip("NOT TESTED: cannot mount the cgroup controller "+controller+": ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Error(err)
		}
	})
	dir, err := os.MkdirTemp(mount, "weft-test-")
	if err != nil {
		t.Skip("NOT TESTED: cannot create a cgroup: ", err)
	}
	t.Cleanup(func() {
		// The context of the test has ended.
		err := lab.Await(context.Background(), patience, "empty cgroup", func() error { return os.Remove(dir) })
		if err != nil {
			t.Error(err)
		}
	})
	for name, value := range limits {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o644); err != nil {
			t.Skip("NOT TESTED: cannot limit a cgroup: ", err)
		}
	}
	return dir
}

// buildDaemon builds the daemon as it is deployed: the race detector, with which this test may be
// built, takes several times the memory.
func buildDaemon(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "weftd")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "weft/cmd/weftd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the daemon: %v\n%s", err, out)
	}
	return path
}

// TestNetnsMemoryLimit runs the daemon under the 50 MiB of flannel's manifest, with many scrapers
// and idle connections.
func TestNetnsMemoryLimit(t *testing.T) {
	const limit = 50 << 20
	dir := limitedCgroup(t, "memory", map[string]string{"memory.limit_in_bytes": fmt.Sprint(limit)})
	limitedProgram(t, newFixture(t, leaseFile("udp", localNode)), buildDaemon(t),
		"echo $$ >"+dir+"/cgroup.procs", "--workers=0")
	awaitReady(t, 200, "weftd is ready")
	if l := readStatus(t).Limits; l.Memory != limit || l.GoMemory <= 0 || l.GoMemory >= limit || l.Workers > 3 {
		t.Errorf("limits are %+v", l)
	}
	halfOpen(t, 2000)
	failed := make(chan error)
	const clients, scrapes = 16, 20
	for range clients {
		go func() {
			var err error
			for range scrapes {
				if code, _, fetchErr := fetch("/metrics"); fetchErr != nil || code != 200 {
					err = fmt.Errorf("/metrics: %d, %w", code, fetchErr)
				}
			}
			failed <- err
		}()
	}
	for range clients {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	awaitReady(t, 200, "weftd is ready")
	events, err := os.ReadFile(filepath.Join(dir, "memory.failcnt"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(string(events)) != "0" {
		t.Errorf("the limit was hit %s times", events)
	}
}

// TestNetnsCPUQuota runs the daemon under the 100m of flannel's manifest.
func TestNetnsCPUQuota(t *testing.T) {
	dir := limitedCgroup(t, "cpu", map[string]string{"cpu.cfs_quota_us": "10000", "cpu.cfs_period_us": "100000"})
	limitedProcess(t, newFixture(t, leaseFile("udp", localNode)), "echo $$ >"+dir+"/cgroup.procs", "--workers=0")
	awaitReady(t, 200, "weftd is ready")
	if l := readStatus(t).Limits; l.CPUs != 0.1 || l.Workers != 1 || l.Spin {
		t.Errorf("limits are %+v, want one worker that does not spin", l)
	}
}

// TestNetnsDescriptorLimit holds half-open connections to a daemon with 64 descriptors. It must
// still recreate a deleted device at once.
func TestNetnsDescriptorLimit(t *testing.T) {
	limitedProcess(t, newFixture(t, leaseFile("udp", localNode)), "ulimit -n 64", "--workers=0")
	awaitReady(t, 200, "weftd is ready")
	if l := readStatus(t).Limits; l.Descriptors != 64 || l.Connections > 8 {
		t.Errorf("limits are %+v", l)
	}
	halfOpen(t, 100)
	old, err := net.InterfaceByName("flannel0")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if out, err := exec.Command("ip", "link", "del", "flannel0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	err = lab.Await(t.Context(), patience, "new device that is up", func() error {
		i, err := net.InterfaceByName("flannel0")
		if err == nil && (i.Index == old.Index || i.Flags&net.FlagUp == 0) {
			err = fmt.Errorf("device is %+v", i)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log("recreated after", time.Since(began))
	awaitReady(t, 200, "weftd is ready")
}

// TestNetnsTrafficFaultsNamed receives from an address that is not a node and sends to a node
// without a route.
func TestNetnsTrafficFaultsNamed(t *testing.T) {
	leases := leaseFile("udp", localNode+`{"name": "n3", "subnet": "10.5.3.0/24", "publicIP": "203.0.113.3"},`)
	s := newFixture(t, leases).start(t)
	awaitReady(t, 200, "weftd is ready")
	stranger := send(t, "127.0.0.9:0", "127.0.0.1:8285")
	pod := send(t, "", "10.5.3.7:9")
	err := lab.Await(t.Context(), patience, "faults in the status", func() error {
		for _, send := range []func() error{stranger, pod} {
			if err := send(); err != nil {
				return err
			}
		}
		traffic := readStatus(t).Traffic
		if u := traffic.UnknownSources; len(u) != 1 || u[0].Address != netip.MustParseAddr("127.0.0.9") {
			return fmt.Errorf("unknown sources %+v", u)
		}
		for _, n := range traffic.Nodes {
			if n.Node == "n3" && n.SendError != "" {
				t.Log("send error:", n.SendError)
				return nil
			}
		}
		return fmt.Errorf("no send error: %+v", traffic.Nodes)
	})
	if err != nil {
		t.Fatal(err)
	}
	s.stop(t)
}

// send returns a function that sends a datagram.
func send(t *testing.T, from, to string) func() error {
	t.Helper()
	var d net.Dialer
	if from != "" {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))
	}
	c, err := d.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return func() error {
		_, err := c.Write([]byte("not a packet"))
		return err
	}
}
