package main

import (
	"fmt"
	"net/netip"
	"testing"

	"weft/deploy/lab"
)

// TestNetnsDoctorIPv6 produces faults of IPv6 on nodes without IPv4, and on nodes of both families,
// where IPv4 stays intact.
func TestNetnsDoctorIPv6(t *testing.T) {
	link6 := []netip.Prefix{netip.MustParsePrefix("fd31::/64")}
	for _, families := range []struct {
		name, network string
		o             lab.Options
	}{
		{"IPv6 only", `"EnableIPv4":false,`, lab.Options{Underlay: link6}},
		{"dual stack", `"Network":"10.5.0.0/16",`, lab.Options{Underlay6: link6}},
	} {
		for _, backend := range []string{"udp", "vxlan", "host-gw"} {
			t.Run(families.name+", "+backend, func(t *testing.T) {
				d := newDoctorLabOf(t, families.o, "{"+families.network+
					`"EnableIPv6":true,"IPv6Network":"fd10:5::/56","Backend":{"Type":"`+backend+`"}}`)
				d.check(socketPath, d.faults6(backend))
				d.expect(noDaemon)
			})
		}
	}
}

// faults6 returns faults of IPv6 with a backend.
func (d *doctorLab) faults6(backend string) []fault {
	subnet := d.daemons[1].env().Subnet6.Masked()
	inside := netip.PrefixFrom(subnet.Addr(), 80).String()
	const link = "ip link add d0 type veth peer name d1; ip link set d1 up; ip link set d0 up; "
	faults := []fault{
		{name: "ip-forward-off", make: "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
			undo: "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"},
		{name: "route-foreign", make: link + "ip -6 route add " + inside + " dev d0", undo: "ip link del d0"},
		{name: "route-missing", make: "ip -6 route add blackhole " + inside,
			undo: "ip -6 route del blackhole " + inside},
		{name: "forward-drop", make: "nft add table ip6 fw; " +
			"nft 'add chain ip6 fw f { type filter hook forward priority 0; policy drop; }'",
			undo: "nft delete table ip6 fw"},
		{name: "ipv6-disabled", make: "echo 1 >/proc/sys/net/ipv6/conf/cni0/disable_ipv6",
			undo: "echo 0 >/proc/sys/net/ipv6/conf/cni0/disable_ipv6; ip -6 addr add " +
				d.daemons[0].env().Subnet6.String() + " dev cni0 nodad"},
	}
	if backend == "host-gw" {
		return append(faults, fault{name: "anti-spoofing", node: 1,
			make: "ip6tables -t raw -I PREROUTING -s fd10:5::/56 -j DROP",
			undo: "ip6tables -t raw -D PREROUTING -s fd10:5::/56 -j DROP"})
	}
	// The tunnel's packets of nodes of both families are IPv4 with udp.
	tables, port := "ip6tables", 8472
	if backend == "udp" {
		port = udpPort
		if d.daemons[0].env().Subnet.IsValid() {
			tables = "iptables"
		}
	}
	rule := func(name string, node int, rule string) fault {
		return fault{name: name, node: node, make: fmt.Sprintf("%s -I %s", tables, rule),
			undo: fmt.Sprintf("%s -D %s", tables, rule)}
	}
	return append(faults,
		rule("tunnel-port-dropped", 0, fmt.Sprintf("INPUT -p udp --dport %d -j DROP", port)),
		rule("tunnel-blocked", 1, fmt.Sprintf("INPUT -p udp --dport %d -j DROP", port)),
		rule("path-mtu-blackhole", 1, fmt.Sprintf("INPUT -p udp --dport %d -m length --length 1300: -j DROP", port)))
}
