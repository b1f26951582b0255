package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"weft/cmd/buildinfo"
	"weft/cmd/control"
	"weft/cmd/weft/cli"
	"weft/deploy/lab"
)

// weft runs the operator's tool on the daemon's node.
func (d *member) weft(args ...string) (status int, out string) {
	d.t.Helper()
	var b bytes.Buffer
	root := cli.NewRoot(buildinfo.Info{})
	root.SetOut(&b)
	root.SetErr(&b)
	args = append(args, "--control-socket="+d.node.Path("weft/weftd.sock"))
	err := d.node.Do(func() error {
		status = cli.Run(root, args)
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return status, b.String()
}

// awaitNode waits until the status of another node is as wanted.
func (d *member) awaitNode(what string, ok func(control.Node) bool) control.Node {
	d.t.Helper()
	var n control.Node
	await(d.t, patience, d.node.Name+": "+what, func() error {
		all := d.status().Nodes
		if len(all) != 1 || !ok(all[0]) {
			return fmt.Errorf("%+v", all)
		}
		n = all[0]
		return nil
	})
	return n
}

// awaitScreen waits until weft status exits with a status and prints all of the texts.
func (d *member) awaitScreen(status int, want ...string) {
	d.t.Helper()
	await(d.t, patience, "weft status", func() error {
		got, out := d.weft("status")
		for _, text := range want {
			if !strings.Contains(out, text) {
				return fmt.Errorf("want %q in\n%s", text, out)
			}
		}
		if got != status {
			return fmt.Errorf("exit status %d, want %d:\n%s", got, status, out)
		}
		return nil
	})
}

// checkMatrix asks a daemon for the matrix of the cluster, which it gets from the other node.
func checkMatrix(d *member) {
	d.t.Helper()
	client := control.NewClient(d.node.Path("weft/weftd.sock"))
	var c control.Cluster
	if err := client.Get(d.t.Context(), control.ClusterPath, nil, &c); err != nil {
		d.t.Fatal(err)
	}
	if c.Nodes != 2 || len(c.Rows) != 2 || c.Note != "" {
		d.t.Errorf("matrix: %+v", c)
	}
	for _, r := range c.Rows {
		if r.Row == nil || !r.Row.Ready || len(r.Row.Paths) != 1 || r.Row.Paths[0].RTT == 0 || r.Row.Paths[0].Out == nil {
			d.t.Errorf("row of %s: %+v, %s", r.Name, r.Row, r.Error)
		}
	}
}

// TestNetnsObserve follows the signs of life of a node, until its daemon dies.
func TestNetnsObserve(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.up("--fast-path=off") // with it, a node without a daemon goes on answering
	first, second := ds[0], ds[1]
	first.awaitNode("heard", func(n control.Node) bool {
		return !n.Heard.IsZero() && !n.Sent.IsZero() && n.Error == ""
	})
	subnet := second.env().Subnet.Masked().String()
	first.awaitScreen(0, "node1, ready, ", "prefix /coreos.com/network, connected for", "backend    udp, device flannel0, port 8285, engine ",
		"pods 1472, bridge cni0 1472, flannel0 1472, eth0 1500", subnet, "  ok\n")
	for _, line := range []string{
		`msg=starting version=`, `backend=udp port=8285`, `msg="other nodes changed" joined="` + second.node.Addr.String() + " (" + subnet + `)" nodes=1`} {
		if first.logged(line) != 1 {
			t.Errorf("want %q once in:\n%s", line, first.Log())
		}
	}

	if status, out := first.weft("status", "--all"); status != 0 || strings.Count(out, "  ready\n") != 2 {
		t.Errorf("weft status --all: %d:\n%s", status, out)
	}

	await(t, patience, "matrix", func() error {
		_, out := first.weft("status", "--all")
		if _, matrix, _ := strings.Cut(out, "FROM"); strings.Count(matrix, " ms") != 2 {
			return errors.New(out)
		}
		return nil
	})
	checkMatrix(first)

	second.Kill()
	pings, _ := c.steadyPing(c.Nodes[0].Pods[0], c.Nodes[1].Pods[0])
	want := "port unreachable, by ICMP from " + second.node.Addr.String()
	first.awaitNode("refused", func(n control.Node) bool { return n.Error == want && n.Unanswered > 0 })
	pings.Stop()
	first.awaitScreen(1, "! node2 ", want)
	if status, out := first.weft("status", "--all"); status != 1 || !strings.Contains(out, "no answer: ") {
		t.Errorf("weft status --all with a dead daemon: %d:\n%s", status, out)
	}
	if first.logged(`msg="packets to a node are refused"`) != 1 {
		t.Errorf("the refusal is not logged once:\n%s", first.Log())
	}

	if err := first.node.SetUp("flannel0", false); err != nil {
		t.Fatal(err)
	}
	await(t, patience, "log of the repair", func() error {
		if first.logged("repaired") == 0 {
			return errors.New("no line")
		}
		return nil
	})
	first.stop()
	status, out := first.weft("status", "--subnet-file="+first.node.Path("flannel/subnet.env"))
	for _, want := range []string{"not running", "subnet       " + first.env().Subnet.Masked().String(),
		"no device of the overlay", "no routes to other nodes"} {
		if status != 3 || !strings.Contains(out, want) {
			t.Errorf("exit status %d, want 3 and %q in\n%s", status, want, out)
		}
	}
}
