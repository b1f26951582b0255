package main

import (
	"encoding/json"
	"net/netip"
	"regexp"
	"testing"

	"weft/cmd/control"
	"weft/deploy/lab"
)

// TestNetnsWireGuardBehindNAT has the second node behind a router that replaces its address and
// port and accepts nothing new from outside: WireGuard follows the node to the replaced address.
func TestNetnsWireGuardBehindNAT(t *testing.T) {
	filters()[0].need(t)
	c := newCluster(t, lab.Options{Underlay: []netip.Prefix{
		netip.MustParsePrefix("172.31.1.0/24"), netip.MustParsePrefix("172.31.2.0/24")}},
		`{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","PersistentKeepaliveInterval":1}}`)
	for _, rule := range []string{
		"-t nat -A POSTROUTING -p udp -s 172.31.2.0/24 -d 172.31.1.0/24 -j MASQUERADE --to-ports 40000-40099",
		"-A FORWARD -p udp -s 172.31.1.0/24 -d 172.31.2.0/24 -m conntrack --ctstate NEW -j DROP",
	} {
		inNode(t, c.Root, "sh", "-c", "iptables -w "+rule)
	}
	ds := c.up()
	for _, d := range ds {
		_, out := d.weft("status", "--json")
		var s control.Status
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			t.Fatal(err)
		}
		if s.Kernel.Repairs > 0 || len(s.Kernel.Differences) > 0 {
			t.Errorf("%s: %+v, want the replaced endpoint left in place", d.node.Name, s.Kernel)
		}
	}
	rules := inNode(t, c.Root, "iptables", "-w", "-t", "nat", "-L", "POSTROUTING", "-v", "-n", "-x")
	if !regexp.MustCompile(`(?m)^ *[1-9][0-9]* .*MASQUERADE`).MatchString(rules) {
		t.Errorf("no packet has met the NAT:\n%s", rules)
	}
	for _, d := range ds {
		d.stop()
	}
}
