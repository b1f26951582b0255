package main

import (
	"os"
	"testing"

	"weft/deploy/lab"
)

// tryTC runs a line of tc in the first node, and skips the test if the kernel lacks a part of it.
func (d *doctorLab) tryTC(t *testing.T, line string) {
	t.Helper()
	d.shell(0, "sh -ec '"+line+"' 2>/run/tc || test -s /run/tc")
	refused, err := os.ReadFile(d.Nodes[0].Path("tc"))
	if err != nil {
		t.Fatal(err)
	}
	if len(refused) > 0 {
		d.shell(0, "tc qdisc del dev cni0 ingress || true")
		t.Skipf("NOT TESTED: %s", refused)
	}
}

// TestNetnsDoctorTraffic has rules of other programs below and beside the packet filters' chains:
// traffic control, IPsec policies, connection tracking.
func TestNetnsDoctorTraffic(t *testing.T) {
	d := newDoctorLabOf(t, lab.Options{}, `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`, "--ip-masq")
	const all = " protocol ip u32 match u32 0 0 "
	far := d.daemons[1].env().Subnet.Masked().String()
	peer := d.Nodes[1].Addr.String()
	const spare = "ip link add d0 type veth peer name d1; ip link set d0 up; ip link set d1 up; "
	t.Run("no fault", func(t *testing.T) {
		// A shaper, a mirror for monitoring, rules of Docker and kube-proxy, and a bypass policy.
		d.shell(0, "ip link add bwp1 type ifb; ip link set bwp1 up; "+spare+
			"tc qdisc add dev vp1 ingress 2>/dev/null || tc qdisc add dev cni0 ingress; "+
			"tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress"+all+"action mirred egress mirror dev d0; "+
			"iptables -t raw -A PREROUTING -d 169.254.20.10/32 -p udp --dport 53 -j CT --notrack; "+
			"iptables -t raw -A PREROUTING -m mark --mark 0x200/0xf00 -j CT --notrack; "+
			"iptables -t nat -N KUBE-SERVICES; iptables -t nat -A PREROUTING -j KUBE-SERVICES; "+
			"ip xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir out priority 9")
		d.expect(socketPath)
		d.shell(0, "ip xfrm policy flush; iptables -t raw -F PREROUTING; tc qdisc del dev eth0 clsact; "+
			"tc qdisc del dev vp1 ingress 2>/dev/null || tc qdisc del dev cni0 ingress; ip link del d0; ip link del bwp1")
	})
	await := []fault{
		{name: "tc-filter", make: spare + "tc qdisc add dev flannel.1 clsact; " +
			"tc filter add dev flannel.1 ingress" + all + "action mirred egress redirect dev d0",
			undo: "tc qdisc del dev flannel.1 clsact; ip link del d0"},
		{name: "tc-filter", make: "tc qdisc add dev eth0 clsact; tc filter add dev eth0 egress protocol ip " +
			"u32 match ip protocol 17 0xff match ip dst " + peer + " action mirred ingress redirect dev lo",
			undo: "tc qdisc del dev eth0 clsact"},
		{name: "tc-filter", make: "tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress protocol ip " +
			"bpf bytecode '4,40 0 0 36,21 0 1 8472,6 0 0 2,6 0 0 0' da", // drops packets to the port
			undo: "tc qdisc del dev eth0 clsact"},
		{name: "tc-filter", produce: func(t *testing.T) func() {
			d.tryTC(t, "tc qdisc add dev cni0 ingress; tc filter add dev cni0 parent ffff: matchall action drop")
			return func() { d.shell(0, "tc qdisc del dev cni0 ingress") }
		}},
		{name: "tc-police", produce: func(t *testing.T) func() {
			d.tryTC(t, "tc qdisc add dev eth0 ingress; tc filter add dev eth0 parent ffff:"+all+
				"police rate 100kbit burst 1500 drop")
			return func() { d.shell(0, "tc qdisc del dev eth0 ingress") }
		}},
		{name: "ipsec-foreign", make: "ip xfrm policy add src 0.0.0.0/0 dst " + far + " dir out action block",
			undo: "ip xfrm policy flush"},
		{name: "ipsec-foreign", make: "ip xfrm policy add src " + peer + " dst 0.0.0.0/0 proto udp dir in " +
			"tmpl src " + peer + " dst " + d.Nodes[0].Addr.String() + " proto esp mode tunnel",
			undo: "ip xfrm policy flush"},
		{name: "untracked", make: "iptables -t raw -A PREROUTING -s 10.5.0.0/16 -j NOTRACK",
			undo: "iptables -t raw -F PREROUTING"},
		{name: "untracked", make: "nft add table ip fast; nft 'add chain ip fast p { type filter hook prerouting " +
			"priority raw; }'; nft add rule ip fast p ip saddr 10.5.0.0/16 ip protocol tcp notrack",
			undo: "nft delete table ip fast"},
		{name: "conntrack-zone", make: "iptables -t raw -A PREROUTING -i cni0 -j CT --zone 7",
			undo: "iptables -t raw -F PREROUTING"},
		{name: "conntrack-zone", make: "nft add table inet z; nft 'add chain inet z p { type filter hook prerouting " +
			"priority -300; }'; nft add rule inet z p iifname flannel.1 ct zone set 7",
			undo: "nft delete table inet z"},
	}
	d.check(socketPath, await)
}
