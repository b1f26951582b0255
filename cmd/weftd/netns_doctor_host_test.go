package main

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"weft/bench"
	"weft/deploy/lab"
)

// replaceDevice puts a device of another kind, which the daemon must not delete, in the place of
// the overlay's.
func (d *doctorLab) replaceDevice(t *testing.T) (undo func()) {
	t.Helper()
	if err := d.daemons[0].Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer d.resume(t)
	d.shell(0, "ip link del flannel.1; ip link add flannel.1 type veth peer name d1")
	return func() {
		d.shell(0, "ip link del flannel.1")
		d.awaitMesh()
	}
}

// resume continues the first node's daemon.
func (d *doctorLab) resume(t *testing.T) {
	t.Helper()
	if err := d.daemons[0].Signal(syscall.SIGCONT); err != nil {
		t.Error(err)
	}
}

// takePort makes a program hold the port of VXLAN when the daemon recreates its device.
func (d *doctorLab) takePort(t *testing.T) (undo func()) {
	t.Helper()
	if err := d.daemons[0].Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer d.resume(t)
	d.shell(0, "ip link del flannel.1")
	c, err := d.Nodes[0].ListenUDP(netip.IPv4Unspecified(), 8472)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		c.Close()
		d.awaitMesh()
	}
}

// TestNetnsDoctorHosts produces faults that take a third node or a second interface.
func TestNetnsDoctorHosts(t *testing.T) {
	o := lab.Options{Nodes: 3, Management: netip.MustParsePrefix("172.30.0.0/24")}
	d := newDoctorLabOf(t, o, clusterNetwork, "--fast-path=off")
	first := d.Nodes[0]
	detour := func(n *lab.Node) string {
		return fmt.Sprintf("%s via %s dev mgmt0 src %s", n.Addr, first.RootManagement, first.Addr)
	}
	d.check(socketPath, []fault{
		{name: "rp-filter-strict",
			make: "ip route add " + detour(d.Nodes[2]) + "; echo 1 >/proc/sys/net/ipv4/conf/eth0/rp_filter",
			undo: "ip route del " + detour(d.Nodes[2]) + "; echo 0 >/proc/sys/net/ipv4/conf/eth0/rp_filter"},
		repeat("former-backend", "ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 && "+
			"ip addr add "+d.daemons[0].env().Subnet.Masked().Addr().String()+"/32 dev flannel.1",
			"ip link del flannel.1 || true"),
	})
	d.run("queue-overflow", func() {
		d.overflow()
		d.expect(socketPath, "queue-overflow")
	})
	d.run("wrong-interface", func() {
		d.daemons[0].stop()
		d.daemons[0] = d.startNamed(first, "--iface=mgmt0")
		d.daemons[0].awaitReady()
		d.expect(socketPath, "wrong-interface")
	})
}

// overflow sends more packets to the tunnel device than its queue holds,
// which has no reader meanwhile.
func (d *doctorLab) overflow() {
	d.t.Helper()
	m := d.daemons[0]
	if err := m.Signal(syscall.SIGSTOP); err != nil {
		d.t.Fatal(err)
	}
	const packets = 20000 // the queue holds 5000
	c, err := m.node.Pods[0].Dial("udp", netip.AddrPortFrom(d.Nodes[1].Pods[0].Addr, 9))
	if err != nil {
		d.t.Fatal(err)
	}
	defer c.Close()
	for range packets {
		_, _ = c.Write([]byte{0}) // whether it is dropped, the counters show
	}
	if err := m.Signal(syscall.SIGCONT); err != nil {
		d.t.Fatal(err)
	}
	m.awaitMetric(patience, `weft_queue_overflows_total{queue="tun"}`, func(v float64) bool { return v > 0 })
	if _, err := bench.GetInside(d.t.Context(), m.node.NS, m.health(), "/readyz"); err != nil {
		d.t.Error(err)
	}
}
