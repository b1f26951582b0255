package backend

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/ctrl"
	"weft/deploy/lab"
)

var bothFamilies = lab.Options{Underlay6: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}}

func TestNetnsVXLAN(t *testing.T) {
	c := startCluster(t, `{"Type":"vxlan"}`, bothFamilies)
	c.attach()
	a, b := c.Nodes[0], c.Nodes[1]
	c.connected(a, b)
	c.heals(a, b, deviceBreakages("flannel.1"))
	c.heals(a, b, []breakage{
		{"route deleted", deleteRoute("10.5.2.0/24")},
		{"route changed", changeRoute("10.5.2.0/24", "eth0")},
		{"neighbour deleted", func(k *ctrl.Kernel) error {
			return first(k.Apply(context.Background(),
				deletes(k, isNeighbour)))
		}},
		{"neighbour changed", func(k *ctrl.Kernel) error {
			return change(k, isNeighbour,
				func(o ctrl.Object) ctrl.Object { n := o.(ctrl.Neighbour); n.MAC = macA; return n })
		}},
		{"forwarding entry deleted", func(k *ctrl.Kernel) error {
			return first(k.Apply(context.Background(),
				deletes(k, isFDB)))
		}},
		{"forwarding entry changed", func(k *ctrl.Kernel) error {
			return change(k, isFDB,
				func(o ctrl.Object) ctrl.Object { f := o.(ctrl.FDBEntry); f.Dst = addr("172.31.0.99"); return f })
		}},
		{"MAC changed", func(k *ctrl.Kernel) error {
			return netlink.LinkSetHardwareAddr(must(netlink.LinkByName("flannel.1")), macA[:])
		}},
	})
}

// TestNetnsVXLANRestart checks that a stop keeps the forwarding state, a start changes nothing, an
// address change reaches all nodes, and cleanup removes everything.
func TestNetnsVXLANRestart(t *testing.T) {
	c := startCluster(t, `{"Type":"vxlan"}`, lab.Options{})
	c.attach()
	a, b := c.Nodes[0], c.Nodes[1]
	ctx := t.Context()
	before := c.overlay(a)
	ping, err := b.Pods[0].StartPing(ctx, a.Pods[0].Addr, lab.Ping{Count: -1, Interval: 5 * time.Millisecond})
	c.must(err)
	c.stop(0)
	if m := c.missing(a, before); len(m) > 0 {
		t.Errorf("a stop changed %q", m)
	}
	c.start(0)
	c.converge()
	if m := c.missing(a, before); len(m) > 0 {
		t.Errorf("a restart changed %q", m)
	}
	if r := ping.Stop(); r.Lost() > 0 {
		t.Errorf("a restart lost %d of %d packets", r.Lost(), r.Sent)
	}

	c.must(a.ChangeAddress(netip.MustParseAddr("172.31.0.77")))
	c.must(lab.Await(ctx, patience(2*time.Second), "the new address", func() error {
		r, err := c.report(0)
		if err == nil && r.Iface.Addr != a.Addr {
			err = errNotYet
		}
		return err
	}))
	c.converge()
	c.connected(a, b)

	c.stop(0)
	c.on(a, func(k *ctrl.Kernel) error {
		removed, err := ctrl.Cleanup(k)
		if want := []string{"device flannel.1 type vxlan"}; !slices.Equal(removed, want) {
			t.Errorf("removed %q, want %q", removed, want)
		}
		return err
	})
	if s := c.state(a); slices.ContainsFunc(s.Links, func(l ctrl.Link) bool { return ctrl.OverlayName(l.Name) }) {
		t.Errorf("left over: %v", s.Links)
	}
}

func TestNetnsHostGW(t *testing.T) {
	c := startCluster(t, `{"Type":"host-gw"}`, bothFamilies)
	c.attach()
	c.connected(c.Nodes[0], c.Nodes[1])
}

// TestNetnsHostGWRepairs uses IPv4 only: a link flap removes the IPv6 addresses of the underlay.
func TestNetnsHostGWRepairs(t *testing.T) {
	c := startCluster(t, `{"Type":"host-gw"}`, lab.Options{})
	c.attach()
	a, b := c.Nodes[0], c.Nodes[1]
	c.heals(a, b, []breakage{
		{"route deleted", deleteRoute("10.5.2.0/24")},
		{"underlay flapped", func(k *ctrl.Kernel) error {
			l := must(netlink.LinkByName("eth0"))
			if err := netlink.LinkSetDown(l); err != nil {
				return err
			}
			return netlink.LinkSetUp(l)
		}},
	})
}

// TestNetnsDirectRouting checks that nodes on the same link are reached by a route, and nodes
// behind a router by a tunnel.
func TestNetnsDirectRouting(t *testing.T) {
	c := startCluster(t, `{"Type":"vxlan","DirectRouting":true}`, lab.Options{Nodes: 3,
		Underlay: []netip.Prefix{netip.MustParsePrefix("172.31.0.0/24"), netip.MustParsePrefix("172.31.1.0/24")}})
	c.attach()
	c.connected(c.Nodes[0], c.Nodes[1])
	c.connected(c.Nodes[0], c.Nodes[2])
	via := map[netip.Prefix]string{}
	for _, r := range c.state(c.Nodes[0]).Routes {
		if r.Protocol == ctrl.RouteProtocol {
			via[r.Dst] = r.Dev
		}
	}
	if via[prefix("10.5.2.0/24")] != "flannel.1" || via[prefix("10.5.3.0/24")] != "eth0" {
		t.Errorf("routes %v", via)
	}
	// host-gw reports the far node as unreachable and removes the state of vxlan.
	c.network = `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`
	c.converge()
	s := c.state(c.Nodes[0])
	if slices.ContainsFunc(s.Links, func(l ctrl.Link) bool { return ctrl.OverlayName(l.Name) }) {
		t.Errorf("left over: %v", s.Links)
	}
	if u := c.seen[0].Unreachable; len(u) != 1 || u[0].Node != "node2" {
		t.Errorf("unreachable %v", u)
	}
	c.connected(c.Nodes[0], c.Nodes[2])
}

// TestNetnsForeignRoute checks that a foreign route in the place of a wanted one is kept and
// reported.
func TestNetnsForeignRoute(t *testing.T) {
	c := startCluster(t, `{"Type":"host-gw"}`, lab.Options{})
	a := c.Nodes[0]
	static := ctrl.Route{Dst: prefix("10.5.2.0/24"), Via: c.Root.Addr, Dev: "eth0", Protocol: unix.RTPROT_STATIC}
	c.on(a, func(k *ctrl.Kernel) error {
		return first(k.Apply(context.Background(), []ctrl.Op{{Verb: ctrl.Replace, Object: static}}))
	})
	c.must(lab.Await(t.Context(), patience(3*time.Second), "the conflict", func() error {
		r, err := c.report(0)
		if err == nil && r.Err == "" {
			err = errNotYet
		}
		return err
	}))
	if !slices.Contains(c.state(a).Routes, static) {
		t.Errorf("the foreign route is gone: %v", c.state(a).Routes)
	}
	c.on(a, func(k *ctrl.Kernel) error {
		return first(k.Apply(context.Background(), []ctrl.Op{{Verb: ctrl.Delete, Object: static}}))
	})
	c.must(lab.Await(t.Context(), patience(3*time.Second), "the repair", func() error {
		r, err := c.report(0)
		if err == nil && !r.Synced {
			err = errNotYet
		}
		return err
	}))
}

func TestNetnsIPIP(t *testing.T) {
	needLink(t, &netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}, Local: []byte{127, 0, 0, 9}}, "ipip")
	c := startCluster(t, `{"Type":"ipip"}`, lab.Options{})
	c.attach()
	a, b := c.Nodes[0], c.Nodes[1]
	c.connected(a, b)
	c.heals(a, b, deviceBreakages("flannel.ipip"))
	c.heals(a, b, []breakage{{"route deleted", deleteRoute("10.5.2.0/24")}})
}

// TestNetnsWireGuard uses WireGuard in the kernel, or in the daemon's process if the kernel has
// none.
func TestNetnsWireGuard(t *testing.T) {
	lab.SkipWithoutTUN(t)
	c := startCluster(t, `{"Type":"wireguard","PSK":"`+ctrl.Key{7}.Base64()+`","PersistentKeepaliveInterval":1}`,
		bothFamilies)
	c.attach()
	a, b := c.Nodes[0], c.Nodes[1]
	c.connected(a, b)
	c.heals(a, b, deviceBreakages("flannel-wg"))
	c.heals(a, b, []breakage{{"route deleted", deleteRoute("10.5.0.0/16")}})
	c.network = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd10:5::/48","Backend":{"Type":"wireguard","Mode":"auto"}}`
	c.converge()
	c.connected(a, b)
	if s := c.state(a); slices.ContainsFunc(s.Links, func(l ctrl.Link) bool { return l.Name == "flannel-wg-v6" }) {
		t.Errorf("left over: %v", s.Links)
	}
}

// TestNetnsUDP tests the udp backend with the packet engine, which owns the device.
func TestNetnsUDP(t *testing.T) {
	lab.SkipWithoutTUN(t)
	c := startCluster(t, `{"Type":"udp"}`, lab.Options{})
	c.attach()
	a, b := c.Nodes[0], c.Nodes[1]
	c.connected(a, b)
	c.heals(a, b, deviceBreakages("flannel0"))
	c.heals(a, b, []breakage{{"route deleted", deleteRoute("10.5.0.0/16")}})
}

// TestNetnsUDPKernel tests the udp backend carried by the kernel at both ends, then by the kernel
// at one end and the packet engine at the other, then by the engine at both.
func TestNetnsUDPKernel(t *testing.T) {
	needFOU(t)
	c := startCluster(t, `{"Type":"udp","Carrier":"kernel"}`, lab.Options{})
	c.attach()
	a, b := c.Nodes[0], c.Nodes[1]
	c.connected(a, b)
	c.heals(a, b, deviceBreakages("flannel0"))
	c.heals(a, b, []breakage{{"route deleted", deleteRoute("10.5.2.0/24")}})
	engine := `{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}`
	c.other = map[int]string{1: engine}
	c.restart(1)
	c.connected(a, b)
	if got, want := kinds(c.state(a)), kinds(c.state(b)); got != "ipip" || want != "tun" {
		t.Errorf("devices of type %q and %q", got, want)
	}
	c.network = engine
	c.restart(0)
	c.connected(a, b)
	if s := c.state(a); len(s.FOU) > 0 || kinds(s) != "tun" {
		t.Errorf("left over: %v, %v", s.FOU, s.Links)
	}
}

// kinds lists the types of the overlay devices.
func kinds(s ctrl.State) string {
	var out []string
	for _, l := range s.Links {
		if ctrl.OverlayName(l.Name) {
			out = append(out, string(l.Kind))
		}
	}
	return strings.Join(out, " ")
}

// TestNetnsExtension runs the commands for joining and leaving nodes with the variables and input
// that flannel documents. A hanging command must not delay the end of the daemon.
func TestNetnsExtension(t *testing.T) {
	c := startCluster(t, `{"Type":"extension","PreStartupCommand":"echo from $HOSTNAME node",
		"PostStartupCommand":"sh -c 'echo $SUBNET of $NETWORK >/run/post'",
		"SubnetAddCommand":"sh -c 'read x; echo \"$0 $PUBLIC_IP $x\" >>/run/added' $SUBNET",
		"SubnetRemoveCommand":"sh -c 'echo $SUBNET >>/run/removed'"}`, lab.Options{})
	read := func(name, want string) {
		t.Helper()
		c.must(lab.Await(t.Context(), patience(3*time.Second), name, func() error {
			b, err := os.ReadFile(c.Nodes[0].Path(name))
			if err == nil && string(b) != want {
				err = fmt.Errorf("%s holds %q, want %q", name, b, want)
			}
			return err
		}))
	}
	read("post", "10.5.1.0/24 of 10.5.0.0/16\n")
	read("added", "10.5.2.0/24 "+c.Nodes[1].Addr.String()+" from node\n")
	c.await(0, c.order(0, c.leases[:1]), true)
	read("removed", "10.5.2.0/24\n")
	c.await(0, c.order(0, c.leases), true)
	read("added", strings.Repeat("10.5.2.0/24 "+c.Nodes[1].Addr.String()+" from node\n", 2))
	c.network = `{"Network":"10.5.0.0/16","Backend":{"Type":"extension","SubnetAddCommand":"sh -c 'touch /run/hangs; exec sleep 3600'"}}`
	for i, n := range c.Nodes {
		c.order(i, c.leases)
		await(t, "the command that hangs", func() bool {
			_, err := os.Stat(n.Path("hangs"))
			return err == nil
		})
	}
}

// TestNetnsExtensionSamples connects pods with the commands of flannel's documentation
// (Documentation/extension.md and dist/extension-vxlan).
func TestNetnsExtensionSamples(t *testing.T) {
	t.Run("simple", func(t *testing.T) {
		c := startCluster(t, `{"Type":"extension",
			"SubnetAddCommand": "ip route add \"$SUBNET\" via \"$PUBLIC_IP\"",
			"SubnetRemoveCommand": "ip route del \"$SUBNET\" via \"$PUBLIC_IP\""}`, lab.Options{})
		c.attach()
		c.connected(c.Nodes[0], c.Nodes[1])
		c.await(0, c.order(0, c.leases[:1]), true)
		await(t, "the end of the route to a node that left", func() bool {
			return !slices.ContainsFunc(c.state(c.Nodes[0]).Routes, func(r ctrl.Route) bool {
				return r.Dst == c.leases[1].Subnet
			})
		})
	})
	t.Run("complex", func(t *testing.T) {
		c := startCluster(t, `{"Type":"extension",
			"PreStartupCommand": "export VNI=1; export IF_NAME=flannel-vxlan; `+
			`ip link del \"$IF_NAME\" 2>/dev/null; `+
			`ip link add \"$IF_NAME\" type vxlan id \"$VNI\" dstport 8472 nolearning && `+
			`ip link set mtu 1450 dev \"$IF_NAME\" && cat \"/sys/class/net/${IF_NAME}/address\"",
			"PostStartupCommand": "export IF_NAME=flannel-vxlan; `+
			`export SUBNET_IP=$(echo \"$SUBNET\" | cut -d'/' -f 1); `+
			`ip addr add \"${SUBNET_IP}/32\" dev \"$IF_NAME\" && ip link set \"$IF_NAME\" up",
			"ShutdownCommand": "export IF_NAME=flannel-vxlan; ip link del \"$IF_NAME\"",
			"SubnetAddCommand": "export SUBNET_IP=$(echo \"$SUBNET\" | cut -d'/' -f 1); `+
			`export IF_NAME=flannel-vxlan; read VTEP; `+
			`ip route add \"$SUBNET\" nexthop via \"$SUBNET_IP\" dev \"$IF_NAME\" onlink && `+
			`ip neigh replace \"$SUBNET_IP\" dev \"$IF_NAME\" lladdr \"$VTEP\" && `+
			`bridge fdb add \"$VTEP\" dev \"$IF_NAME\" self dst \"$PUBLIC_IP\""}`, lab.Options{})
		for i := range c.seen {
			c.seen[i].MTU = 1450 // that of the sample's device
		}
		c.attach()
		c.connected(c.Nodes[0], c.Nodes[1])
		c.stop(0)
		for _, l := range c.state(c.Nodes[0]).Links {
			if l.Name == "flannel-vxlan" {
				t.Error("ShutdownCommand has not deleted the device")
			}
		}
	})
}
