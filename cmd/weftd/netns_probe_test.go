package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"weft/bench"
	"weft/deploy/lab"
	"weft/lease/subnetenv"
)

// probeFlag makes the mesh probe quick.
const probeFlag = "--probe-interval=1"

// probedNode is the part of a node in /status that the mesh probe fills in.
type probedNode struct {
	Public      netip.Addr
	Unreachable string
	Path        struct {
		Address    netip.Addr
		Sent, Lost int
		RTTMedian  float64 `json:"rtt_median_seconds"`
		MTU        int
		Workers    struct{ Sent, Lost int }
		FastPath   struct{ Sent, Lost int } `json:"fast_path"`
	}
	Path6 struct{ Sent, Lost, MTU int }
}

// awaitPath waits until the entry of another node in the status meets a condition.
func (d *member) awaitPath(peer *lab.Node, desc string, ok func(probedNode) bool) {
	d.t.Helper()
	await(d.t, 3*patience, d.node.Name+": path to "+peer.Name+": "+desc, func() error {
		var s struct{ Nodes []probedNode }
		b, err := bench.GetInside(d.t.Context(), d.node.NS, d.health(), "/status")
		if err == nil {
			err = json.Unmarshal(b, &s)
		}
		if err != nil {
			return err
		}
		for _, n := range s.Nodes {
			if n.Public == peer.Addr && ok(n) {
				return nil
			}
		}
		return fmt.Errorf("%+v", s.Nodes)
	})
}

// TestNetnsProbe checks the results of the mesh probe between daemons of each backend, and the
// counters of backends whose packets the kernel moves, which the echoes increase.
func TestNetnsProbe(t *testing.T) {
	for _, test := range []struct {
		backend string
		mtu     int
		counter string // that is not zero
	}{
		{"udp", 1472, `weft_packets_total{direction="in"}`},
		{"vxlan", 1450, `weft_device_packets_total{device="flannel.1",direction="in"}`},
		{"wireguard", 1420, `weft_node_bytes_total{direction="in",node="172.31.0.12"}`},
		{"host-gw", 1500, ""},
	} {
		t.Run(test.backend, func(t *testing.T) {
			c := newCluster(t, lab.Options{PodsPerNode: -1},
				`{"Network":"10.5.0.0/16","Backend":{"Type":"`+test.backend+`"}}`)
			ds := c.ready(probeFlag)
			for i, d := range ds {
				d.awaitPath(c.Nodes[1-i], "measured", func(n probedNode) bool {
					return n.Unreachable == "" && n.Path.Sent > n.Path.Lost && n.Path.MTU == test.mtu &&
						n.Path.RTTMedian > 0 && n.Path.RTTMedian < 1
				})
			}
			if test.counter != "" {
				ds[0].awaitMetric(patience, test.counter, func(v float64) bool { return v > 0 })
			}
		})
	}
}

// TestNetnsProbeDeadNode checks that the death of a node shows, and leaves the others ready.
func TestNetnsProbeDeadNode(t *testing.T) {
	c := newCluster(t, lab.Options{PodsPerNode: -1}, clusterNetwork)
	d, dead := c.ready(probeFlag)[0], c.Nodes[1]
	d.awaitPath(dead, "answers", func(n probedNode) bool { return n.Path.Sent > n.Path.Lost })
	if err := c.KillNode(dead); err != nil {
		t.Fatal(err)
	}
	d.awaitPath(dead, "unreachable", func(n probedNode) bool {
		return strings.Contains(n.Unreachable, "no answer from "+n.Path.Address.String())
	})
	d.awaitMetric(patience, "weft_nodes_unreachable", func(v float64) bool { return v == 1 })
	d.awaitMetric(patience, `weft_probe_loss_ratio{node="`+dead.Addr.String()+`"}`,
		func(v float64) bool { return v > 0 })
	b, err := bench.GetInside(t.Context(), d.node.NS, d.health(), "/readyz")
	if err != nil || !strings.Contains(string(b), "1 of 1 other nodes unreachable") {
		t.Errorf("/readyz: %q, %v; want ready with a note", b, err)
	}
}

// TestNetnsProbeLossyPath drops every fourth tunnel packet that arrives at a node.
func TestNetnsProbeLossyPath(t *testing.T) {
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	c := newCluster(t, lab.Options{PodsPerNode: -1}, clusterNetwork)
	inNode(t, c.Nodes[1], strings.Fields("iptables -t raw -A PREROUTING -p udp --dport 8285 "+
		"-m statistic --mode nth --every 4 --packet 0 -j DROP")...)
	ds := c.ready(probeFlag)
	ds[0].awaitPath(c.Nodes[1], "lossy", func(n probedNode) bool {
		return n.Path.Sent >= 8 && n.Path.Lost*10 > n.Path.Sent && n.Path.Lost*2 < n.Path.Sent
	})
}

// TestNetnsProbePathMTU has a router on the path whose MTU is smaller than that of the nodes, with
// and without the ICMP errors that report it.
func TestNetnsProbePathMTU(t *testing.T) {
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	for _, test := range []struct {
		name, rule string
	}{
		{"reported", ""},
		{"black hole", "iptables -A OUTPUT -p icmp --icmp-type fragmentation-needed -j DROP"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t, lab.Options{PodsPerNode: -1, Underlay: []netip.Prefix{
				netip.MustParsePrefix("172.31.0.0/24"), netip.MustParsePrefix("172.31.1.0/24")}}, clusterNetwork)
			if err := c.Root.SetMTU("under1", 1400); err != nil {
				t.Fatal(err)
			}
			if test.rule != "" {
				inNode(t, c.Root, strings.Fields(test.rule)...)
				// Other tests share the namespace.
				defer inNode(t, c.Root, strings.Fields(strings.Replace(test.rule, "-A", "-D", 1))...)
			}
			ds := c.ready(probeFlag)
			ds[0].awaitPath(c.Nodes[1], "MTU 1372", func(n probedNode) bool { return n.Path.MTU == 1400-28 })
		})
	}
}

// TestNetnsProbeFlannel probes a node of flannel.
func TestNetnsProbeFlannel(t *testing.T) {
	flanneld := otherProgram(t, flanneldVariable, "a real flannel daemon on the other node")
	for backend, mtu := range map[string]int{"udp": 1472, "vxlan": 1450} {
		t.Run(backend, func(t *testing.T) {
			c := newCluster(t, lab.Options{PodsPerNode: -1},
				`{"Network":"10.5.0.0/16","Backend":{"Type":"`+backend+`"}}`)
			theirs := c.Nodes[0]
			_, err := theirs.Start([]string{flanneld, "--etcd-endpoints=" + c.endpoint(),
				"--iptables-forward-rules=false"})
			if err != nil {
				t.Fatal(err)
			}
			await(t, patience, "flannel's subnet.env", func() error {
				_, err := subnetenv.Read(theirs.Path("flannel/subnet.env"))
				return err
			})
			d := c.start(c.Nodes[1], probeFlag)
			d.awaitPath(theirs, "measured", func(n probedNode) bool {
				return n.Unreachable == "" && n.Path.Sent > n.Path.Lost && n.Path.MTU == mtu
			})
		})
	}
}
