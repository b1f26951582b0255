package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/deploy/lab"
)

// addDevice adds a bridge without ports to a node, up and with an address.
func addDevice(t *testing.T, n *lab.Node, name, address string) {
	t.Helper()
	err := n.Do(func() error {
		l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}}
		if err := netlink.LinkAdd(l); err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
	if err := errors.Join(err, n.AddAddr(name, netip.MustParsePrefix(address))); err != nil {
		t.Fatal(err)
	}
}

// routeDefault adds an IPv4 default route by a device, without a gateway.
func routeDefault(t *testing.T, n *lab.Node, device string, metric int) {
	t.Helper()
	err := n.Do(func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Scope: unix.RT_SCOPE_LINK,
			Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Priority: metric})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// setLifetime gives a node's address an hour to live, as a DHCP client does.
func setLifetime(t *testing.T, n *lab.Node, device string, a netip.Addr) {
	t.Helper()
	err := n.Do(func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		have, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, x := range have {
			if x.IP.Equal(a.AsSlice()) {

				return netlink.AddrReplace(l, &netlink.Addr{IPNet: x.IPNet, ValidLft: 3600,
					PreferedLft: 3600, Flags: x.Flags &^ unix.IFA_F_PERMANENT, Scope: x.Scope})
			}
		}
		return fmt.Errorf("%s is not on %s", a, device)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// leaseValue returns the published lease of a daemon.
func (c *cluster) leaseValue(key string) string {
	c.t.Helper()
	have, err := c.leases()
	if err != nil {
		c.t.Fatal(err)
	}
	return have[key]
}

// awaitNote waits until the note of a daemon's interface contains text.
func (d *member) awaitNote(text string) {
	d.t.Helper()
	await(d.t, patience, "the note of the interface", func() error {
		if i := d.status().Interface; i == nil || !strings.Contains(i.Note, text) {
			return fmt.Errorf("%+v, want %q", i, text)
		}
		return nil
	})
}

// awaitLook changes the MTU of the underlay interface and waits until the daemon has followed, and
// so has seen every earlier change.
func (d *member) awaitLook(mtu int) {
	d.t.Helper()
	if err := d.node.SetMTU("eth0", mtu); err != nil {
		d.t.Fatal(err)
	}
	await(d.t, patience, "the MTU", func() error {
		if i := d.status().Interface; i == nil || i.MTU != mtu {
			return fmt.Errorf("%+v, want %d", i, mtu)
		}
		return nil
	})
}

// TestNetnsVirtualIP adds a virtual IP beside an address by DHCP, restarts the daemon and moves the
// virtual IP to another node.
func TestNetnsVirtualIP(t *testing.T) {
	for _, backend := range []string{"udp", "vxlan"} {
		t.Run(backend, func(t *testing.T) {
			c := newCluster(t, lab.Options{}, `{"Network":"10.5.0.0/16","Backend":{"Type":"`+backend+`"}}`)
			a, b := c.Nodes[0], c.Nodes[1]
			setLifetime(t, a, "eth0", a.Addr)
			if err := a.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), c.Root.Addr, "eth0"); err != nil {
				t.Fatal(err)
			}
			ds := c.up()
			key := ds[0].key()
			value := c.leaseValue(key)
			stays := func(when string) {
				t.Helper()
				if got := c.leaseValue(key); got != value {
					t.Errorf("%s: lease %s, want %s", when, got, value)
				}
				if i := ds[0].status().Interface; i.Address != a.Addr || i.Note != "" {
					t.Errorf("%s: interface %+v, want %s", when, i, a.Addr)
				}
				c.awaitMesh()
			}
			vip := netip.MustParsePrefix("172.31.0.100/32")
			ping, check := c.steadyPing(a.Pods[0], b.Pods[0])
			if err := a.AddAddr("eth0", vip); err != nil {
				t.Fatal(err)
			}
			ds[0].awaitLook(1490)
			stays("virtual IP added")
			c.awaitAnswers(patience, ping, 20)
			check(20) // the device's MTU changes
			ds[0].stop()
			ds[0] = c.start(a)
			ds[0].awaitReady()
			stays("restarted with the virtual IP")
			if err := errors.Join(a.DeleteAddr("eth0", vip), b.AddAddr("eth0", vip)); err != nil {
				t.Fatal(err)
			}
			ds[0].awaitLook(1480)
			ds[1].awaitLook(1480)
			stays("virtual IP moved")
			if i := ds[1].status().Interface; i.Address != b.Addr {
				t.Errorf("interface of the other node: %+v, want %s", i, b.Addr)
			}
		})
	}
}

// TestNetnsVirtualIPv6 adds an IPv6 virtual IP, which the kernel lists first.
func TestNetnsVirtualIPv6(t *testing.T) {
	o := lab.Options{Underlay6: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}}
	c := newCluster(t, o, `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd10:5::/56"}`)
	a := c.Nodes[0]
	var ds []*member
	for _, n := range c.Nodes {
		ds = append(ds, c.start(n))
	}
	for _, d := range ds {
		d.awaitReady()
	}
	if err := a.AddAddr("eth0", netip.MustParsePrefix("fd31::100/128")); err != nil {
		t.Fatal(err)
	}
	ds[0].awaitLook(1490)
	for _, when := range []string{"added", "restarted"} {
		if i := ds[0].status().Interface; i.Address6 != a.Addr6 || i.Public6 != a.Addr6 {
			t.Errorf("%s: interface %+v, want %s", when, i, a.Addr6)
		}
		ds[0].stop()
		ds[0] = c.start(a)
		ds[0].awaitReady()
	}
}

// TestNetnsOtherDefaultRoute adds the default route of a VPN, and the one of a device with a
// link-local address while a DHCP client renews the address of the underlay.
func TestNetnsOtherDefaultRoute(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.up()
	a, b := c.Nodes[0], c.Nodes[1]
	key := ds[0].key()
	value := c.leaseValue(key)
	stays := func(when string) {
		t.Helper()
		if got := c.leaseValue(key); got != value {
			t.Errorf("%s: lease %s, want %s", when, got, value)
		}
		ds[0].awaitReady()
	}
	ping, check := c.steadyPing(a.Pods[0], b.Pods[0])
	addDevice(t, a, "vpn0", "10.99.0.2/32")
	if err := a.DeleteRoute(netip.MustParsePrefix("0.0.0.0/0")); err != nil {
		t.Fatal(err)
	}
	routeDefault(t, a, "vpn0", 1)
	ds[0].awaitNote("vpn0 10.99.0.2")
	c.awaitAnswers(patience, ping, 20)
	check(0)
	stays("VPN")
	if err := a.DeleteLink("vpn0"); err != nil {
		t.Fatal(err)
	}
	ds[0].awaitNote("no IPv4 default route")

	addDevice(t, a, "zero0", "169.254.7.7/16")
	routeDefault(t, a, "zero0", 205)
	ds[0].awaitNote("zero0 169.254.7.7")
	stays("link-local default route")
	ping, _ = c.steadyPing(b.Pods[0], a.Pods[0])
	address := netip.PrefixFrom(a.Addr, 24)
	if err := a.DeleteAddr("eth0", address); err != nil {
		t.Fatal(err)
	}
	await(t, patience, "lost pings", func() error {
		if n := ping.Result().Lost(); n < 200 { // in a second
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	err := errors.Join(a.AddAddr("eth0", address),
		a.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), c.Root.Addr, "eth0"))
	if err != nil {
		t.Fatal(err)
	}
	c.awaitMesh()
	stays("address renewed")
	if n := ds[0].logged("interface to the other nodes changed"); n > 0 {
		t.Errorf("interface changed %d times", n)
	}
}

// TestNetnsLoopbackUnderlay uses nodes whose addresses are on lo, as on hosts that take part in
// routing.
func TestNetnsLoopbackUnderlay(t *testing.T) {
	for _, backend := range []string{"udp", "vxlan"} {
		t.Run(backend, func(t *testing.T) {
			c := newCluster(t, lab.Options{}, `{"Network":"10.5.0.0/16","Backend":{"Type":"`+backend+`"}}`)
			routers := []netip.Prefix{netip.MustParsePrefix("10.10.10.1/32"), netip.MustParsePrefix("10.10.10.2/32")}
			for i, n := range c.Nodes {
				err := errors.Join(n.AddAddr("lo", routers[i]), n.SetMTU("eth0", 1480),
					n.AddRoute(routers[1-i], c.Nodes[1-i].Addr, "eth0"))
				if err != nil {
					t.Fatal(err)
				}
			}
			ds := c.up("--iface=lo")
			for i, d := range ds {
				if got := d.status().Interface; got.Name != "lo" || got.Public != routers[i].Addr() || got.MTU != 1480 {
					t.Errorf("%s: interface %+v", d.node.Name, got)
				}
			}
			r, err := c.Nodes[0].Pods[0].Ping(t.Context(), c.Nodes[1].Pods[0].Addr,
				lab.Ping{Count: 3, Size: ds[0].env().MTU, DontFragment: true})
			if err != nil || r.Received != 3 {
				t.Errorf("pings of full size: %+v, %v", r, err)
			}
		})
	}
}

// TestNetnsCanReachItself passes the address of one node to the daemons of all.
func TestNetnsCanReachItself(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.up("--iface-can-reach=" + c.Nodes[0].Addr.String())
	for _, d := range ds {
		if got := d.status().Interface; got.Name != "eth0" || got.Address != d.node.Addr {
			t.Errorf("%s: interface %+v", d.node.Name, got)
		}
	}
}
