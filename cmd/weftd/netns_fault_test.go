package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"weft/deploy/lab"
)

// TestNetnsDeviceFaults deletes and changes the device of a running daemon.
func TestNetnsDeviceFaults(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.up()
	node := c.Nodes[0]
	for _, fault := range []struct {
		name string
		make func() error
	}{
		{"deleted", func() error { return node.DeleteLink("flannel0") }},
		{"down", func() error { return node.SetUp("flannel0", false) }},
		{"deleted again", func() error { return node.DeleteLink("flannel0") }},
		{"renamed", func() error {
			return node.Do(func() error {
				return exec.Command("ip", "link", "set", "flannel0", "name", "foo0").Run()
			})
		}},
		{"route removed", func() error { return node.DeleteRoute(netip.MustParsePrefix("10.5.0.0/16")) }},
		{"MTU changed", func() error { return node.SetMTU("flannel0", 1300) }},
		{"address removed", func() error {
			return node.DeleteAddr("flannel0", netip.PrefixFrom(ds[0].env().Subnet.Masked().Addr(), 32))
		}},
	} {
		if err := fault.make(); err != nil {
			t.Fatalf("%s: %v", fault.name, err)
		}
		await(t, patience, "the device after "+fault.name, func() error {
			l, err := node.Link("flannel0")
			if err == nil && (!l.Up || l.MTU != 1472 || len(l.Addrs) != 1) {
				err = fmt.Errorf("%+v", l)
			}
			return err
		})
		c.awaitMesh()
		ds[0].awaitReady()
	}
	ds[0].checkDevice()
	ds[0].stop()
}

// TestNetnsIdleCPU checks the CPU time of a daemon that has recreated its device. flannel uses a
// whole CPU after the loss of its device.
func TestNetnsIdleCPU(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.up()
	if err := c.Nodes[0].DeleteLink("flannel0"); err != nil {
		t.Fatal(err)
	}
	c.awaitMesh()
	before, begin := cpuTime(t, ds[0]), time.Now()
	p, check := c.steadyPing(c.Nodes[0].Pods[0], c.Nodes[1].Pods[0])
	c.awaitAnswers(patience, p, 200)
	check(0)
	if used, took := cpuTime(t, ds[0])-before, time.Since(begin); used > took/2 {
		t.Errorf("200 pings in %v used %v of CPU time", took, used)
	}
}

// cpuTime returns the CPU time of a daemon. It sums the threads, since /proc/PID/schedstat covers
// the first one only.
func cpuTime(t *testing.T, d *member) time.Duration {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", d.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var sum time.Duration
	for _, task := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", d.PID(), task.Name()))
		if err != nil {
			continue // thread exited
		}
		var ns int64
		if _, err := fmt.Sscan(string(b), &ns); err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// TestNetnsUnderlayAddressChange changes the address of a node: other nodes learn it, and pods are
// reachable again.
func TestNetnsUnderlayAddressChange(t *testing.T) {
	c := newCluster(t, lab.Options{Nodes: 3}, clusterNetwork)
	ds := c.up()
	want := keys(ds)
	next := netip.MustParseAddr("172.31.0.77")
	if err := c.Nodes[1].ChangeAddress(next); err != nil {
		t.Fatal(err)
	}
	c.awaitMesh()
	c.awaitLeases(patience, want)
	have, err := c.leases()
	if err != nil {
		t.Fatal(err)
	}
	if value := have[ds[1].key()]; !strings.Contains(value, next.String()) {
		t.Errorf("lease is %s, want %s", value, next)
	}
	ds[1].awaitReady()
	ds[1].checkSocket()
}

// TestNetnsKillAndRestart kills a daemon with SIGKILL.
func TestNetnsKillAndRestart(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.up()
	p, _ := c.steadyPing(c.Nodes[1].Pods[0], c.Nodes[0].Pods[0])
	for range 3 {
		key := ds[0].key()
		ds[0].Kill()
		<-ds[0].Done()
		begin := time.Now()
		ds[0] = c.start(c.Nodes[0])
		c.awaitAnswers(patience, p, 1)
		took := time.Since(begin)
		t.Logf("pods reachable %v after the start", took)
		if took > 2*time.Second {
			t.Errorf("pods reachable only %v after the start", took)
		}
		ds[0].awaitReady()
		if again := ds[0].key(); again != key {
			t.Errorf("key %s after the restart, %s before", again, key)
		}
		ds[0].checkDevice() // flannel0 again
	}
	ds[0].stop()
}

// TestNetnsKilledAndMoved kills a daemon with SIGKILL and starts it again with another address,
// when nothing in the store shows any more that it lived: it has the same subnet, and no lease is
// left over.
func TestNetnsKilledAndMoved(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.up()
	want := keys(ds)
	ds[1].Kill()
	<-ds[1].Done()
	c.delete(clusterPrefix + "/weft/owners/" + ds[1].key())
	if err := os.Remove(ds[1].node.Path("flannel/subnet.env")); err != nil {
		t.Fatal(err)
	}
	if err := c.Nodes[1].ChangeAddress(netip.MustParseAddr("172.31.0.77")); err != nil {
		t.Fatal(err)
	}
	ds[1] = c.start(c.Nodes[1])
	ds[1].awaitReady()
	c.awaitLeases(patience, want)
	for _, d := range ds {
		d.awaitMetric(patience, "weft_nodes", func(v float64) bool { return v == 1 })
	}
	c.awaitMesh()
}

// TestNetnsNoLeaks repeats faults and checks that the numbers of descriptors and goroutines do not
// grow.
func TestNetnsNoLeaks(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.up("--pprof")
	count := func() (fds, goroutines int) {
		fds, err := ds[0].FDs()
		if err != nil {
			t.Fatal(err)
		}
		ds[0].awaitPage(patience, "/debug/pprof/goroutine?debug=1", func(b []byte, err error) error {
			if err == nil {
				_, err = fmt.Sscanf(string(b), "goroutine profile: total %d", &goroutines)
			}
			return err
		})
		return fds, goroutines
	}
	fault := func() {
		if err := c.Nodes[0].DeleteLink("flannel0"); err != nil {
			t.Fatal(err)
		}
		await(t, patience, "the device", func() error {
			_, err := c.Nodes[0].Link("flannel0")
			return err
		})
		c.etcd.Close()
		if err := c.etcd.Start(); err != nil {
			t.Fatal(err)
		}
		c.awaitMesh()
		ds[0].awaitMetric(time.Minute, "weft_store_connected", func(v float64) bool { return v == 1 })
		ds[0].awaitReady()
	}
	// Reconnecting takes different times, so take the maximum of several rounds.
	var fds, goroutines int
	for range 3 {
		fault()
		f, g := count()
		fds, goroutines = max(fds, f), max(goroutines, g)
	}
	for range 5 {
		fault()
	}
	// Closed connections take a moment to be released.
	await(t, patience, "descriptors and goroutines", func() error {
		if f, g := count(); f > fds || g > goroutines {
			return fmt.Errorf("%d descriptors and %d goroutines, %d and %d before", f, g, fds, goroutines)
		}
		return nil
	})
	ds[0].stop()
}

// TestNetnsPathMTU sends unfragmentable packets that are too big for the overlay, and for a path
// with a smaller MTU than the overlay's.
func TestNetnsPathMTU(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.up()
	a, b := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	// A pod with an MTU above the overlay's.
	env := ds[0].env()
	env.MTU = 1500
	if err := c.Nodes[0].Attach(env); err != nil {
		t.Fatal(err)
	}
	tooBig := func(size, mtu int) {
		t.Helper()
		r, err := a.Ping(t.Context(), b.Addr,
			lab.Ping{Count: 3, Size: size, DontFragment: true, Timeout: 200 * time.Millisecond})
		if err != nil || r.Received != 0 || r.TooBigMTU != mtu {
			t.Errorf("pings of %d bytes: %+v, %v: want an ICMP error with MTU %d", size, r, err, mtu)
		}
	}
	fits := func(size int) {
		t.Helper()
		r, err := a.Ping(t.Context(), b.Addr, lab.Ping{Count: 3, Size: size, DontFragment: true})
		if err != nil || r.Received != 3 {
			t.Errorf("pings of %d bytes: %+v, %v", size, r, err)
		}
	}
	fits(1428)
	fits(1472)
	tooBig(1473, 1472)
	tooBig(1500, 1472)

	peer := netip.PrefixFrom(c.Nodes[1].Addr, 32)
	if err := c.Nodes[0].SetRouteMTU(peer, netip.Addr{}, "eth0", 1400); err != nil {
		t.Fatal(err)
	}
	fits(1372)
	// The first packet may be the one from which the daemon learns the MTU.
	await(t, patience, "the path MTU is known", func() error {
		r, err := a.Ping(t.Context(), b.Addr, lab.Ping{Size: 1400, DontFragment: true, Timeout: 100 * time.Millisecond})
		if err == nil && r.TooBigCount == 0 {
			err = fmt.Errorf("%+v", r)
		}
		return err
	})
	tooBig(1373, 1372)
	tooBig(1472, 1372)
	fits(1372)
}

// TestNetnsDualStackOnSmallUnderlay uses the MTU of Tailscale and WSL2. It leaves no room for IPv6,
// whose packets the udp backend sends in outer fragments; with vxlan, IPv4 goes on alone.
func TestNetnsDualStackOnSmallUnderlay(t *testing.T) {
	for _, test := range []struct {
		backend    string
		mtu        int // of pods
		mtu4, mtu6 int // of packets; 0: IPv6 is off
	}{{"udp", 1280, 1252, 1280}, {"vxlan", 1230, 1230, 0}} {
		t.Run(test.backend, func(t *testing.T) {
			c := newCluster(t, lab.Options{MTU: 1280, Underlay6: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}},
				`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd10:5::/48","Backend":{"Type":"`+
					test.backend+`"}}`)
			d := c.up()[0]
			if env := d.env(); env.MTU != test.mtu || env.Subnet6.IsValid() != (test.mtu6 > 0) {
				t.Errorf("subnet.env is %+v", env)
			}
			off := d.logged(`msg="IPv6 is off" reason="MTU 1280 of interface eth0 leaves less than`)
			if off != 0 != (test.mtu6 == 0) {
				t.Errorf("logged %d times that IPv6 is off", off)
			}
			a, b := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
			answers := func(to netip.Addr, size int) {
				t.Helper()
				await(t, patience, fmt.Sprintf("%s answers %d bytes", to, size), func() error {
					r, err := a.Ping(t.Context(), to,
						lab.Ping{Size: size, DontFragment: true, Timeout: 200 * time.Millisecond})
					if err == nil && r.Received != 1 {
						err = fmt.Errorf("%+v", r)
					}
					return err
				})
			}
			answers(b.Addr, test.mtu4)
			if test.mtu6 > 0 {
				answers(b.Addr6, test.mtu6)
			}
		})
	}
}
