package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/cmd/control"
	"weft/deploy/lab"
)

func TestNetnsStartStop(t *testing.T) {
	notified := notifySocket(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	fds := openFDs(t)
	f := newFixture(t, leaseFile("udp", localNode))
	s := f.start(t)
	awaitReady(t, 200, "weftd is ready")
	awaitFile(t, f.env, subnetEnvOf("10.5.1.1/24"))
	if got := <-notified; got != "READY=1" {
		t.Errorf("systemd received %q", got)
	}

	var st control.Status
	_, body, err := fetch("/status")
	if err == nil {
		err = json.Unmarshal([]byte(body), &st)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !st.Ready || st.Node != "n1" || st.Backend != "udp" || st.MTU != 1472 || st.Device != "flannel0" ||
		st.Interface.Name != "lo" || st.Lease.Subnet != netip.MustParsePrefix("10.5.1.0/24") || !st.Store.Connected ||
		len(st.Nodes) != 1 || st.Nodes[0].Name != "n2" || !st.Kernel.Synced || st.Traffic == nil {
		t.Errorf("status is %s", body)
	}
	if _, body, err := fetch("/metrics"); err != nil || !strings.Contains(body, "\nweft_ready 1\n") ||
		!strings.Contains(body, `weft_node_packets_total{direction="out",node="n2"}`) {
		t.Errorf("metrics: %v: %s", err, body)
	}

	s.stop(t)
	if got := <-notified; got != "STOPPING=1" {
		t.Errorf("systemd received %q", got)
	}
	if _, err := net.InterfaceByName("flannel0"); err == nil {
		t.Error("device still exists")
	}
	awaitFile(t, f.env, subnetEnvOf("10.5.1.1/24"))
	if strings.Contains(s.log.String(), "level=ERROR") {
		t.Errorf("errors were logged")
	}
	if now := openFDs(t); now > fds {
		t.Errorf("%d descriptors before, %d after", fds, now)
	}
}

func TestNetnsReadinessFollowsLease(t *testing.T) {
	notified := notifySocket(t)
	f := newFixture(t, "{")
	s := f.start(t)
	awaitReady(t, 503, f.leases)
	f.write(t, leaseFile("udp", ""))
	awaitReady(t, 503, "lease: ")
	if _, err := os.Stat(f.env); err == nil {
		t.Error("subnet file exists before the subnet")
	}
	f.write(t, leaseFile("udp", localNode))
	awaitReady(t, 200, "")

	// The lease is lost: not ready, but device and subnet file stay.
	f.write(t, leaseFile("udp", ""))
	awaitReady(t, 503, "lease: ")
	if _, err := net.InterfaceByName("flannel0"); err != nil {
		t.Errorf("device removed with the lease: %v", err)
	}
	awaitFile(t, f.env, subnetEnvOf("10.5.1.1/24"))

	// A lease with another subnet.
	f.write(t, leaseFile("udp", strings.Replace(localNode, "10.5.1.", "10.5.9.", 1)))
	awaitReady(t, 200, "")
	awaitFile(t, f.env, subnetEnvOf("10.5.9.1/24"))
	if !strings.Contains(s.log.String(), "subnet of this node changed") {
		t.Error("the change was not logged")
	}
	s.stop(t)
	for _, want := range []string{"READY=1", "STOPPING=1"} { // once each
		if got := <-notified; got != want {
			t.Errorf("systemd received %q, want %q", got, want)
		}
	}
}

func TestNetnsDeviceRecreated(t *testing.T) {
	f := newFixture(t, leaseFile("udp", localNode))
	s := f.start(t)
	awaitReady(t, 200, "")
	before, err := net.InterfaceByName("flannel0")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ip", "link", "del", "flannel0").CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: cannot delete the device: %v %s", err, out)
	}
	err = lab.Await(t.Context(), patience, "a new device", func() error {
		i, err := net.InterfaceByName("flannel0")
		if err == nil && i.Index == before.Index {
			err = errors.New("old device still exists")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	awaitReady(t, 200, "")
	if _, body, err := fetch("/metrics"); err != nil ||
		!strings.Contains(body, `weft_recreations_total{object="device"} 1`) {
		t.Errorf("recreation not counted: %v", err)
	}
	s.stop(t)
}

func TestNetnsUnderlayMTUChange(t *testing.T) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { setMTU(t, "lo", lo.MTU) })
	f := newFixture(t, leaseFile("udp", localNode))
	s := f.start(t)
	awaitReady(t, 200, "")
	awaitFile(t, f.env, subnetEnvOf("10.5.1.1/24"))
	setMTU(t, "lo", 1400)
	awaitFile(t, f.env, strings.Replace(subnetEnvOf("10.5.1.1/24"), "1472", "1372", 1))
	err = lab.Await(t.Context(), patience, "the device's MTU", func() error {
		i, err := net.InterfaceByName("flannel0")
		if err == nil && i.MTU != 1372 {
			err = fmt.Errorf("it is %d", i.MTU)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	awaitReady(t, 200, "")
	s.stop(t)
}

func TestNetnsSubnetFileRetry(t *testing.T) {
	f := newFixture(t, leaseFile("udp", localNode))
	dir := filepath.Join(t.TempDir(), "flannel")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // a file in place of the directory
		t.Fatal(err)
	}
	f.env = filepath.Join(dir, "subnet.env")
	s := f.start(t)
	awaitReady(t, 503, "subnet-file: create the directory of "+f.env)
	if _, body, err := fetch("/readyz"); err != nil || strings.Count(body, "\n") != 2 {
		t.Errorf("more conditions than subnet-file not met: %q, %v", body, err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	awaitReady(t, 200, "")
	awaitFile(t, f.env, subnetEnvOf("10.5.1.1/24"))
	if n := strings.Count(s.log.String(), "cannot write the subnet file"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	s.stop(t)
}

func TestNetnsAllocBackend(t *testing.T) {
	f := newFixture(t, leaseFile("alloc", localNode))
	s := f.start(t, "--log-format=json", "-v=1", "--vmodule=a=1")
	awaitReady(t, 200, "")
	awaitFile(t, f.env, strings.Replace(subnetEnvOf("10.5.1.1/24"), "1472", "1500", 1))
	if _, err := net.InterfaceByName("flannel0"); err == nil {
		t.Error("device exists")
	}
	_, body, err := fetch("/metrics")
	if err != nil || strings.Contains(body, "weft_packets_total") || !strings.Contains(body, "weft_lease_held 1") {
		t.Errorf("metrics: %v: %s", err, body)
	}
	s.stop(t)
	for line := range strings.Lines(s.log.String()) {
		var record struct{ Level, Msg, Flags string }
		if err := json.Unmarshal([]byte(line), &record); err != nil || record.Msg == "" {
			t.Errorf("not a JSON record: %q", line)
		}
		if record.Level == "WARN" && record.Flags != "--vmodule" {
			t.Errorf("warned %s", line)
		}
	}
}

func TestNetnsStartFailures(t *testing.T) {
	taken, err := net.ListenPacket("udp4", "127.0.0.1:8285")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	health, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer health.Close()
	healthPort := fmt.Sprint(health.Addr().(*net.TCPAddr).Port)

	tests := []struct {
		name, leases string
		args         []string
		want         []string // all in one line
	}{
		{"UDP port in use", leaseFile("udp", localNode), nil, []string{"8285", "in use"}},
		{"health port in use", leaseFile("udp", localNode), []string{"--healthz-port=" + healthPort},
			[]string{"--healthz-port", healthPort, "in use"}},
		{"unknown backend", leaseFile("carrier-pigeon", localNode), nil, []string{"carrier-pigeon", "udp", "alloc"}},
		{"backend without a type", leaseFile("", localNode), nil, []string{"unknown backend type", "udp", "alloc"}},
		{"no interface", leaseFile("udp", localNode), []string{"--iface=nope0", "--iface=127.0.0.9"},
			[]string{"nope0", "127.0.0.9", "lo"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			defer goleak.VerifyNone(t)
			f := newFixture(t, test.leases)
			args := f.args(test.args...)
			if strings.HasPrefix(test.name, "no interface") {
				args = remove(args, "--iface=127.0.0.1")
			}
			var stdout, stderr bytes.Buffer
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			code := run(ctx, args, nil, &stdout, &stderr)
			var fatal []string
			for line := range strings.Lines(stderr.String()) {
				if strings.Contains(line, "level=ERROR") {
					fatal = append(fatal, line)
				}
			}
			if code != 1 || len(fatal) != 1 || stdout.Len() > 0 {
				t.Fatalf("exit %d, logged %s", code, stderr.String())
			}
			for _, want := range test.want {
				if !strings.Contains(fatal[0], want) {
					t.Errorf("%q does not contain %s", fatal[0], want)
				}
			}
			if _, err := net.InterfaceByName("flannel0"); err == nil {
				t.Error("device left behind")
			}
		})
	}
}

// TestNetnsUnknownKeysAreLogged has misspelt keys in the network config: each is named once.
func TestNetnsUnknownKeysAreLogged(t *testing.T) {
	leases := strings.Replace(leaseFile("udp", localNode), `"Type": "udp"`, `"Type": "udp", "Prot": 9000`, 1)
	d := newFixture(t, strings.Replace(leases, `"Network":`, `"Netwrok": "x", "Network":`, 1)).start(t)
	awaitReady(t, 200, "weftd is ready")
	for _, want := range []string{"key=Netwrok nearest=Network", "key=Backend.Prot nearest=Backend.Port"} {
		if n := strings.Count(d.log.String(), want); n != 1 {
			t.Errorf("%q is logged %d times", want, n)
		}
	}
	d.stop(t)
}

// TestNetnsSignals checks that the first signal stops the daemon gracefully and a second one
// immediately.
func TestNetnsSignals(t *testing.T) {
	for _, first := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(first.String(), func(t *testing.T) {
			cmd, _ := process(t, newFixture(t, leaseFile("udp", localNode)))
			awaitReady(t, 200, "")
			begin := time.Now()
			if err := cmd.Process.Signal(first); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil || time.Since(begin) > 2*time.Second {
				t.Errorf("%v after %v", err, time.Since(begin))
			}
		})
	}
	t.Run("while waiting for the config", func(t *testing.T) {
		cmd, _ := process(t, newFixture(t, "{"))
		awaitReady(t, 503, "config: ")
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Run("second", func(t *testing.T) {
		cmd, notified := process(t, newFixture(t, leaseFile("udp", localNode)))
		awaitReady(t, 200, "")
		// A request that never ends delays the graceful stop.
		c, err := net.Dial("tcp", healthAddress)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\n"); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		for got := range notified {
			if got == "STOPPING=1" {
				break
			}
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		err = cmd.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
			t.Errorf("ended with %v, want killed by the signal", err)
		}
	})
}
