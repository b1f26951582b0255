package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"weft/deploy/lab"
)

// filters returns the packet filters with the programs that list their rules.
func filters() []filter {
	return []filter{
		{name: "iptables", config: "false", shows: [][]string{{"iptables-save"}, {"ip6tables-save"}}},
		{name: "nftables", config: "true", shows: [][]string{{"nft", "list", "ruleset"}}},
	}
}

type filter struct {
	name, config string // config is the value of EnableNFTables
	shows        [][]string
}

// need skips the test if a program is missing.
func (f filter) need(t *testing.T) {
	t.Helper()
	for _, argv := range f.shows {
		if _, err := exec.LookPath(argv[0]); err != nil {
			t.Skipf("NOT TESTED with %s: %v", f.name, err)
		}
	}
}

// network returns a network config with this filter.
func (f filter) network(backend string) string {
	return fmt.Sprintf(`{"Network":"10.5.0.0/16","EnableNFTables":%s,"Backend":%s}`, f.config, backend)
}

// inNode runs a program in a node's network namespace and returns its output.
func inNode(t *testing.T, n *lab.Node, argv ...string) string {
	t.Helper()
	var out, stderr bytes.Buffer
	err := n.Do(func() error {
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Stdout, cmd.Stderr = &out, &stderr
		return cmd.Run()
	})
	if err != nil {
		t.Fatalf("%s: %s: %v: %s", n.Name, strings.Join(argv, " "), err, &stderr)
	}
	return out.String()
}

// traces lists the state that a daemon could leave on a node: devices, their addresses except the
// kernel's link-local ones, routes, rules and chains.
func traces(t *testing.T, n *lab.Node, shows ...[]string) []string {
	t.Helper()
	var lines []string
	err := n.Do(func() error {
		devices, err := net.Interfaces()
		for _, d := range devices {
			addrs, err := d.Addrs()
			if err != nil {
				return err
			}
			addrs = slices.DeleteFunc(addrs, func(a net.Addr) bool { return strings.HasPrefix(a.String(), "fe80:") })
			lines = append(lines, fmt.Sprintf("device %s %v", d.Name, addrs))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	routes, err := n.Routes()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		lines = append(lines, fmt.Sprintf("route %+v", r))
	}
	for _, argv := range shows {
		for line := range strings.Lines(inNode(t, n, argv...)) {
			line = strings.TrimSpace(line)
			userChain := strings.HasPrefix(line, ":") && strings.Contains(line, " - [")
			rule := strings.HasPrefix(line, "-A") || userChain
			if rule || argv[0] == "nft" && line != "" {
				lines = append(lines, argv[0]+": "+line)
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// cleanUp runs `weftd cleanup` on a node and returns its exit code and output.
func cleanUp(t *testing.T, n *lab.Node, env ...string) (code int, output string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := n.Start([]string{self, "cleanup"}, append(env, asDaemon+"=1")...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	code, err = p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return code, p.Log()
}

// TestNetnsCleanup stops daemons, which leave their kernel state, and removes it.
func TestNetnsCleanup(t *testing.T) {
	for _, f := range filters() {
		t.Run(f.name, func(t *testing.T) {
			f.need(t)
			c := newCluster(t, lab.Options{PodsPerNode: -1}, f.network(`{"Type":"vxlan"}`))
			n := c.Nodes[0]
			before := traces(t, n, f.shows...)
			a, b := c.start(n, "--ip-masq", "--keep-source"), c.start(c.Nodes[1])
			a.awaitReady()
			b.awaitReady()
			other := b.env().Subnet.Masked()
			await(t, patience, "route to the other node",
				func() error { return hasRoute(n, "flannel.1", other.String()) })
			up := traces(t, n, f.shows...)
			untracked := func(line string) bool {
				return strings.Contains(line, n.Addr.String()) && strings.Contains(line, "dport 8472") &&
					strings.Contains(line, "notrack")
			}
			if !slices.ContainsFunc(up, untracked) {
				t.Errorf("tunnel packets are tracked:\n%s", strings.Join(up, "\n"))
			}
			a.stop()
			if left := traces(t, n, f.shows...); !slices.Equal(left, up) {
				t.Errorf("kernel state changed by the stop:\n%s\nbefore:\n%s", strings.Join(left, "\n"),
					strings.Join(up, "\n"))
			}
			code, output := cleanUp(t, n)
			if code != 0 || !strings.Contains(output, "removed device flannel.1 ") ||
				!strings.Contains(output, f.name) {
				t.Errorf("exit %d, output\n%s", code, output)
			}
			if after := traces(t, n, f.shows...); !slices.Equal(after, before) {
				t.Errorf("left:\n%s\nat first:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
			}
			if code, output := cleanUp(t, n); code != 0 || output != "nothing to remove\n" {
				t.Errorf("again: exit %d, output %q", code, output)
			}
		})
	}
}

// TestNetnsCleanupFastPath removes a fast path and its devices, which outlast the daemon. Those of
// a running daemon keep their device.
func TestNetnsCleanupFastPath(t *testing.T) {
	c := newCluster(t, lab.Options{PodsPerNode: -1}, clusterNetwork)
	n := c.Nodes[0]
	f := filters()[0]
	f.need(t)
	before := traces(t, n, f.shows...)
	ds := []*member{c.start(n), c.start(c.Nodes[1])}
	for _, d := range ds {
		d.awaitReady()
	}
	ds[0].awaitFastPath()
	ds[0].stop()
	code, output := cleanUp(t, n)
	if code != 0 || !strings.Contains(output, "removed device flannel0") ||
		!strings.Contains(output, "removed fast path of flannel0") {
		t.Errorf("exit %d, output\n%s", code, output)
	}
	if after := traces(t, n, f.shows...); !slices.Equal(after, before) {
		t.Errorf("left:\n%s\nat first:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
	if code, output := cleanUp(t, c.Nodes[1]); code != 0 || strings.Contains(output, "removed device flannel0") {
		t.Errorf("with a running daemon: exit %d, output\n%s", code, output)
	}
}

// TestNetnsAbandonedNetworkRules changes the network while the daemon is down: the old network in
// subnet.env is enough to find its rules.
func TestNetnsAbandonedNetworkRules(t *testing.T) {
	for _, f := range filters() {
		t.Run(f.name, func(t *testing.T) {
			f.need(t)
			c := newCluster(t, lab.Options{Nodes: 1, PodsPerNode: -1}, f.network(`{"Type":"host-gw"}`))
			n := c.Nodes[0]
			count := func(network string) int {
				return strings.Count(strings.Join(traces(t, n, f.shows...), "\n"), network)
			}
			for _, network := range []string{"10.5.0.0/16", "10.8.0.0/16"} {
				c.put(clusterPrefix+"/config",
					strings.Replace(f.network(`{"Type":"host-gw"}`), "10.5.0.0/16", network, 1))
				d := c.start(n, "--ip-masq", "--keep-source")
				d.awaitReady()
				if count(network) == 0 {
					t.Errorf("no rules for %s", network)
				}
				d.stop()
			}
			if count("10.5.") > 0 {
				t.Errorf("left:\n%s", strings.Join(traces(t, n, f.shows...), "\n"))
			}
		})
	}
}

func hasRoute(n *lab.Node, device, dst string) error {
	routes, err := n.Routes()
	if err == nil &&
		!slices.ContainsFunc(routes, func(r lab.Route) bool { return r.Device == device && r.Dst.String() == dst }) {
		err = fmt.Errorf("no route to %s on %s", dst, device)
	}
	return err
}

// TestNetnsCleanupFailure has rules but no program to remove them.
func TestNetnsCleanupFailure(t *testing.T) {
	if _, err := exec.LookPath("iptables-legacy"); err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	l := lab.Start(t, lab.Options{PodsPerNode: -1})
	n := l.Nodes[0]
	cleanUp(t, n) // programs of an earlier namespace with the same number
	err := n.Do(func() error {
		out, err := exec.CommandContext(t.Context(), "iptables-legacy", "-t", "nat", "-N",
			"FLANNEL-POSTRTG").CombinedOutput()
		if err != nil {
			err = errors.Join(err, errors.New(string(out)))
		}
		return err
	})
	if err != nil {
		t.Skipf("NOT TESTED: iptables-legacy does not work here: %v", err)
	}
	code, output := cleanUp(t, n, "PATH=/nowhere")
	if code != 1 || strings.Count(output, "\n") != 1 ||
		!strings.HasPrefix(output, "weftd: cleanup: kernel has legacy IPv4 iptables tables") {
		t.Errorf("exit %d, output %q", code, output)
	}
	if code, output := cleanUp(t, n); code != 0 || !strings.Contains(output, "FLANNEL-POSTRTG") {
		t.Errorf("exit %d, output %q", code, output)
	}
}
