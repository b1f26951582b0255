package underlay

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/ctrl"
	"weft/deploy/lab"
)

// open opens the kernel of this namespace.
func open(t *testing.T) *ctrl.Kernel {
	t.Helper()
	k, err := ctrl.OpenKernel(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// addBridge creates a device that is up and has addresses, and deletes it after the test.
func addBridge(t *testing.T, name string, addrs ...string) netlink.Link {
	t.Helper()
	l, err := bridge(name, addrs...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			t.Error(err)
		}
	})
	return l
}

// bridge creates a bridge without ports, as every tested kernel has bridges.
func bridge(name string, addrs ...string) (netlink.Link, error) {
	l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}}
	if err := netlink.LinkAdd(l); err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(a), Flags: unix.IFA_F_NODAD}); err != nil {
			return nil, err
		}
	}
	return l, netlink.LinkSetUp(l)
}

// slowness is the factor by which the machine is slower than usual (WEFT_TEST_SLOW, for emulated
// machines).
func slowness() time.Duration {
	n, err := strconv.Atoi(os.Getenv("WEFT_TEST_SLOW"))
	if err != nil {
		return 1
	}
	return time.Duration(max(n, 1))
}

// await waits until ok returns true.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	err := lab.Await(t.Context(), 5*time.Second*slowness(), what, func() error {
		if !ok() {
			return errors.New("condition not met")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ipNet converts a prefix, keeping the host bits.
func ipNet(s string) *net.IPNet {
	p := prefix(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// none returns no interface in use.
func none() Iface { return Iface{} }

// TestNetnsWatch checks that changes of address, MTU and on-link routes are reported.
func TestNetnsWatch(t *testing.T) {
	l := addBridge(t, "wan0", "192.0.2.1/24")
	var mu sync.Mutex
	var seen []Iface
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		err := Watch(ctx, Options{IPv4: true, Iface: []string{"wan0"}}, none, func(i Iface, err error) {
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			seen = append(seen, i)
			mu.Unlock()
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
	last := func() Iface {
		mu.Lock()
		defer mu.Unlock()
		if len(seen) == 0 {
			return Iface{}
		}
		return seen[len(seen)-1]
	}
	await(t, "the choice", func() bool { return last().Addr == addr("192.0.2.1") })
	if got := last(); got.Name != "wan0" || got.Kind != "bridge" || got.MTU != 1500 ||
		!got.OnLink.Contains(addr("192.0.2.200")) {
		t.Errorf("got %+v", got)
	}
	for _, err := range []error{
		netlink.AddrDel(l, &netlink.Addr{IPNet: ipNet("192.0.2.1/24")}),
		netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet("198.51.100.7/24")}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the new address", func() bool { return last().Addr == addr("198.51.100.7") })
	if err := netlink.LinkSetMTU(l, 1400); err != nil {
		t.Fatal(err)
	}
	await(t, "the new MTU", func() bool { return last().MTU == 1400 })
	if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet("198.51.100.9/32"),
		Gw: addr("198.51.100.1").AsSlice()}); err != nil {
		t.Fatal(err)
	}
	await(t, "the peer that is by a gateway now", func() bool { return !last().OnLink.Contains(addr("198.51.100.9")) })
	cancel()
	wg.Wait()
}

// TestNetnsChoose uses the kernel's default route, its route to an address and its order of
// addresses.
func TestNetnsChoose(t *testing.T) {
	addBridge(t, "wan0", "192.0.2.1/24", "2001:db8::1/64")
	addBridge(t, "wan1", "198.51.100.7/24")
	k := open(t)
	if err := errors.Join(k.Apply(context.Background(), []ctrl.Op{
		{Verb: ctrl.Replace, Object: ctrl.Route{Dst: prefix("0.0.0.0/0"), Via: addr("198.51.100.1"), Dev: "wan1",
			Metric: 50}},
		{Verb: ctrl.Replace, Object: ctrl.Route{Dst: prefix("0.0.0.0/0"), Via: addr("192.0.2.254"), Dev: "wan0",
			Metric: 10}},
		{Verb: ctrl.Replace, Object: ctrl.Route{Dst: prefix("::/0"), Via: addr("2001:db8::2"), Dev: "wan0"}},
	})...); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{IPv4: true}, "wan0 192.0.2.1"},
		{Options{IPv4: true, IPv6: true}, "wan0 192.0.2.1 2001:db8::1"},
		{Options{IPv4: true, CanReach: addr("198.51.100.99")}, "wan1 198.51.100.7"},
		{Options{IPv4: true, PublicIP: addr("198.51.100.7")}, "wan1 198.51.100.7"},
	} {
		i, err := Choose(t.Context(), k, tt.o, Iface{})
		if err != nil {
			t.Errorf("%+v: %v", tt.o, err)
			continue
		}
		got := i.Name + " " + i.Addr.String()
		if i.Addr6.IsValid() {
			got += " " + i.Addr6.String()
		}
		if got != tt.want {
			t.Errorf("%+v: got %s, want %s", tt.o, got, tt.want)
		}
	}
	if _, err := Choose(t.Context(), k, Options{IPv4: true, Iface: []string{"nope0"}}, Iface{}); err == nil ||
		!strings.Contains(err.Error(), "wan1 198.51.100.7") {
		t.Errorf("got %v", err)
	}
}

// TestNetnsOnLink compares OnLink with the routes that the kernel chooses.
func TestNetnsOnLink(t *testing.T) {
	addBridge(t, "wan0", "192.0.2.1/24")
	addBridge(t, "wan1", "198.51.100.7/24")
	k := open(t)
	if err := errors.Join(k.Apply(context.Background(), []ctrl.Op{
		{Verb: ctrl.Replace, Object: ctrl.Route{Dst: prefix("192.0.2.9/32"), Via: addr("192.0.2.254"), Dev: "wan0"}},
		{Verb: ctrl.Replace, Object: ctrl.Route{Dst: prefix("192.0.2.16/28"), Via: addr("192.0.2.254"), Dev: "wan0"}},
		{Verb: ctrl.Replace, Object: ctrl.Route{Dst: prefix("192.0.2.17/32"), Dev: "wan0", Scope: ctrl.ScopeLink}},
		{Verb: ctrl.Replace, Object: ctrl.Route{Dst: prefix("192.0.2.40/32"), Dev: "wan1", Scope: ctrl.ScopeLink}},
		{Verb: ctrl.Replace, Object: ctrl.Route{Dst: prefix("203.0.113.0/24"), Via: addr("192.0.2.254"), Dev: "wan0"}},
	})...); err != nil {
		t.Fatal(err)
	}
	i, err := Choose(t.Context(), k, Options{IPv4: true, Iface: []string{"wan0"}}, Iface{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"192.0.2.8", "192.0.2.9", "192.0.2.10", "192.0.2.16", "192.0.2.17", "192.0.2.18",
		"192.0.2.32", "192.0.2.40", "203.0.113.1", "198.51.100.9"} {
		rs, err := netlink.RouteGet(addr(s).AsSlice())
		if err != nil {
			t.Fatal(err)
		}
		if want := rs[0].Gw == nil && rs[0].LinkIndex == i.Index; i.OnLink.Contains(addr(s)) != want {
			t.Errorf("%s is on the link: %v; the kernel's route is %v", s, !want, rs[0])
		}
	}
}

// TestNetnsDuplicateAddress starts with a tentative address, and with one that another host has.
func TestNetnsDuplicateAddress(t *testing.T) {
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: "dad0", TxQLen: -1})
	veth.PeerName = "dad1"
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Error(err)
		}
	})
	peer, err := netlink.LinkByName("dad1")
	if err != nil {
		t.Fatal(err)
	}
	duplicate := ipNet("fd31::9/64")
	for _, err := range []error{
		netlink.AddrAdd(peer, &netlink.Addr{IPNet: duplicate, Flags: unix.IFA_F_NODAD}),
		netlink.LinkSetUp(peer), netlink.LinkSetUp(veth),
		netlink.AddrAdd(veth, &netlink.Addr{IPNet: ipNet("fd31::2/64")}),
		netlink.AddrAdd(veth, &netlink.Addr{IPNet: duplicate}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	k := open(t)
	o := Options{IPv6: true, Iface: []string{"dad0"}}
	i, err := Choose(t.Context(), k, o, Iface{})
	if err != nil || i.Addr6 != addr("fd31::2") {
		t.Errorf("got %+v, %v", i, err)
	}
	h, err := read(k)
	if err != nil {
		t.Fatal(err)
	}
	if a, _ := h.find("dad0", addr("fd31::2")); a.Tentative {
		t.Error("chosen while tentative")
	}
	await(t, "the duplicate is detected", func() bool {
		h, err := read(k)
		a, _ := h.find("dad0", addr("fd31::9"))
		return err == nil && a.Duplicate
	})
	if err := netlink.AddrDel(veth, &netlink.Addr{IPNet: ipNet("fd31::2/64")}); err != nil {
		t.Fatal(err)
	}
	if h, err = read(k); err != nil {
		t.Fatal(err)
	}
	if i, err := choose(o, h, k.RouteTo, Iface{}); err != nil || !i.Addr6.IsLinkLocalUnicast() {
		t.Errorf("with the duplicate alone: %+v, %v", i, err)
	}
}
