package main

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"weft/deploy/lab"
)

// TestNetnsCutOff makes faults that cut pods off on a node, each of which must be the reason why it
// is not ready, and undoes them.
func TestNetnsCutOff(t *testing.T) {
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skip("NOT TESTED: packet filters of other programs: ", err)
	}
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.up("--fast-path=off") // its packets do not pass OUTPUT
	node := c.Nodes[0]
	pings, _ := c.steadyPing(c.Nodes[0].Pods[0], c.Nodes[1].Pods[0])
	defer pings.Stop()
	for _, fault := range []struct{ name, make, undo, want string }{
		{"forwarding off", "sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1",
			"sysctl -w net.ipv4.ip_forward=1"},
		{"device forwarding off", "sysctl -qw net.ipv4.conf.flannel0.forwarding=0", "sysctl -qw net.ipv4.conf.flannel0.forwarding=1",
			"net.ipv4.conf.flannel0.forwarding is 0"},
		{"DROP before our rules", "iptables -I FORWARD -s 10.5.0.0/16 -j DROP", "iptables -D FORWARD -s 10.5.0.0/16 -j DROP",
			"chain FORWARD of table"},
		{"OUTPUT", "iptables -I OUTPUT -p udp --dport 8285 -j DROP", "iptables -D OUTPUT -p udp --dport 8285 -j DROP",
			"operation not permitted"},
	} {
		inNode(t, node, "sh", "-c", fault.make)
		ds[0].awaitNotReady(fault.want)
		if status, out := ds[0].weft("status"); status != 1 || !strings.Contains(out, "! ") {
			t.Errorf("%s: weft status %d:\n%s", fault.name, status, out)
		}
		inNode(t, node, "sh", "-c", fault.undo)
		ds[0].awaitReady()
	}
}

// TestNetnsForwardRulesOff runs without rules for forwarding under a policy that needs them.
func TestNetnsForwardRulesOff(t *testing.T) {
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skip("NOT TESTED: packet filters of other programs: ", err)
	}
	c := newCluster(t, lab.Options{Nodes: 1}, clusterNetwork)
	inNode(t, c.Nodes[0], "iptables", "-P", "FORWARD", "DROP")
	d := c.start(c.Nodes[0], "--iptables-forward-rules=false")
	d.awaitNotReady("chain FORWARD of table")
}

// TestNetnsLeaseFileBroken breaks the lease file of a running daemon, which must say so.
func TestNetnsLeaseFileBroken(t *testing.T) {
	lab.SkipWithoutTUN(t)
	c := &cluster{t: t, Lab: lab.Start(t, lab.Options{})}
	d := c.leasesOn("10.5.0.0/16", "udp", "10.5.1.0/24", "10.5.2.0/24")[0]
	d.awaitReady()
	c.writeFile(c.Nodes[0].Path("weft.yml"), "nodes: [")
	await(t, patience, "the error in the status", func() error {
		if s := d.status().Store; s.Connected || s.Error == "" {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	d.awaitScreen(1, "! store", "not connected for ", "weft.yml")
}
