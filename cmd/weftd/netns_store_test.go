package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/deploy/lab"
)

// TestNetnsEtcdStopped stops the store: no packet is lost, and missed changes are applied
// afterwards.
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

// TestNetnsEtcdPartition drops the packets to the store, so that connections stay open.
func TestNetnsEtcdPartition(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.up()
	_, check := c.steadyPing(c.Nodes[0].Pods[0], c.Nodes[1].Pods[0])
	for _, n := range c.Nodes {
		if err := c.Partition(c.Root, n); err != nil {
			t.Fatal(err)
		}
	}
	// The health servers are unreachable too, so check the log.
	for _, d := range ds {
		await(t, time.Minute, d.node.Name+" notices", func() error {
			if d.logged("lease store failed") == 0 {
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

// TestNetnsEtcdWipedAndRestored empties the store under running daemons, and later restores a
// backup. Both times, the same leases are back within a minute. An empty store is not taken as a
// loss of all other nodes, so no packet is lost. A backup may be, until the nodes missing in it
// have claimed again.
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

// TestNetnsStrayKeysAndPackets puts invalid keys into the store and invalid packets on the wire.
func TestNetnsStrayKeysAndPackets(t *testing.T) {
	c := newCluster(t, lab.Options{Nodes: 3}, clusterNetwork)
	ds := c.up()
	_, check := c.steadyPing(c.Nodes[0].Pods[0], c.Nodes[1].Pods[0])

	before := ds[0].status().Store.Revision
	for range 3 {
		c.put(clusterPrefix+"/subnets/stray", "x")
		c.put(clusterPrefix+"/subnets/10.5.200.0-24", "not JSON") // not claimed: daemons use the first 100
	}
	c.put(clusterPrefix+"/subnets/10.99.1.0-24", `{"PublicIP":"172.31.0.99","PublicIPv6":null}`) // outside the network
	ds[0].awaitPage(patience, "/status", func([]byte, error) error {
		if now := ds[0].status().Store.Revision; now < before+7 {
			return fmt.Errorf("has seen revision %d, want %d", now, before+7)
		}
		return nil
	})
	c.awaitMesh()
	if n := ds[0].logged("subnets/stray"); n != 1 {
		t.Errorf("stray key logged %d times", n)
	}

	c.sendStrayPackets(ds, c.sendJunk)
	if n := len(ds[0].Tail(1000)); n > 60 {
		t.Errorf("%d lines of log", n)
	}
	check(0)
}

// sendStrayPackets sends invalid packets to the first of three daemons, each by a call of send.
func (c *cluster) sendStrayPackets(
	ds []*member, send func(to *member, from *lab.Node, payload []byte, reason string),
) {
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
		send(ds[0], s.from, s.packet, s.reason)
	}
}

// sendJunk sends a payload to a daemon's port several times and waits until all are counted as
// drops for the given reason.
func (c *cluster) sendJunk(d *member, from *lab.Node, payload []byte, reason string) {
	c.t.Helper()
	conn, err := from.Dial("udp", netip.AddrPortFrom(d.node.Addr, udpPort))
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	d.countJunk(conn, payload, reason)
}

// countJunk sends a payload to the daemon by conn several times and waits until all are counted as
// drops for the given reason.
func (d *member) countJunk(conn net.Conn, payload []byte, reason string) {
	d.t.Helper()
	const times = 20
	sample := `weft_drops_total{reason="` + reason + `"}`
	before := d.metrics()[sample]
	for range times {
		if _, err := conn.Write(payload); err != nil {
			d.t.Fatal(err)
		}
	}
	d.awaitMetric(patience, sample, func(v float64) bool { return v == before+times })
}

// ipv4Packet returns a packet of protocol 253, which RFC 3692 reserves for experiments.
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

// TestNetnsSubnetPoolExhausted starts 16 daemons in a network of 15 subnets.
func TestNetnsSubnetPoolExhausted(t *testing.T) {
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
		t.Errorf("got %s, want the freed %s", last.key(), free)
	}
	for _, d := range slices.Concat(ds[:3], ds[4:]) {
		if !d.Running() {
			t.Errorf("%s exited", d.node.Name)
		}
	}
}

// TestNetnsDuplicatePublicIP runs a second node with the public IP of the first.
func TestNetnsDuplicatePublicIP(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	first := c.start(c.Nodes[0])
	first.awaitReady()
	second := c.start(c.Nodes[1], "--public-ip="+c.Nodes[0].Addr.String())
	second.awaitNotReady("in use")
	c.awaitLeases(patience, []string{first.key()})
	first.awaitReady()
	first.Kill()
	// The claim of the first expires after a while without a sign of it.
	second.awaitPage(time.Minute, "/readyz", func(_ []byte, err error) error { return err })
	if second.key() != first.key() {
		t.Errorf("second node has %s, want %s of the first", second.key(), first.key())
	}
}

// TestNetnsLeaseFile runs an overlay with a lease file instead of a store, and adds a third node to
// it.
func TestNetnsLeaseFile(t *testing.T) {
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

// TestNetnsEtcdWithoutProxy starts a daemon with a proxy for HTTPS in its environment.
func TestNetnsEtcdWithoutProxy(t *testing.T) {
	c := newCluster(t, lab.Options{Nodes: 1}, clusterNetwork)
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:9") // Go has cached the value for this process
	c.start(c.Nodes[0]).awaitReady()
}
