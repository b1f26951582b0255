package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"weft/deploy/lab"
)

// ipv6Network returns a network config with IPv6 only.
func ipv6Network(backend string) string {
	return `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd10:5::/56","Backend":` + backend + `}`
}

// TestNetnsIPv6Only runs each backend on nodes that have no IPv4 at all, across a router with a
// smaller MTU where the backend can cross one.
func TestNetnsIPv6Only(t *testing.T) {
	link := []netip.Prefix{netip.MustParsePrefix("fd31::/64")}
	routed := append(link, netip.MustParsePrefix("fd32::/64"))
	for _, test := range []struct {
		backend  string
		underlay []netip.Prefix
	}{
		{"udp", routed}, {"vxlan", routed}, {"wireguard", routed}, {"host-gw", link},
	} {
		t.Run(test.backend, func(t *testing.T) {
			c := newCluster(t, lab.Options{Underlay: test.underlay}, ipv6Network(`{"Type":"`+test.backend+`"}`))
			c.checkIPv6Only(func(n *lab.Node) *member { return c.start(n) })
		})
	}
}

// TestNetnsIPv6OnlyLeaseFile does the same with a lease file.
func TestNetnsIPv6OnlyLeaseFile(t *testing.T) {
	lab.SkipWithoutTUN(t)
	o := lab.Options{Underlay: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}}
	for _, backend := range []string{"udp", "host-gw", "vxlan", "wireguard"} {
		t.Run(backend, func(t *testing.T) {
			c := &cluster{Lab: lab.Start(t, o), t: t}
			start := func(n *lab.Node) *member {
				return c.startWith(n, "--lease-file=/run/weft.yml", "--node-name="+n.Name)
			}
			network := ipv6Network(`{"Type":"` + backend + `"}`)
			var subnets, entries []string
			for i, n := range c.Nodes {
				subnets = append(subnets, fmt.Sprintf("- {name: %s, subnet6: 'fd10:5:0:%d::/64', publicIPv6: '%s'}\n",
					n.Name, i+1, n.Addr))
			}
			c.listNodes(network, subnets)
			for _, n := range c.Nodes {
				entries = append(entries, start(n).leaseEntry())
			}
			c.listNodes(network, entries)
			for _, d := range c.checkIPv6Only(start) {
				if d.logged("lease file lacks") > 0 {
					t.Errorf("%s: the file lacks data in spite of the entries %q", d.node.Name, entries)
				}
			}
		})
	}
}

// listNodes writes the lease file of every node.
func (c *cluster) listNodes(network string, entries []string) {
	c.t.Helper()
	for _, n := range c.Nodes {
		c.writeFile(n.Path("weft.yml"), "network: "+network+"\nnodes:\n"+strings.Join(entries, ""))
	}
}

// leaseEntry returns the entry that weft prints of a daemon that is ready, and stops the daemon,
// which must have logged that the file lacks data, if the entry has some.
func (d *member) leaseEntry() string {
	d.t.Helper()
	d.awaitReady()
	status, entry := d.weft("lease-entry")
	if status != 0 {
		d.t.Fatalf("weft lease-entry: exit status %d: %s", status, entry)
	}
	lacks := d.logged("lease file lacks the data") > 0
	if strings.Contains(entry, "Data") != lacks {
		d.t.Errorf("entry %s, but logged that the file lacks data: %v", entry, lacks)
	}
	d.stop()
	return entry
}

// TestNetnsLeaseEntryWithoutLease prints the entry of a node that is not in the lease file so far.
func TestNetnsLeaseEntryWithoutLease(t *testing.T) {
	c := &cluster{Lab: lab.Start(t, lab.Options{Nodes: 1}), t: t}
	n := c.Nodes[0]
	c.writeFile(n.Path("weft.yml"), `{"network":{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}},"nodes":[]}`)
	d := c.startWith(n, "--lease-file=/run/weft.yml", "--node-name="+n.Name, "--control-socket=/run/weft/weftd.sock")
	want := fmt.Sprintf("weft: %[1]s has no lease: add subnet, subnet6 or both\n"+
		`- {"name":"%[1]s","publicIP":"%[2]v","backendData":{"PublicKey":`, n.Name, n.Addr)
	await(t, patience, "entry", func() error {
		if status, out := d.weft("lease-entry"); status != 0 || !strings.HasPrefix(out, want) {
			return fmt.Errorf("exit status %d: %s", status, out)
		}
		return nil
	})
}

// checkIPv6Only checks pods, packets of the full MTU and streams, before and after a restart of the
// daemons, and across a router with a smaller MTU if the nodes are behind one. It returns all
// daemons.
func (c *cluster) checkIPv6Only(start func(*lab.Node) *member) (all []*member) {
	c.t.Helper()
	for _, when := range []string{"first start", "restart"} {
		var ds []*member
		for _, n := range c.Nodes {
			ds = append(ds, start(n))
		}
		for _, d := range ds {
			d.awaitReady()
			d.attach()
			if env := d.env(); env.Subnet.IsValid() || !env.Subnet6.IsValid() {
				c.t.Errorf("%s: subnet.env %+v, want IPv6 only", d.node.Name, env)
			}
		}
		from, to, mtu := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0], ds[0].env().MTU
		await(c.t, patience, when+": answers", func() error {
			r, err := from.Ping(c.t.Context(), to.Addr6, lab.Ping{Size: mtu, DontFragment: true})
			if err == nil && r.Received == 0 {
				err = fmt.Errorf("none to a ping of %d bytes: %+v", mtu, r)
			}
			return err
		})
		if err := lab.CheckTCP(c.t.Context(), from.NS, to.NS, to.Addr6, 4<<20); err != nil {
			c.t.Errorf("%s: %v", when, err)
		}
		for _, d := range ds {
			d.stop()
		}
		all = append(all, ds...)
	}
	if !c.Root.HasLink("under1") {
		return all
	}
	if err := c.Root.SetMTU("under1", 1400); err != nil {
		c.t.Fatal(err)
	}
	for _, n := range c.Nodes {
		start(n).awaitReady()
	}
	from, to := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	await(c.t, patience, "stream across a router with an MTU of 1400", func() error {
		return lab.CheckTCP(c.t.Context(), from.NS, to.NS, to.Addr6, 1<<20)
	})
	return all
}

// TestNetnsFamilyWithoutAddress starts daemons on nodes without an address of the pods' family,
// which they could not publish.
func TestNetnsFamilyWithoutAddress(t *testing.T) {
	for _, test := range []struct{ name, underlay, network, want string }{
		{"IPv4 pods", "fd31::/64", clusterNetwork, "no IPv4 default route"},
		{"IPv6 pods", "172.31.0.0/24", ipv6Network(`{"Type":"udp"}`), "no IPv6 default route"},
	} {
		t.Run(test.name, func(t *testing.T) {
			underlay := []netip.Prefix{netip.MustParsePrefix(test.underlay)}
			c := newCluster(t, lab.Options{Nodes: 1, Underlay: underlay}, test.network)
			d := c.start(c.Nodes[0])
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if code, err := d.Wait(ctx); err != nil || code != 1 || d.logged(test.want) != 1 {
				t.Errorf("exit %d, %v, want 1 and %q in the log", code, err, test.want)
			}
		})
	}
}
