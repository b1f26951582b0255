package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/deploy/lab"
)

// TestNetnsRoutedUnderlay has nodes 1 and 3 on one underlay subnet and node 2 behind a
// router.
func TestNetnsRoutedUnderlay(t *testing.T) {
	c := newCluster(t, lab.Options{Nodes: 3, Underlay: []netip.Prefix{
		netip.MustParsePrefix("172.31.1.0/24"), netip.MustParsePrefix("172.31.2.0/24")}}, clusterNetwork)
	t.Run("vxlan", func(t *testing.T) {
		c.in(t).checkPaths(`{"Type":"vxlan","DirectRouting":true}`, "flannel.1", "")
	})
	t.Run("host-gw", func(t *testing.T) {
		c.in(t).checkPaths(`{"Type":"host-gw"}`, "", "is not on the link of eth0 (")
	})
}

// checkPaths starts the daemons and checks the path between each pair of nodes: direct if on-link,
// else through the tunnel device. If tunnel is empty, there must be no path, for the given reason.
func (c *cluster) checkPaths(backend, tunnel, reason string) {
	c.t.Helper()
	c.put(clusterPrefix+"/config", `{"Network":"10.5.0.0/16","Backend":`+backend+`}`)
	ds := c.ready()
	for _, d := range ds {
		d.attach() // again: the MTU depends on the backend
	}
	for _, d := range ds {
		without := 0
		for _, peer := range ds {
			switch onLink := d.node.Addr.As4()[2] == peer.node.Addr.As4()[2]; {
			case d == peer:
			case onLink:
				c.checkPath(d, peer, "eth0")
			case tunnel != "":
				c.checkPath(d, peer, tunnel)
			default:
				without++
				c.checkNoPath(d, peer, reason)
			}
		}
		d.awaitMetric(patience, "weft_nodes_unreachable", func(v float64) bool { return v == float64(without) })
	}
	for _, d := range ds {
		d.stop()
	}
}

// checkPath checks the route and the traffic.
func (c *cluster) checkPath(from, to *member, device string) {
	c.t.Helper()
	subnet := to.env().Subnet.Masked()
	await(c.t, patience, from.node.Name+" to "+to.node.Name,
		func() error { return hasRoute(from.node, device, subnet.String()) })
	a, b := from.node.Pods[0], to.node.Pods[0]
	c.awaitAnswer(patience, a, b)
	mtu := from.env().MTU
	r, err := a.Ping(c.t.Context(), b.Addr, lab.Ping{Count: 3, Size: mtu, DontFragment: true})
	if err != nil || r.Received != 3 {
		c.t.Errorf("pings of %d bytes from %s to %s: %+v, %v", mtu, a.Name, b.Name, r, err)
	}
}

// checkNoPath checks the reason in the status and that there is no route.
func (c *cluster) checkNoPath(from, to *member, reason string) {
	c.t.Helper()
	subnet := to.env().Subnet.Masked()
	await(c.t, patience, from.node.Name+" reports "+to.node.Name+" as unreachable", func() error {
		for _, n := range from.status().Nodes {
			if n.Subnet == subnet && n.Public == to.node.Addr && n.Name != "" &&
				strings.Contains(n.Unreachable, reason) {
				return nil
			}
		}
		return fmt.Errorf("nodes %+v", from.status().Nodes)
	})
	routes, err := from.node.Routes()
	if err != nil || slices.ContainsFunc(routes, func(r lab.Route) bool { return r.Dst == subnet }) {
		c.t.Errorf("%s: routes %+v, %v; want none to %s", from.node.Name, routes, err, subnet)
	}
}

// TestNetnsBackendChange compares the kernel state of each backend on a clean node with its state
// after other backends: nothing of the previous backend may be left.
func TestNetnsBackendChange(t *testing.T) {
	f := filters()[0]
	f.need(t)
	c := newCluster(t, lab.Options{}, clusterNetwork)
	clean := map[string][]string{}
	for _, backend := range []string{"udp", "host-gw", "vxlan"} {
		clean[backend] = c.tracesOf(f, backend)
		for _, n := range c.Nodes {
			if code, output := cleanUp(t, n); code != 0 {
				t.Fatalf("cleanup: exit %d: %s", code, output)
			}
		}
	}
	for _, backend := range []string{"udp", "vxlan", "host-gw", "vxlan", "udp", "host-gw", "udp"} {
		if got := c.tracesOf(f, backend); !slices.Equal(got, clean[backend]) {
			t.Errorf("%s: got\n%s\non a clean node\n%s", backend, strings.Join(got, "\n"),
				strings.Join(clean[backend], "\n"))
		}
	}
}

// TestNetnsNetworkChange starts dual-stack daemons, then single-stack ones, then with another
// network and with another backend: nothing of the previous networks may be left.
func TestNetnsNetworkChange(t *testing.T) {
	f := filters()[0]
	f.need(t)
	c := newCluster(t, lab.Options{PodsPerNode: -1, Underlay6: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}},
		clusterNetwork)
	const both = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd10:5::/48","Backend":{"Type":"vxlan"}}`
	for _, step := range []struct {
		config      string
		there, gone []string
	}{
		{both, []string{"10.5.", "fd10:5:"}, nil},
		{`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`, []string{"10.5."},
			[]string{"fd10:5:", "flannel-v6.1"}},
		{both, []string{"10.5.", "fd10:5:"}, nil},
		{`{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan"}}`, []string{"10.6."},
			[]string{"10.5.", "fd10:5:", "flannel-v6.1"}},
		{`{"Network":"10.7.0.0/16"}`, []string{"10.7."}, []string{"10.6.", "flannel.1"}},
	} {
		c.put(clusterPrefix+"/config", step.config)
		ds := c.ready()
		found := strings.Join(traces(t, c.Nodes[0], f.shows...), "\n")
		for _, want := range step.there {
			if !strings.Contains(found, want) {
				t.Errorf("%s: no %s:\n%s", step.config, want, found)
			}
		}
		for _, previous := range step.gone {
			if strings.Contains(found, previous) {
				t.Errorf("%s: left %s:\n%s", step.config, previous, found)
			}
		}
		for _, d := range ds {
			d.stop()
		}
	}
}

// ready starts the daemons of all nodes.
func (c *cluster) ready(flags ...string) []*member {
	c.t.Helper()
	var ds []*member
	for _, n := range c.Nodes {
		d := c.start(n, flags...)
		c.t.Cleanup(d.Kill)
		ds = append(ds, d)
	}
	for _, d := range ds {
		d.awaitReady()
	}
	return ds
}

// tracesOf starts the daemons with a backend, waits until pods reach each other, and returns the
// traces on the first node.
func (c *cluster) tracesOf(f filter, backend string) []string {
	c.t.Helper()
	c.put(clusterPrefix+"/config", f.network(`{"Type":"`+backend+`"}`))
	ds := c.restart("--ip-masq")
	found := traces(c.t, c.Nodes[0], f.shows...)
	for _, d := range ds {
		d.stop()
	}
	return found
}

// TestNetnsExtensionShutdown ends a daemon whose config has commands for the start and the end.
func TestNetnsExtensionShutdown(t *testing.T) {
	c := newCluster(t, lab.Options{Nodes: 1}, `{"Network":"10.5.0.0/16","Backend":{"Type":"extension",
		"PostStartupCommand":"echo $SUBNET >/run/extension",
		"ShutdownCommand":"echo end of $SUBNET >>/run/extension"}}`)
	d := c.start(c.Nodes[0])
	d.awaitReady()
	subnet := d.env().Subnet.Masked()
	d.stop()
	awaitFile(t, d.node.Path("extension"), fmt.Sprintf("%[1]v\nend of %[1]v\n", subnet))
}
