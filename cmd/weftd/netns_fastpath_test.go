package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/deploy/lab"
	"weft/lease/subnetenv"
)

// upFast starts a daemon with a fast path on every node and waits until all of them have announced
// it.
func (c *cluster) upFast(flags ...string) []*member {
	c.t.Helper()
	ds := c.up(append(flags, "--fast-path=auto")...)
	for _, d := range ds {
		d.awaitFastPath()
	}
	await(c.t, patience, "announcements of the fast path", func() error {
		r, err := c.client.Get(c.t.Context(), clusterPrefix+"/weft/nodes/", clientv3.WithPrefix())
		if err != nil {
			return err
		}
		announced := 0
		for _, kv := range r.Kvs {
			if strings.Contains(string(kv.Value), `"fastPath":true`) {
				announced++
			}
		}
		if announced < len(ds) {
			return fmt.Errorf("%d of %d nodes", announced, len(ds))
		}
		return nil
	})
	return ds
}

// awaitFastPath waits until the daemon has a fast path. It skips the test if this host cannot have
// one.
func (d *member) awaitFastPath() {
	d.t.Helper()
	s := d.status().Traffic.FastPath
	if !s.Active {
		d.t.Skip("NOT TESTED: ", s.Reason)
	}
	if s.Reason != "" {
		d.t.Fatalf("fast path: %s", s.Reason)
	}
}

// TestNetnsFastPathOutage ends daemons in several ways: pods go on without a lost packet.
func TestNetnsFastPathOutage(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.upFast()
	a, b := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	key := ds[0].key()
	for name, end := range endings() {
		t.Run(name, func(t *testing.T) {
			c.checkRestarts(t, ds, a, b.Addr, end)
			if again := ds[0].key(); again != key {
				t.Errorf("key %s after the restart, %s before", again, key)
			}
			ds[0].checkDevice() // flannel0 again
			ds[0].awaitFastPath()
		})
	}
	t.Run("SIGSTOP", func(t *testing.T) { c.checkPause(t, ds, a, b.Addr) })
	ds[0].stop()
}

// endings returns ways in which a daemon ends.
func endings() map[string]func(*member) {
	return map[string]func(*member){
		"SIGTERM": func(d *member) { d.stop() },
		"SIGKILL": func(d *member) { d.Kill(); <-d.Done() },
	}
}

// checkRestarts ends each daemon in turn and starts another one, while a pod sends a ping per
// millisecond: none is lost.
func (c *cluster) checkRestarts(
	t *testing.T, ds []*member, from *lab.Pod, to netip.Addr, end func(*member),
) {
	t.Helper()
	p := c.startPings(t, from, to)
	for i, d := range ds {
		end(d)
		c.awaitAnswers(patience, p, 500)
		ds[i] = c.start(d.node, "--fast-path=auto")
		ds[i].awaitReady()
		c.awaitAnswers(patience, p, 300)
	}
	checkNoLoss(t, p)
}

// checkPause is checkRestarts, but stops all daemons for a while.
func (c *cluster) checkPause(t *testing.T, ds []*member, from *lab.Pod, to netip.Addr) {
	t.Helper()
	p := c.startPings(t, from, to)
	for _, s := range []struct {
		signal  os.Signal
		answers int
	}{{syscall.SIGSTOP, 2000}, {syscall.SIGCONT, 300}} {
		for _, d := range ds {
			if err := d.Signal(s.signal); err != nil {
				t.Fatal(err)
			}
		}
		c.awaitAnswers(patience, p, s.answers)
	}
	checkNoLoss(t, p)
}

// startPings sends a ping per millisecond and awaits the first answers.
func (c *cluster) startPings(t *testing.T, from *lab.Pod, to netip.Addr) *lab.Pinger {
	t.Helper()
	p, err := from.StartPing(t.Context(), to, lab.Ping{Count: -1, Interval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	c.awaitAnswers(patience, p, 100)
	return p
}

// checkNoLoss ends pings of which none may be lost.
func checkNoLoss(t *testing.T, p *lab.Pinger) {
	t.Helper()
	if r := p.Stop(); r.Lost() > 0 || r.Duplicates > 0 {
		r.RTT = nil
		t.Errorf("lost %d: %+v", r.Lost(), r)
	}
}

// TestNetnsFastPathMixed runs nodes with and without a fast path, and flannel if there is one, in
// one network: each pair exchanges packets of all sizes.
func TestNetnsFastPathMixed(t *testing.T) {
	for _, mode := range []lab.Mode{lab.ModeWire, lab.ModeOff} {
		t.Run(string(mode), func(t *testing.T) {
			c := newCluster(t, lab.Options{Nodes: 4, Mode: mode}, clusterNetwork)
			ds := c.upMixed()
			for i, from := range c.Nodes {
				for j, to := range c.Nodes {
					if i != j && to.Pods[0].Addr.IsValid() && from.Pods[0].Addr.IsValid() {
						c.checkTraffic(from.Pods[0], to.Pods[0])
					}
				}
			}
			for i, d := range ds {
				if drops := d.drops(); len(drops) > 0 {
					t.Errorf("node %d dropped %v", i, drops)
				}
				if out := d.status().Traffic.FastPath.Out.Packets; out > 0 != (i < 2) {
					t.Errorf("node %d sent %d packets by the fast path", i, out)
				}
			}
			// A node that gives it up gets the others' packets in its engine.
			ds[1].stop()
			ds[1] = c.start(c.Nodes[1], "--fast-path=off")
			ds[1].awaitReady()
			c.checkTraffic(c.Nodes[0].Pods[0], c.Nodes[1].Pods[0])
			c.checkTraffic(c.Nodes[1].Pods[0], c.Nodes[0].Pods[0])
		})
	}
}

// TestNetnsFastPathOneWayBlocked blocks one of the two ways between two nodes after the other: the
// mesh probe sees which, and packets avoid a blocked fast path.
func TestNetnsFastPathOneWayBlocked(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.upFast(probeFlag)
	a, b := c.Nodes[0], c.Nodes[1]
	works := func(n probedNode) bool { return n.Unreachable == "" && n.Path.Workers.Sent > 0 }
	ds[0].awaitPath(b, "both ways", works)

	// A packet filter of the host does not see the packets of the fast path.
	inNode(t, b, strings.Fields("iptables -I INPUT -p udp --dport 8285 -j DROP")...)
	ds[0].awaitPath(b, "lost bulk flows", func(n probedNode) bool {
		return strings.HasPrefix(n.Unreachable, "bulk flows are lost") && n.Path.FastPath.Lost == 0
	})
	ds[1].awaitPath(a, "the other direction", works)
	inNode(t, b, strings.Fields("iptables -D INPUT -p udp --dport 8285 -j DROP")...)
	ds[0].awaitPath(b, "both ways again", works)

	// A network that drops UDP without a checksum.
	restore := dropUDPWithoutChecksum(t, c.Root)
	defer restore()
	await(t, 3*patience, "avoidance of the fast path", func() error {
		for i, d := range ds {
			want := "not to " + c.Nodes[1-i].Addr.String()
			if r := d.status().Traffic.FastPath.Reason; !strings.HasPrefix(r, want) {
				return fmt.Errorf("%s: reason %q, want %q", d.node.Name, r, want)
			}
		}
		return nil
	})
	before := ds[0].metrics()[`weft_fast_path_packets_total{direction="out"}`]
	c.checkTraffic(a.Pods[0], b.Pods[0])
	// Only probes.
	if n := ds[0].metrics()[`weft_fast_path_packets_total{direction="out"}`]; n > before+30 {
		t.Errorf("the fast path has sent %v packets to the node", n-before)
	}
	restore()
	await(t, 3*patience, "use of the fast path", func() error {
		if r := ds[0].status().Traffic.FastPath.Reason; r != "" {
			return fmt.Errorf("reason %q", r)
		}
		return nil
	})
	c.awaitFastFlow(ds, a.Pods[0], b.Pods[0])
}

// TestNetnsFastPathOtherOwners gives the places of the programs other owners, and flannel0 a
// shaper: the engine carries the packets until they leave.
func TestNetnsFastPathOtherOwners(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.upFast()
	a, b := c.Nodes[0], c.Nodes[1]
	out := func() uint64 { return ds[0].status().Traffic.FastPath.Out.Packets }
	for _, other := range []struct{ come, leave, reason string }{
		{"tc qdisc add dev flannel0 root tbf rate 1gbit burst 1mb latency 50ms",
			"tc qdisc del dev flannel0 root", "paused for the qdisc tbf on flannel0"},
		{"tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress bpf bytecode 1,6 0 0 0",
			"tc qdisc del dev eth0 clsact", "another BPF program is attached: bpf filter, TCXIngress"},
		{"tc qdisc add dev flannel0 clsact; tc filter add dev flannel0 egress bpf bytecode 1,6 0 0 0",
			"tc qdisc del dev flannel0 clsact", "another BPF program is attached: bpf filter, TCXEgress"},
	} {
		t.Run(other.reason, func(t *testing.T) {
			inNode(t, a, "sh", "-ec", strings.Replace(other.come, "1,6 0 0 0", "'1,6 0 0 0'", 1))
			await(t, patience, "reason", func() error {
				if s := ds[0].status().Traffic.FastPath; !strings.HasPrefix(s.Reason, other.reason) {
					return fmt.Errorf("%+v", s)
				}
				return nil
			})
			await(t, patience, "packets in the engine alone", func() error {
				before := out()
				err := lab.CheckTCP(t.Context(), a.Pods[0].NS, b.Pods[0].NS, b.Pods[0].Addr, 50_000)
				if err == nil && out() != before {
					err = errors.New("the programs take packets")
				}
				return err
			})
			c.checkTraffic(a.Pods[0], b.Pods[0])
			c.checkTraffic(b.Pods[0], a.Pods[0])
			inNode(t, a, "sh", "-ec", other.leave)
			c.awaitFastFlow(ds, a.Pods[0], b.Pods[0])
			ds[0].awaitFastPath()
		})
	}
	key := ds[0].key()
	ds[0].Kill()
	<-ds[0].Done()
	if !a.HasLink("flannel0") {
		t.Error("the device did not outlast the process")
	}
	ds[0] = c.start(a)
	ds[0].awaitReady()
	if again := ds[0].key(); again != key {
		t.Errorf("key %s after the restart, %s before", again, key)
	}
}

// TestNetnsFastPathCapabilities runs the daemon with the capabilities of the manifests, and with
// those of the overlay for the fast path.
func TestNetnsFastPathCapabilities(t *testing.T) {
	c := newCluster(t, lab.Options{Nodes: 1}, clusterNetwork)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const manifest = "-all,+net_admin,+net_raw,+sys_nice"
	for _, test := range []struct{ capabilities, reason string }{
		{manifest + ",+bpf,+perfmon", ""},
		{manifest, "no CAP_BPF"},
	} {
		p, err := c.Nodes[0].Start([]string{"setpriv", "--bounding-set=" + test.capabilities,
			"--inh-caps=-all", "--no-new-privs", self, "--etcd-endpoints=" + c.endpoint(),
			fmt.Sprintf("--healthz-port=%d", clusterHealth)}, asDaemon+"=1")
		if err != nil {
			t.Fatal(err)
		}
		d := &member{Process: p, node: c.Nodes[0], t: t}
		d.awaitReady()
		s := d.status().Traffic.FastPath
		if s.Active != (test.reason == "") || !strings.Contains(s.Reason, test.reason) ||
			s.Reason != "" && test.reason == "" {
			t.Errorf("with %s: %+v, want the reason %q", test.capabilities, s, test.reason)
		}
		d.stop()
	}
}

// startFlannel runs flannel on a node if WEFT_FLANNELD names its program.
func (c *cluster) startFlannel(n *lab.Node) {
	c.t.Helper()
	flanneld := os.Getenv(flanneldVariable)
	if flanneld == "" {
		c.t.Log("NOT TESTED: with flannel, as " + flanneldVariable + " is not set")
		return
	}
	_, err := n.Start([]string{flanneld, "--etcd-endpoints=" + c.endpoint(),
		"--iptables-forward-rules=false"})
	if err != nil {
		c.t.Fatal(err)
	}
	await(c.t, patience, "flannel's subnet.env", func() error {
		env, err := subnetenv.Read(n.Path("flannel/subnet.env"))
		if err != nil {
			return err
		}
		return n.Attach(env)
	})
}

// upMixed starts daemons on three of four nodes, the third without a fast path, and flannel on the
// fourth if there is one. It returns the daemons when all nodes reach each other.
func (c *cluster) upMixed() []*member {
	c.t.Helper()
	ds := []*member{
		c.start(c.Nodes[0], "--fast-path=auto"), c.start(c.Nodes[1], "--fast-path=auto"),
		c.start(c.Nodes[2], "--fast-path=off"),
	}
	c.startFlannel(c.Nodes[3])
	for _, d := range ds {
		d.awaitReady()
		d.attach()
	}
	ds[0].awaitFastPath()
	c.awaitMesh()
	return ds
}

// dropUDPWithoutChecksum lets the network between the nodes drop UDP without a checksum, until
// restore is called. The caller must call it: the root's namespace is that of all labs.
func dropUDPWithoutChecksum(t *testing.T, root *lab.Node) (restore func()) {
	t.Helper()
	inNode(t, root, "nft", "add table bridge weft; add chain bridge weft f "+
		"{ type filter hook forward priority 0; }; add rule bridge weft f udp checksum 0 drop")
	return sync.OnceFunc(func() { inNode(t, root, "nft", "delete table bridge weft") })
}
