package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"

	"weft/ctrl/doctor"
	"weft/deploy/lab"
)

// occupy runs a process in a pod, as a real pod has one: by it the doctor finds the pod's
// namespace.
func occupy(t *testing.T, pod *lab.Pod) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := pod.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // it was killed
	})
}

// inPod returns a fault that lines for sh in a pod make and undo.
func inPod(name string, pod *lab.Pod, line, undo string) fault {
	run := func(t *testing.T, line string) {
		t.Helper()
		cmd := exec.Command("sh", "-ec", line)
		if err := pod.Do(func() error {
			out, err := cmd.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%s: %w: %s", line, err, out)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	return fault{name: name, produce: func(t *testing.T) func() {
		run(t, line)
		return func() { run(t, undo) }
	}}
}

// emulateLoss makes the first node lose packets that it sends, if the kernel has the emulation.
func (d *doctorLab) emulateLoss(t *testing.T) (undo func()) {
	t.Helper()
	d.shell(0, "tc qdisc add dev eth0 root netem loss 60% 2>/run/netem || test -s /run/netem")
	refused, err := os.ReadFile(d.Nodes[0].Path("netem"))
	if err != nil {
		t.Fatal(err)
	}
	if len(refused) > 0 {
		t.Skipf("NOT TESTED: %s", refused)
	}
	return func() { d.shell(0, "tc qdisc del dev eth0 root") }
}

// TestNetnsDoctorPods produces faults inside of pods, and others that no daemon has a say in.
func TestNetnsDoctorPods(t *testing.T) {
	d := newDoctorLabOf(t, lab.Options{PodsPerNode: 2}, `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`)
	env := d.daemons[0].env()
	gateway, pods := env.Subnet, d.Nodes[0].Pods
	for _, pod := range pods {
		occupy(t, pod)
	}
	bad := gateway.Addr()
	for range 200 {
		bad = bad.Next()
	}
	own := netip.PrefixFrom(pods[0].Addr, gateway.Bits()).String()
	wide := netip.PrefixFrom(pods[0].Addr, 16).String()
	restore := "ip addr replace " + own + " dev eth0; ip route replace default via " + gateway.Addr().String()
	wrongGateway := inPod("pod-route", pods[0], "ip route replace default via "+bad.String(),
		"ip route replace default via "+gateway.Addr().String())
	d.check(socketPath, []fault{
		wrongGateway,
		inPod("pod-route", pods[0], "ip addr flush dev eth0; ip addr add "+wide+" dev eth0; "+
			"ip route add default via "+gateway.Addr().String(), "ip addr flush dev eth0; "+restore),
		inPod("pod-route", pods[0], "ip route del default", restore),
		inPod("pod-mtu", pods[0], "ip link set eth0 mtu 9000", fmt.Sprintf("ip link set eth0 mtu %d", env.MTU)),
		inPod("pod-address", pods[1], "ip addr add "+own+" dev eth0", "ip addr del "+own+" dev eth0"),
		{name: "arp-off", make: "ip link set cni0 arp off", undo: "ip link set cni0 arp on"},
		{name: "bridge-subnet",
			make: fmt.Sprintf("ip addr add %s/16 dev cni0; ip addr del %s dev cni0", gateway.Addr(), gateway),
			undo: fmt.Sprintf("ip addr add %s dev cni0; ip addr del %s/16 dev cni0", gateway, gateway.Addr())},
		{name: "prerouting-drop", make: "nft add table inet early; " +
			"nft 'add chain inet early p { type filter hook prerouting priority -450; }'; " +
			"nft add rule inet early p ip saddr 10.5.0.0/16 drop",
			undo: "nft delete table inet early"},
		{name: "path-lossy", node: 1,
			make: "iptables -I INPUT -p udp --dport 8472 -m statistic --mode nth --every 4 --packet 0 -j DROP",
			undo: "iptables -D INPUT -p udp --dport 8472 -m statistic --mode nth --every 4 --packet 0 -j DROP"},
		{name: "netem", produce: d.emulateLoss},
		{name: "pod-cut-off", make: "for p in $(ls /sys/class/net/cni0/brif); do bridge link set dev $p state 0; done",
			undo: "for p in $(ls /sys/class/net/cni0/brif); do bridge link set dev $p state 3; done"},
		{name: "pod-cut-off", make: "nft add table ip m; nft 'add chain ip m p { type filter hook prerouting " +
			"priority -150; }'; nft add rule ip m p iifname cni0 meta mark set 0x77; ip rule add pref 50 fwmark 0x77 blackhole",
			undo: "ip rule del pref 50; nft delete table ip m"},
	})
	d.run("trace into the pod", func() {
		defer d.produce(wrongGateway)()
		d.trace(traceCase{args: []string{pods[0].Addr.String(), d.Nodes[1].Pods[0].Addr.String()}, fails: "pod",
			evidence: "has the gateway " + bad.String()})
	})
	d.run("filters below IP", func() {
		d.shell(0, "nft add table bridge b; nft 'add chain bridge b f { type filter hook forward priority 0; }'")
		defer d.shell(0, "nft delete table bridge b")
		var r doctor.Report
		if err := d.weft(d.Nodes[0], &r, "doctor", "--json"); err != nil {
			d.t.Fatal(err)
		}
		for _, n := range r.NotChecked {
			if n.Reason == "these tables are not understood: nft list table bridge b" {
				return
			}
		}
		d.t.Errorf("the table is not named: %+v", r.NotChecked)
	})
}
