package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/deploy/lab"
	"weft/lease/subnetenv"
)

// upFast starts a daemon with a fast path on every node and waits until all of them have announced
// it.
func (c *cluster) upFast() []*member {
	c.t.Helper()
	ds := c.up("--fast-path=auto")
	for _, d := range ds {
		d.awaitFastPath()
	}
	await(c.t, patience, "announcements of the fast path", func() error {
		r, err := c.client.Get(c.t.Context(), clusterPrefix+"/weft/owners/", clientv3.WithPrefix())
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
	a, b := c.Nodes[0], c.Nodes[1]
	key := ds[0].key()
	for _, outage := range []struct {
		name string
		end  func(d *member)
	}{
		{"SIGTERM", func(d *member) { d.stop() }},
		{"SIGKILL", func(d *member) { d.Kill(); <-d.Done() }},
	} {
		t.Run(outage.name, func(t *testing.T) {
			p, err := a.Pods[0].StartPing(t.Context(), b.Pods[0].Addr,
				lab.Ping{Count: -1, Interval: time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			c.awaitAnswers(patience, p, 100)
			for i, d := range ds {
				outage.end(d)
				c.awaitAnswers(patience, p, 500)
				ds[i] = c.start(d.node, "--fast-path=auto")
				ds[i].awaitReady()
				c.awaitAnswers(patience, p, 300)
			}
			if r := p.Stop(); r.Lost() > 0 || r.Duplicates > 0 {
				r.RTT = nil
				t.Errorf("lost %d: %+v", r.Lost(), r)
			}
			if again := ds[0].key(); again != key {
				t.Errorf("key %s after the restart, %s before", again, key)
			}
			ds[0].checkDevice() // flannel0 again
			ds[0].awaitFastPath()
		})
	}
	t.Run("SIGSTOP", func(t *testing.T) {
		p, err := a.Pods[0].StartPing(t.Context(), b.Pods[0].Addr,
			lab.Ping{Count: -1, Interval: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range ds {
			if err := d.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		}
		c.awaitAnswers(patience, p, 2000)
		for _, d := range ds {
			if err := d.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}
		c.awaitAnswers(patience, p, 300)
		if r := p.Stop(); r.Lost() > 0 || r.Duplicates > 0 {
			r.RTT = nil
			t.Errorf("lost %d: %+v", r.Lost(), r)
		}
	})
	ds[0].stop()
}

// TestNetnsFastPathMixed runs nodes with and without a fast path, and flannel if there is one, in
// one network: each pair exchanges packets of all sizes.
func TestNetnsFastPathMixed(t *testing.T) {
	for _, mode := range []lab.Mode{lab.ModeWire, lab.ModeOff} {
		t.Run(string(mode), func(t *testing.T) {
			c := newCluster(t, lab.Options{Nodes: 4, Mode: mode}, clusterNetwork)
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
