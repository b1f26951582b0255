package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/deploy/lab"
)

// startOuter6 starts a daemon per node of a lab without IPv4, with these modes of the fast path.
func startOuter6(t *testing.T, mode lab.Mode, fastPath ...string) (*cluster, []*member) {
	t.Helper()
	o := lab.Options{Nodes: len(fastPath), Mode: mode,
		Underlay: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}}
	c := newCluster(t, o, ipv6Network(`{"Type":"udp"}`))
	var ds []*member
	for i, n := range c.Nodes {
		ds = append(ds, c.start(n, "--fast-path="+fastPath[i]))
	}
	for i, d := range ds {
		d.awaitReady()
		d.attach()
		if fastPath[i] != "off" {
			d.awaitFastPath()
		}
	}
	return c, ds
}

// awaitFastPings6 waits until pings take the fast path in both directions, as flows do that began
// before the announcements only after a silence.
func (c *cluster) awaitFastPings6(ds []*member, from, to *lab.Pod) {
	c.t.Helper()
	const silence = 200 * time.Millisecond // twice SILENCE of the programs
	await(c.t, patience, "pings of the fast path", func() error {
		before := []uint64{ds[0].status().Traffic.FastPath.Out.Packets, ds[1].status().Traffic.FastPath.Out.Packets}
		time.Sleep(silence)
		r, err := from.Ping(c.t.Context(), to.Addr6, lab.Ping{})
		if err != nil || r.Received != 1 {
			return fmt.Errorf("%+v, %w", r, err)
		}
		for i, n := range before {
			if ds[i].status().Traffic.FastPath.Out.Packets == n {
				return fmt.Errorf("%s: none", ds[i].node.Name)
			}
		}
		return nil
	})
}

// checkTraffic6 is checkTraffic for pods without IPv4, over outer IPv6.
func (c *cluster) checkTraffic6(from, to *lab.Pod) {
	c.t.Helper()
	ctx := c.t.Context()
	for _, size := range []int{84, 1428, 1452} {
		r, err := from.Ping(ctx, to.Addr6,
			lab.Ping{Count: 20, Interval: time.Millisecond, Size: size, DontFragment: true})
		if err != nil || r.Received != 20 {
			r.RTT = nil
			c.t.Errorf("pings of %d bytes from %s to %s: %+v, %v", size, from.Name, to.Name, r, err)
		}
	}
	err := errors.Join(
		lab.CheckTCP(ctx, from.NS, to.NS, to.Addr6, 50_000),
		lab.CheckTCP(ctx, from.NS, to.NS, to.Addr6, 8<<20),
		lab.CheckUDP(ctx, from.NS, to.NS, to.Addr6, 0, 1, 1400, 1404, 1405, 5000, 30_000, 60_000))
	if err != nil {
		c.t.Errorf("%s to %s: %v", from.Name, to.Name, err)
	}
}

// TestNetnsFastPathOuter6 runs nodes without IPv4, one of them without a fast path: each pair
// exchanges packets of all sizes, and only those between the other two are the kernel's.
func TestNetnsFastPathOuter6(t *testing.T) {
	for _, mode := range []lab.Mode{lab.ModeWire, lab.ModeOff} {
		t.Run(string(mode), func(t *testing.T) {
			c, ds := startOuter6(t, mode, "require", "auto", "off")
			a, b, off := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0], c.Nodes[2].Pods[0]
			c.awaitFastPings6(ds, a, b)
			carried := func() uint64 {
				f := ds[0].status().Traffic.FastPath
				return min(f.Out.Packets, f.In.Packets)
			}
			before := carried()
			c.checkTraffic6(a, b)
			c.checkTraffic6(b, a)
			sent := carried() - before
			t.Logf("the fast path carried %d packets in each direction", sent)
			if sent < 120 || mode == lab.ModeWire && sent < 2*(8<<20)/2/1452 {
				t.Errorf("the fast path carried %d packets", sent)
			}
			before = carried()
			for _, p := range []*lab.Pod{a, b} {
				c.checkTraffic6(p, off)
				c.checkTraffic6(off, p)
			}
			if n := carried(); n > before+50 { // neighbours of a and b at most
				t.Errorf("%d packets took the fast path beside a node without one", n-before)
			}
			for i, d := range ds {
				if drops := d.drops(); len(drops) > 0 {
					t.Errorf("node %d dropped %v", i, drops)
				}
				if d.metrics()[`weft_fast_path_passed_total{reason="failed"}`] > 0 {
					t.Errorf("node %d had no memory for headers", i)
				}
			}
			// A node that gives it up gets the others' packets in its engine.
			ds[1].stop()
			ds[1] = c.start(c.Nodes[1], "--fast-path=off")
			ds[1].awaitReady()
			await(t, patience, "an answer", func() error {
				return lab.CheckUDP(t.Context(), a.NS, b.NS, b.Addr6, 1)
			})
			c.checkTraffic6(a, b)
			c.checkTraffic6(b, a)
		})
	}
}

// TestNetnsFastPathOuter6Outage ends daemons on nodes without IPv4 in several ways: pods go on
// without a lost packet.
func TestNetnsFastPathOuter6Outage(t *testing.T) {
	c, ds := startOuter6(t, lab.ModeWire, "auto", "auto")
	a, b := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	c.awaitFastPings6(ds, a, b)
	for name, end := range endings() {
		t.Run(name, func(t *testing.T) {
			c.checkRestarts(t, ds, a, b.Addr6, end)
			ds[0].awaitFastPath()
		})
	}
	t.Run("SIGSTOP", func(t *testing.T) { c.checkPause(t, ds, a, b.Addr6) })
}

// TestNetnsFastPathOuter6Sockets runs the daemon where its program passes packets without a UDP
// checksum, and where outbound finds no next hops.
func TestNetnsFastPathOuter6Sockets(t *testing.T) {
	c, ds := startOuter6(t, lab.ModeWire, "auto", "auto", "auto")
	a, b := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	c.awaitFastPings6(ds, a, b)
	// A packet that the program refuses reaches the daemon, which counts it.
	conn := c.dialFast(c.Nodes[2], ds[0])
	spoofed := ds[1].env().Subnet6.Addr()
	pkt := append([]byte{0x60, 0, 0, 0, 0, 8, 17, 64}, spoofed.AsSlice()...)
	pkt = append(append(pkt, ds[0].env().Subnet6.Addr().AsSlice()...), 0, 9, 0, 9, 0, 8, 0, 0)
	if _, err := conn.Write(pkt); err != nil {
		t.Fatal(err)
	}
	ds[0].awaitMetric(patience, `weft_drops_total{reason="spoofed_inner_source"}`,
		func(v float64) bool { return v == 1 })
	ds[0].awaitMetric(patience, `weft_fast_path_passed_total{reason="refused"}`,
		func(v float64) bool { return v >= 1 })

	const setting = "ipv6/conf/eth0/forwarding"
	if err := c.Nodes[0].Sysctl(setting, "0"); err != nil {
		t.Fatal(err)
	}
	await(t, patience, "pause", func() error {
		want := "paused for net.ipv6.conf.eth0.forwarding, which is 0"
		if r := ds[0].status().Traffic.FastPath.Reason; !strings.HasPrefix(r, want) {
			return fmt.Errorf("reason %q, want %q", r, want)
		}
		return nil
	})
	c.checkTraffic6(a, b)
	if err := c.Nodes[0].Sysctl(setting, "1"); err != nil {
		t.Fatal(err)
	}
	c.awaitFastPings6(ds, a, b)
}
