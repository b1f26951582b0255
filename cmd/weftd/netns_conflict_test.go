package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"weft/deploy/lab"
)

// publicKey is a WireGuard key that no node has.
const publicKey = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="

// leasesOn writes a lease file with these subnets of the cluster's nodes, in order, to every node
// and starts the daemons.
func (c *cluster) leasesOn(network, backend string, subnets ...string) []*member {
	c.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "network: {Network: %s, Backend: {Type: %s}}\nnodes:\n", network, backend)
	for i, n := range c.Nodes {
		data := ""
		switch backend {
		case "vxlan":
			data = fmt.Sprintf(`, backendType: vxlan, backendData: {VNI: 1, VtepMAC: "9a:71:00:00:00:%02x"}`, i)
		case "wireguard":
			data = `, backendType: wireguard, backendData: {PublicKey: "` + publicKey + `"}`
		}
		fmt.Fprintf(&b, "  - {name: %s, subnet: %s, publicIP: %s%s}\n", n.Name, subnets[i], n.Addr, data)
	}
	return c.withLeases(b.String())
}

// withLeases starts the daemons with the same lease file on every node.
func (c *cluster) withLeases(leases string) []*member {
	c.t.Helper()
	var ds []*member
	for _, n := range c.Nodes {
		c.writeFile(n.Path("weft.yml"), leases)
		ds = append(ds, c.startWith(n, "--lease-file=/run/weft.yml", "--node-name="+n.Name))
	}
	return ds
}

// awaitUnreachable waits until the status tells why a node is unreachable; "" if it is reachable.
func (d *member) awaitUnreachable(node, reason string) {
	d.t.Helper()
	await(d.t, patience, d.node.Name+" on "+node, func() error {
		for _, n := range d.status().Nodes {
			if n.Name == node && strings.Contains(n.Unreachable, reason) && (reason != "") == (n.Unreachable != "") {
				return nil
			}
		}
		return fmt.Errorf("nodes %+v", d.status().Nodes)
	})
}

// TestNetnsNetworkCoversNode has a pod network that contains the address of a node behind a router,
// and the router's.
func TestNetnsNetworkCoversNode(t *testing.T) {
	lab.SkipWithoutTUN(t)
	for _, test := range []struct{ backend, subnet, want string }{
		{"udp", "10.0.33.0/24", "packets to node node2 (10.0.2.11) are taken by this daemon's own route 10.0.0.0/16 dev flannel0"},
		{"wireguard", "10.0.33.0/24", "own route 10.0.0.0/16 dev flannel-wg"},
		// These have a route per node, so only the subnets of nodes matter.
		{"vxlan", "10.0.33.0/24", ""},
		{"vxlan", "10.0.2.0/24", "own route 10.0.2.0/24 via 10.0.2.0 dev flannel.1"},
	} {
		t.Run(test.backend+" "+test.subnet, func(t *testing.T) {
			c := &cluster{t: t, Lab: lab.Start(t, lab.Options{Underlay: []netip.Prefix{
				netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("10.0.2.0/24")}})}
			ds := c.leasesOn("10.0.0.0/16", test.backend, "10.0.57.0/24", test.subnet)
			if test.want == "" {
				ds[0].awaitReady()
				return
			}
			ds[0].awaitNotReady(test.want)
			ds[0].awaitUnreachable("node2", test.want)
		})
	}
}

// TestNetnsNetworkCoversNodeIPv6 does the same with IPv6.
func TestNetnsNetworkCoversNodeIPv6(t *testing.T) {
	lab.SkipWithoutTUN(t)
	for backend, device := range map[string]string{"udp": "flannel0", "wireguard": "flannel-wg-v6"} {
		t.Run(backend, func(t *testing.T) {
			c := &cluster{t: t, Lab: lab.Start(t, lab.Options{Underlay: []netip.Prefix{
				netip.MustParsePrefix("fd31::/64"), netip.MustParsePrefix("fd32::/64")}})}
			ds := c.withLeases(fmt.Sprintf(`{"network":
{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd32::/48","Backend":{"Type":%q}},"nodes":[
{"name":"node1","subnet6":"fd32:0:0:57::/64","publicIPv6":%q},
{"name":"node2","subnet6":"fd32:0:0:33::/64","publicIPv6":%q,"backendType":%q,"backendV6Data":{"PublicKey":%q}}]}`,
				backend, c.Nodes[0].Addr, c.Nodes[1].Addr, map[string]string{"wireguard": "wireguard"}[backend], publicKey))
			want := fmt.Sprintf("packets to node node2 (fd32::b) are taken by this daemon's own route fd32::/48 dev %s", device)
			ds[0].awaitNotReady(want)
		})
	}
}

// TestNetnsNetworkOfTheUnderlay has a pod network that would cut a node off before any other node
// is known: no lease is taken.
func TestNetnsNetworkOfTheUnderlay(t *testing.T) {
	for _, test := range []struct{ name, network, want string }{
		{"udp, equal", `{"Network":"172.31.0.0/24","SubnetLen":26}`, "network 172.31.0.0/24 is the network that eth0 is in"},
		{"wireguard, equal", `{"Network":"172.31.0.0/24","SubnetLen":26,"Backend":{"Type":"wireguard"}}`, "is the network that eth0 is in"},
		{"udp, a part with the gateway", `{"Network":"172.31.0.0/28","SubnetLen":30}`, "network 172.31.0.0/28 contains the gateway (172.31.0.1)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t, lab.Options{Nodes: 1}, test.network)
			d := c.start(c.Nodes[0])
			await(t, patience, "the end of the daemon", func() error {
				if d.Running() {
					return errors.New("still running")
				}
				return nil
			})
			if !strings.Contains(d.Log(), test.want) {
				t.Errorf("want %q in the log:\n%s", test.want, d.Log())
			}
			if have, err := c.leases(); err != nil || len(have) > 0 {
				t.Errorf("leases %v, %v, want none", have, err)
			}
		})
	}
}

// TestNetnsForeignRouteToPods diverts the packets to another node's pods.
func TestNetnsForeignRouteToPods(t *testing.T) {
	lab.SkipWithoutTUN(t)
	for _, backend := range []string{"udp", "host-gw"} {
		t.Run(backend, func(t *testing.T) {
			c := &cluster{t: t, Lab: lab.Start(t, lab.Options{})}
			ds := c.leasesOn("10.5.0.0/16", backend, "10.5.1.0/24", "10.5.2.0/24")
			for _, d := range ds {
				d.awaitReady()
				d.awaitUnreachable(map[bool]string{true: "node2", false: "node1"}[d == ds[0]], "")
			}
			first := c.Nodes[0]
			addDevice(t, first, "other0", "192.0.2.1/24")
			if backend == "udp" { // the route of another backend would be a conflict of the kernel condition
				addDevice(t, first, "cni0", "10.5.2.1/24")
				ds[0].awaitUnreachable("node2", "cni0 on this node has its address 10.5.2.1")
				if err := first.DeleteLink("cni0"); err != nil {
					t.Fatal(err)
				}
				ds[0].awaitUnreachable("node2", "")
			}
			c.routeByTable52(first, "other0", "10.5.0.0/16", nil)
			ds[0].awaitUnreachable("node2", "route 10.5.0.0/16 dev other0 table 52 (ip rule 5270)")
			ds[0].awaitReady()
		})
	}
}

// routeByTable52 adds a route in a table of its own and a policy rule that prefers it, for packets
// from src or for all.
func (c *cluster) routeByTable52(n *lab.Node, device, dst string, src *net.IPNet) {
	c.t.Helper()
	_, to, err := net.ParseCIDR(dst)
	if err != nil {
		c.t.Fatal(err)
	}
	err = n.Do(func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		rule := netlink.NewRule()
		rule.Priority, rule.Table, rule.Src = 5270, 52, src
		return errors.Join(
			netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: to, Table: 52}),
			netlink.RuleAdd(rule))
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// TestNetnsForwardingOff turns the kernel's switches off while the daemon runs.
func TestNetnsForwardingOff(t *testing.T) {
	lab.SkipWithoutTUN(t)
	c := &cluster{t: t, Lab: lab.Start(t, lab.Options{Nodes: 1})}
	d := c.leasesOn("10.5.0.0/16", "udp", "10.5.1.0/24")[0]
	for _, name := range []string{"ipv4/ip_forward", "ipv4/conf/flannel0/forwarding"} {
		d.awaitReady()
		if err := d.node.Sysctl(name, "0"); err != nil {
			t.Fatal(err)
		}
		d.awaitNotReady("sysctl -w net." + strings.ReplaceAll(name, "/", ".") + "=1")
		if err := d.node.Sysctl(name, "1"); err != nil {
			t.Fatal(err)
		}
	}
	d.awaitReady()
}
