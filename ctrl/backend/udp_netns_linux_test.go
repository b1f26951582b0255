package backend

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weft/ctrl"
	"weft/ctrl/underlay"
	"weft/deploy/lab"
	"weft/lease"
)

// rig is a kernel with a running reconciler.
type rig struct {
	t *testing.T
	k *ctrl.Kernel
	r *ctrl.Reconciler
}

func newRig(t *testing.T) *rig {
	t.Helper()
	k, err := ctrl.OpenKernel(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	r := ctrl.NewReconciler(k, ctrl.ReconcilerOptions{Resync: time.Minute}) // repairs must come from notifications
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		if err := r.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return &rig{t: t, k: k, r: r}
}

// eventually waits for ok for at most two seconds.
func (g *rig) eventually(what string, ok func() bool) time.Duration {
	g.t.Helper()
	start := time.Now()
	for time.Since(start) < 2*time.Second {
		if ok() {
			return time.Since(start)
		}
		time.Sleep(2 * time.Millisecond)
	}
	g.t.Fatalf("%s: not after %v; status %+v", what, time.Since(start), g.r.Status())
	return 0
}

// inPlace reports whether the kernel has the wanted state.
func (g *rig) inPlace(want ctrl.State) bool {
	have, err := g.k.Read(func(string) bool { return true })
	if err != nil {
		g.t.Fatal(err)
	}
	ops, err := difference(have, want)
	return err == nil && len(ops) == 0
}

func (g *rig) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) link(name string) netlink.Link {
	g.t.Helper()
	l, err := netlink.LinkByName(name)
	g.must(err)
	return l
}

func (g *rig) addTUN(name string) {
	g.t.Helper()
	a := netlink.NewLinkAttrs()
	a.Name = name
	g.must(netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: a, Mode: netlink.TUNTAP_MODE_TUN, Flags: netlink.TUNTAP_NO_PI}))
}

func testUDP(t *testing.T) (Backend, lease.Lease) {
	t.Helper()
	b, err := newUDP(lease.Network{Network: netip.MustParsePrefix("10.5.0.0/16"),
		IPv6Network: netip.MustParsePrefix("fd10:5::/48")},
		LocalNode{Iface: underlay.Iface{Name: "u0", MTU: 1500}, Device: "flannel0"})
	if err != nil {
		t.Fatal(err)
	}
	return b, lease.Lease{Subnet: netip.MustParsePrefix("10.5.77.0/24"),
		Subnet6: netip.MustParsePrefix("fd10:5:0:77::/64")}
}

// TestNetnsUDPRepairs changes each part of the udp backend's kernel state and waits for the repair.
func TestNetnsUDPRepairs(t *testing.T) {
	lab.SkipWithoutTUN(t)
	g := newRig(t)
	b, self := testUDP(t)
	want := b.Plan(self, nil)
	g.r.Set(want)
	g.eventually("waiting for the device", func() bool {
		return slices.Equal(g.r.Status().Waiting,
			[]string{"flannel0"})
	})

	g.addTUN("flannel0")
	g.eventually("first programming", func() bool { return g.inPlace(want) && g.r.Status().Synced })

	route := func() *netlink.Route {
		return &netlink.Route{LinkIndex: g.link("flannel0").Attrs().Index, Dst: ipNet(want.Routes[0].Dst)}
	}
	breaks := []struct {
		name string
		do   func() error
	}{
		{"device down", func() error { return netlink.LinkSetDown(g.link("flannel0")) }},
		{"device recreated", func() error {
			err := netlink.LinkDel(g.link("flannel0"))
			g.addTUN("flannel0")
			return err
		}},
		{"MTU changed", func() error { return netlink.LinkSetMTU(g.link("flannel0"), 1400) }},
		{"queue length changed", func() error { return netlink.LinkSetTxQLen(g.link("flannel0"), 500) }},
		{"route deleted", func() error { return netlink.RouteDel(route()) }},
		{"address deleted", func() error {
			return netlink.AddrDel(g.link("flannel0"), &netlink.Addr{IPNet: ipNet(want.Addrs[0].Prefix)})
		}},
		{"address in the network added", func() error {
			return netlink.AddrAdd(g.link("flannel0"),
				&netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("10.5.9.9/32"))})
		}},
		{"own route added", func() error {
			return netlink.RouteAdd(&netlink.Route{LinkIndex: g.link("flannel0").Attrs().Index,
				Dst: ipNet(netip.MustParsePrefix("10.5.9.0/24")), Protocol: ctrl.RouteProtocol})
		}},
	}
	for _, x := range breaks {
		before := g.r.Status().Repairs
		g.must(x.do())
		took := g.eventually(x.name, func() bool { return g.r.Status().Repairs > before && g.inPlace(want) })
		t.Logf("%s: repaired after %v", x.name, took.Round(time.Millisecond))
		if took > time.Second {
			t.Errorf("%s: repaired only after %v", x.name, took)
		}
	}
}
