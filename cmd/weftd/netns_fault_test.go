package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/deploy/lab"
)

// TestNetnsEtcdStopped takes the store away: nothing is lost, and what happens meanwhile is made up for.
func TestNetnsEtcdStopped(t *testing.T) {
	c := newCluster(t, lab.Options{Nodes: 3}, clusterNetwork)
	a, b := c.start(c.Nodes[0]), c.start(c.Nodes[1])
	for _, d := range []*member{a, b} {
		d.awaitReady()
		d.attach()
	}
	c.awaitMesh()
	p, check := c.steadyPing(a.node.Pods[0], b.node.Pods[0])
	c.etcd.Close()
	for _, d := range []*member{a, b} {
		d.awaitMetric(time.Minute, "weft_store_connected", func(v float64) bool { return v == 0 })
	}
	c.awaitAnswers(patience, p, 400)
	late := c.start(c.Nodes[2])
	late.awaitNotReady("config")
	if err := c.etcd.Start(); err != nil {
		t.Fatal(err)
	}
	late.awaitReady()
	late.attach()
	c.awaitMesh()
	for _, d := range []*member{a, b} {
		d.awaitMetric(time.Minute, "weft_store_connected", func(v float64) bool { return v == 1 })
		d.awaitReady()
	}
	check(0)
}

// TestNetnsEtcdCutOff lets the packets to the store vanish, which no closed connection tells anybody about.
func TestNetnsEtcdCutOff(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.up()
	_, check := c.steadyPing(c.Nodes[0].Pods[0], c.Nodes[1].Pods[0])
	for _, n := range c.Nodes {
		if err := c.Partition(c.Root, n); err != nil {
			t.Fatal(err)
		}
	}
	// Their pages are cut off too, so the log has to do.
	for _, d := range ds {
		await(t, time.Minute, d.node.Name+" notices", func() error {
			if d.logged("trouble with the lease store") == 0 {
				return errors.New("nothing is logged")
			}
			return nil
		})
	}
	for _, n := range c.Nodes {
		if err := c.Heal(c.Root, n); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range ds {
		d.awaitMetric(time.Minute, "weft_store_connected", func(v float64) bool { return v == 1 })
		d.awaitReady()
	}
	c.awaitLeases(time.Minute, keys(ds))
	check(0)
}

// TestNetnsEtcdWipedAndRestored empties the store under running daemons, and later puts an old copy in its place: both
// times every lease is there again within a minute, the same ones. Of an empty store nobody believes that the others are
// gone, so nothing is lost; an old copy may be believed, until those that it does not know have claimed again.
func TestNetnsEtcdWipedAndRestored(t *testing.T) {
	c := newCluster(t, lab.Options{Nodes: 3}, clusterNetwork)
	early := []*member{c.start(c.Nodes[0]), c.start(c.Nodes[1])}
	for _, d := range early {
		d.awaitReady()
	}
	c.etcd.Close()
	backup := t.TempDir() + "/etcd"
	if err := os.CopyFS(backup, os.DirFS(c.Root.Path("etcd"))); err != nil {
		t.Fatal(err)
	}
	if err := c.etcd.Start(); err != nil {
		t.Fatal(err)
	}
	all := append(early, c.start(c.Nodes[2]))
	all[2].awaitReady()
	for _, d := range all {
		d.attach()
	}
	c.awaitMesh()
	want := keys(all)
	_, check := c.steadyPing(all[0].node.Pods[0], all[2].node.Pods[0])

	c.etcd.Close()
	if err := c.etcd.Wipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.etcd.Start(); err != nil {
		t.Fatal(err)
	}
	c.put(clusterPrefix+"/config", clusterNetwork)
	c.awaitLeases(time.Minute, want)
	c.awaitMesh()
	check(0)

	c.etcd.Close()
	if err := errors.Join(c.etcd.Wipe(), os.CopyFS(c.Root.Path("etcd"), os.DirFS(backup)), c.etcd.Start()); err != nil {
		t.Fatal(err)
	}
	c.awaitLeases(time.Minute, want)
	c.awaitMesh()
	for _, d := range all {
		d.awaitReady()
	}
}

// TestNetnsStrayKeysAndPackets puts keys that no daemon writes into the store, and packets that none sends on the wire.
func TestNetnsStrayKeysAndPackets(t *testing.T) {
	c := newCluster(t, lab.Options{Nodes: 3}, clusterNetwork)
	ds := c.up()
	_, check := c.steadyPing(c.Nodes[0].Pods[0], c.Nodes[1].Pods[0])

	before := ds[0].status().Store.Revision
	for range 3 {
		c.put(clusterPrefix+"/subnets/stray", "x")
		c.put(clusterPrefix+"/subnets/10.5.200.0-24", "not JSON") // nobody's: a daemon takes one of the first 100
	}
	c.put(clusterPrefix+"/subnets/10.99.1.0-24", `{"PublicIP":"172.31.0.99","PublicIPv6":null}`) // outside of the network
	ds[0].awaitPage(patience, "/status", func([]byte, error) error {
		if now := ds[0].status().Store.Revision; now < before+7 {
			return fmt.Errorf("has seen revision %d, want %d", now, before+7)
		}
		return nil
	})
	c.awaitMesh()
	if n := ds[0].logged("subnets/stray"); n != 1 {
		t.Errorf("the stray key was logged %d times", n)
	}

	own, other := ds[0].env().Subnet.Addr(), ds[2].env().Subnet.Addr()
	outside := netip.MustParseAddr("192.0.2.1")
	peer := ds[1].env().Subnet.Addr()
	good := ipv4Packet(peer, own, 4)
	for _, s := range []struct {
		from   *lab.Node
		packet []byte
		reason string
	}{
		{c.Nodes[1], []byte{}, "too_short"},
		{c.Nodes[1], []byte{0x45}, "too_short"},
		{c.Nodes[1], []byte("thirty bytes that are not an IP packet"), "bad_version"},
		{c.Nodes[1], good[:len(good)-1], "bad_length"},
		{c.Root, good, "unknown_outer_source"},
		{c.Nodes[1], ipv4Packet(other, own, 4), "spoofed_inner_source"},
		{c.Nodes[1], ipv4Packet(peer, outside, 4), "not_for_us"},
		{c.Nodes[1], ipv4Packet(peer, other, 4), "not_for_us"},
	} {
		c.sendJunk(ds[0], s.from, s.packet, s.reason)
	}
	if n := len(ds[0].Tail(1000)); n > 60 {
		t.Errorf("%d lines of log", n)
	}
	check(0)
}

// sendJunk sends one payload to a daemon's port many times and waits until every one is counted under its reason.
func (c *cluster) sendJunk(d *member, from *lab.Node, payload []byte, reason string) {
	c.t.Helper()
	const times = 20
	sample := `weft_drops_total{reason="` + reason + `"}`
	before := d.metrics()[sample]
	conn, err := from.Dial("udp", netip.AddrPortFrom(d.node.Addr, udpPort))
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	for range times {
		if _, err := conn.Write(payload); err != nil {
			c.t.Fatal(err)
		}
	}
	d.awaitMetric(patience, sample, func(v float64) bool { return v == before+times })
}

// ipv4Packet is a packet without a payload that says anything, of protocol 253 (RFC 3692: for experiments).
func ipv4Packet(src, dst netip.Addr, payload int) []byte {
	b := make([]byte, 20+payload)
	b[0], b[8], b[9] = 0x45, 64, 253
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	return b
}

// TestNetnsDeviceTakenAway deletes the device under a running daemon, and sets it down.
func TestNetnsDeviceTakenAway(t *testing.T) {
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

// TestNetnsIdleCostsNothing looks at the processor time of a daemon that has lost its device and made it again: a lost
// device is what flannel burns a whole CPU for.
func TestNetnsIdleCostsNothing(t *testing.T) {
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
		t.Errorf("200 pings in %v cost %v of processor time", took, used)
	}
}

// cpuTime is the processor time that a daemon has used. /proc/PID/schedstat is about the first thread only.
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
			continue // it has ended
		}
		var ns int64
		if _, err := fmt.Sscan(string(b), &ns); err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// TestNetnsUnderlayAddressChanges gives a node another address: the others are told, and its pods are reached again.
func TestNetnsUnderlayAddressChanges(t *testing.T) {
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
		t.Errorf("the lease says %s, want %s", value, next)
	}
	ds[1].awaitReady()
	ds[1].checkSocket()
}

// TestNetnsPoolOfFifteen starts more daemons at once than the network has subnets.
func TestNetnsPoolOfFifteen(t *testing.T) {
	c := newCluster(t, lab.Options{Nodes: 16, PodsPerNode: -1}, `{"Network":"10.5.0.0/20","SubnetLen":24}`)
	var ds []*member
	for _, n := range c.Nodes[:15] {
		ds = append(ds, c.start(n))
	}
	subnets := map[netip.Prefix]string{}
	for _, d := range ds {
		d.awaitReady()
		subnet := d.env().Subnet.Masked()
		if other := subnets[subnet]; other != "" {
			t.Errorf("%s and %s have %s", other, d.node.Name, subnet)
		}
		subnets[subnet] = d.node.Name
	}
	last := c.start(c.Nodes[15])
	last.awaitNotReady("no subnet")
	await(t, patience, "a log line about the full pool", func() error {
		if last.logged("no subnet") == 0 {
			return errors.New("none")
		}
		return nil
	})
	free := ds[3].key()
	ds[3].stop()
	c.delete(clusterPrefix + "/subnets/" + free)
	last.awaitReady()
	if last.key() != free {
		t.Errorf("got %s, want the one that was freed, %s", last.key(), free)
	}
	for _, d := range slices.Concat(ds[:3], ds[4:]) {
		if !d.Running() {
			t.Errorf("%s has ended", d.node.Name)
		}
	}
}

// TestNetnsOnePublicIPOnTwoNodes lets a second node claim the first one's address.
func TestNetnsOnePublicIPOnTwoNodes(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	first := c.start(c.Nodes[0])
	first.awaitReady()
	second := c.start(c.Nodes[1], "--public-ip="+c.Nodes[0].Addr.String())
	second.awaitNotReady("in use")
	c.awaitLeases(patience, []string{first.key()})
	first.awaitReady()
	first.Kill()
	// It is the first one's no longer, once nobody has heard of that for a while.
	second.awaitPage(time.Minute, "/readyz", func(_ []byte, err error) error { return err })
	if second.key() != first.key() {
		t.Errorf("the second has %s, want what the address had, %s", second.key(), first.key())
	}
}

// TestNetnsKilledAndRestarted kills a daemon as kill -9 does.
func TestNetnsKilledAndRestarted(t *testing.T) {
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
		t.Logf("pods are reached again %v after the start", took)
		if took > 2*time.Second {
			t.Errorf("pods are reached again only %v after the start", took)
		}
		ds[0].awaitReady()
		if again := ds[0].key(); again != key {
			t.Errorf("it has %s now, it had %s", again, key)
		}
		ds[0].checkDevice() // flannel0 again
	}
	ds[0].stop()
}

// TestNetnsNothingPilesUp does the same harm again and again: descriptors and goroutines stay as many as they were.
func TestNetnsNothingPilesUp(t *testing.T) {
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
	harm := func() {
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
	// A connection that is waited for again may be there after one harm and not after another.
	var fds, goroutines int
	for range 3 {
		harm()
		f, g := count()
		fds, goroutines = max(fds, f), max(goroutines, g)
	}
	for range 5 {
		harm()
	}
	// What a connection leaves behind ends a moment later.
	await(t, patience, "descriptors and goroutines", func() error {
		if f, g := count(); f > fds || g > goroutines {
			return fmt.Errorf("%d descriptors and %d goroutines, %d and %d before", f, g, fds, goroutines)
		}
		return nil
	})
	ds[0].stop()
}

// TestNetnsFileInsteadOfStore is an overlay of two nodes that share nothing but a file, until a third is added to it.
func TestNetnsFileInsteadOfStore(t *testing.T) {
	lab.SkipWithoutTUN(t)
	c := &cluster{Lab: lab.Start(t, lab.Options{Nodes: 3}), t: t}
	list := func(nodes int) {
		var b strings.Builder
		b.WriteString("network:\n  Network: 10.5.0.0/16\n  Backend: {Type: udp}\nnodes:\n")
		for i, n := range c.Nodes[:nodes] {
			fmt.Fprintf(&b, "  - {name: %s, subnet: 10.5.%d.0/24, publicIP: %s}\n", n.Name, i+1, n.Addr)
		}
		for _, n := range c.Nodes {
			if err := os.WriteFile(n.Path("weft.yml"), []byte(b.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	list(2)
	var ds []*member
	for _, n := range c.Nodes {
		ds = append(ds, c.startWith(n, "--lease-file=/run/weft.yml"))
	}
	for _, d := range ds[:2] {
		d.awaitReady()
		d.attach()
	}
	c.awaitMesh()
	c.checkTraffic(c.Nodes[0].Pods[0], c.Nodes[1].Pods[0])
	ds[2].awaitNotReady("node3")
	_, check := c.steadyPing(c.Nodes[0].Pods[0], c.Nodes[1].Pods[0])
	list(3)
	ds[2].awaitReady()
	ds[2].attach()
	c.awaitMesh()
	check(0)
	for _, d := range ds {
		d.stop()
	}
}

// TestNetnsTooBig sends packets that must not be cut and do not fit: into the overlay, and on a path that is narrower
// than the overlay thinks.
func TestNetnsTooBig(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.up()
	a, b := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	// A pod that does not know the overlay's MTU.
	env := ds[0].env()
	env.MTU = 1500
	if err := c.Nodes[0].Attach(env); err != nil {
		t.Fatal(err)
	}
	tooBig := func(size, mtu int) {
		t.Helper()
		r, err := a.Ping(t.Context(), b.Addr, lab.Ping{Count: 3, Size: size, DontFragment: true, Timeout: 200 * time.Millisecond})
		if err != nil || r.Received != 0 || r.TooBigMTU != mtu {
			t.Errorf("pings of %d bytes: %+v, %v: want to be told of an MTU of %d", size, r, err, mtu)
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
	// The first packet may be what tells the daemon.
	await(t, patience, "the narrow path is noticed", func() error {
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
