package main

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"weft/deploy/lab"
	"weft/lease/subnetenv"
)

// TestNetnsSourceAddresses checks the source address of pods as seen by pods and by the host of
// another node, with each backend and packet filter, with and without --ip-masq and a rule of
// dockerd.
func TestNetnsSourceAddresses(t *testing.T) {
	for _, backend := range []string{"udp", "vxlan", "host-gw", "ipip", "wireguard"} {
		t.Run(backend, func(t *testing.T) {
			c := newCluster(t, lab.Options{}, clusterNetwork)
			if backend == "ipip" && !c.Nodes[0].HasDriver(backend) {
				t.Skip("NOT TESTED: this kernel has no ipip")
			}
			for _, f := range filters() {
				for _, masq := range []bool{false, true} {
					for _, docker := range []bool{false, true} {
						t.Run(fmt.Sprintf("%s,masquerade=%t,docker=%t", f.name, masq, docker), func(t *testing.T) {
							f.need(t)
							c.in(t).checkSources(f, backend, masq, docker)
						})
					}
				}
			}
		})
	}
}

// in returns the cluster for a subtest.
func (c *cluster) in(t *testing.T) *cluster {
	s := *c
	s.t = t
	return &s
}

// checkSources restarts the daemons for one combination. Addresses of pods are kept within the
// network. Packets to other destinations are masqueraded by --ip-masq or by dockerd.
func (c *cluster) checkSources(f filter, backend string, masq, docker bool) {
	c.t.Helper()
	if docker {
		c.dockerRule("-I")
		defer c.dockerRule("-D")
	}
	c.put(clusterPrefix+"/config", f.network(`{"Type":"`+backend+`"}`))
	ds := c.restart(fmt.Sprintf("--ip-masq=%t", masq), "--keep-source")
	for i, d := range ds {
		c.checkMode(d, f, docker)
		from, to := d.node.Pods[0], c.Nodes[1-i]
		world := from.Addr
		switch {
		case masq || docker:
			world = d.node.Addr
		case backend == "wireguard":
			world = netip.Addr{} // the answer's source is not an allowed IP of the WireGuard peer
		}
		for _, seen := range []struct {
			by   *lab.NS
			at   netip.Addr
			want netip.Addr // invalid: not checked
		}{
			{to.Pods[0].NS, to.Pods[0].Addr, from.Addr},
			{to.NS, ds[1-i].env().Subnet.Addr(), from.Addr},
			{to.NS, to.Addr, world},
		} {
			if !seen.want.IsValid() {
				continue
			}
			if got, err := sourceSeen(from.NS, seen.by, seen.at); err != nil || got != seen.want {
				c.t.Errorf("%s sees %s at %s as %v, %v; want %s", seen.by.Name, from.Name, seen.at, got, err, seen.want)
			}
		}
	}
	for _, d := range ds {
		d.stop()
	}
}

// restart starts the daemons of all nodes. Pods that are attached already stay as they are.
func (c *cluster) restart(flags ...string) []*member {
	c.t.Helper()
	var ds []*member
	for _, n := range c.Nodes {
		d := c.start(n, flags...)
		c.t.Cleanup(d.Kill)
		ds = append(ds, d)
	}
	for _, d := range ds {
		d.awaitReady()
		if !d.node.Pods[0].Addr.IsValid() {
			d.attach()
		}
	}
	c.awaitMesh()
	return ds
}

// checkMode checks the rules in the status.
func (c *cluster) checkMode(d *member, f filter, docker bool) {
	c.t.Helper()
	r := d.status().Rules
	if r.Mode != f.name || !r.InPlace {
		c.t.Errorf("%s: rules %+v", d.node.Name, r)
	}
	noted := slices.ContainsFunc(r.Notes, func(n string) bool {
		return strings.Contains(n, "MASQUERADE") && strings.Contains(n, "; weftd's rules before it prevent that")
	})
	// With nftables, rules of legacy iptables are not visible.
	if f.name == "iptables" && noted != docker {
		c.t.Errorf("%s: notes %q", d.node.Name, r.Notes)
	}
}

// dockerRule adds (-I) or deletes (-D), on every node, the rule with which dockerd masquerades
// packets that leave through a device other than its bridge. The nodes must have subnets.
func (c *cluster) dockerRule(how string) {
	c.t.Helper()
	if _, err := exec.LookPath("iptables"); err != nil {
		c.t.Skipf("NOT TESTED: rule of dockerd requires iptables: %v", err)
	}
	for _, n := range c.Nodes {
		env, err := subnetenv.Read(n.Path("flannel/subnet.env"))
		if err != nil {
			c.t.Fatal(err)
		}
		inNode(c.t, n, "iptables", "-t", "nat", how, "POSTROUTING", "-s", env.Subnet.Masked().String(), "!", "-o",
			"cni0", "-j", "MASQUERADE")
	}
}

// sourceSeen connects to a namespace and returns the source address of the connection there.
func sourceSeen(from, to *lab.NS, at netip.Addr) (netip.Addr, error) {
	l, err := to.Listen(at, 0)
	if err != nil {
		return netip.Addr{}, err
	}
	defer l.Close()
	conn, err := from.Dial("tcp", l.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	accepted, err := l.Accept()
	if err != nil {
		return netip.Addr{}, err
	}
	defer accepted.Close()
	return accepted.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), nil
}

// TestNetnsDockerRuleWithoutMasquerade checks dockerd's rule on nodes without --ip-masq: pods keep
// their addresses by default, and with --keep-source=false a note in the status names the rule.
func TestNetnsDockerRuleWithoutMasquerade(t *testing.T) {
	f := filters()[0]
	f.need(t)
	c := newCluster(t, lab.Options{}, f.network(`{"Type":"vxlan"}`))
	for _, d := range c.restart() {
		d.stop()
	}
	c.dockerRule("-I")
	from, to := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	const rewrites = "MASQUERADE\" in nat POSTROUTING would rewrite pods' sources between nodes"
	for _, tt := range []struct {
		flags []string
		kept  bool
		note  string
	}{
		{nil, true, rewrites + "; weftd's rules before it prevent that"},
		{[]string{"--keep-source=false"}, false, rewrites},
	} {
		ds := c.restart(tt.flags...)
		got, err := sourceSeen(from.NS, to.NS, to.Addr)
		if err != nil || (got == from.Addr) != tt.kept {
			t.Errorf("%q: seen as %v, %v; kept should be %t", tt.flags, got, err, tt.kept)
		}
		if note := strings.Join(ds[0].status().Rules.Notes, "\n"); !strings.HasSuffix(note, tt.note) {
			t.Errorf("%q: notes %q", tt.flags, note)
		}
		if n := ds[0].logged("would rewrite pods' sources"); n != 1 {
			t.Errorf("%q: logged %d times", tt.flags, n)
		}
		for _, d := range ds {
			d.stop()
		}
	}
}
