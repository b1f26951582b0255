package ctrl

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/deploy/lab"
)

// must is for lookups that cannot fail in a working namespace.
func must(l netlink.Link, err error) netlink.Link {
	if err != nil {
		panic(err)
	}
	return l
}

// open opens the kernel of this namespace.
func open(t *testing.T) *Kernel {
	t.Helper()
	k, err := OpenKernel(nil)
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
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(prefix(a)), Flags: unix.IFA_F_NODAD}); err != nil {
			return nil, err
		}
	}
	return l, netlink.LinkSetUp(l)
}

// TestNetnsApplyErrors checks that each operation of a batch has its own error, with the kernel's
// text.
func TestNetnsApplyErrors(t *testing.T) {
	addBridge(t, "under0", "172.20.0.1/24")
	k := open(t)
	var ops []Op
	bad := map[int]string{}
	for i := range 3 * batchSize {
		r := Route{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24),
			Via: addr("172.20.0.2"), Dev: "under0", Protocol: RouteProtocol}
		switch i {
		case 0, 200, 3*batchSize - 1:
			r.Via, bad[i] = addr("172.99.0.1"), "Nexthop has invalid gateway"
		case 5:
			r.Dev, bad[i] = "none0", `device "none0": no such device`
		}
		ops = append(ops, Op{Replace, r})
	}
	for i, err := range k.Apply(context.Background(), ops) {
		switch want := bad[i]; {
		case want == "" && err != nil:
			t.Errorf("operation %d: %v", i, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), ops[i].String())):
			t.Errorf("operation %d: got %v, want %q", i, err, want)
		}
	}
	s, err := k.Read(func(string) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	ours := 0
	for i := range ops {
		ops[i].Verb = Delete
		r, _ := ops[i].Object.(Route)
		r.Dev = "under0"
		ops[i].Object = r
		if slices.Contains(s.Routes, r) {
			ours++
		}
	}
	if want := len(ops) - len(bad); ours != want {
		t.Errorf("%d routes are there, want %d", ours, want)
	}
	// Deleting missing objects succeeds, also repeatedly.
	for range 2 {
		if err := errors.Join(k.Apply(context.Background(), ops)...); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if err := errors.Join(k.Apply(context.Background(),
		[]Op{{Delete, Link{Name: "none0"}}, {Delete, Addr{"under0", prefix("172.20.0.9/32")}}})...); err != nil {
		t.Errorf("delete what is not there: %v", err)
	}
	if errs := k.Apply(context.Background(), []Op{{Create, Link{Name: "x0", Kind: "strange"}}}); !errors.Is(errs[0],
		errors.ErrUnsupported) {
		t.Errorf("a device of a strange type: %v", errs)
	}
	if errs := k.Apply(context.Background(), []Op{{Create,
		vx(func(l *Link) { l.VXLAN.Parent = "none0" })}}); errs[0] == nil ||
		!strings.Contains(errs[0].Error(), "underlay device none0") {
		t.Errorf("a VXLAN on nothing: %v", errs)
	}
}

// TestNetnsLateReplies checks that replies to an earlier message that timed out are ignored.
func TestNetnsLateReplies(t *testing.T) {
	addBridge(t, "under0", "172.20.0.1/24")
	k := open(t)
	bad := Route{Dst: prefix("10.9.0.0/24"), Via: addr("172.99.0.1"), Dev: "under0", Protocol: RouteProtocol}
	good := bad
	good.Via = addr("172.20.0.2")
	index := must(netlink.LinkByName("under0")).Attrs().Index
	for range 2 {
		k.seq++
		req := request(Op{Replace, bad}, index)
		req.Seq = k.seq
		if err := unix.Sendto(k.batch.GetFd(), req.Serialize(), 0,
			&unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			t.Fatal(err)
		}
	}
	last := k.seq
	errs := k.Apply(context.Background(), []Op{{Replace, good}, {Replace, bad}, {Delete, good}})
	if errs[0] != nil || errs[1] == nil || errs[2] != nil {
		t.Errorf("got %v", errs)
	}
	if k.seq != last+4 {
		t.Errorf("%d numbers used for 3 operations and the end", k.seq-last)
	}
}

// TestNetnsReadBack checks that applied objects are read back unchanged, for each kind that the
// kernel has.
func TestNetnsReadBack(t *testing.T) {
	addBridge(t, "eth0", "172.31.0.1/24", "fd31::1/64")
	k := open(t)
	want := vxlanWant()
	want.Routes = append(want.Routes,
		Route{Dst: prefix("10.5.9.0/24"), Kind: Blackhole, Metric: 77, Protocol: RouteProtocol},
		Route{Dst: prefix("fd10:5:0:9::/64"), Kind: Blackhole, Metric: 77, Protocol: RouteProtocol},
		Route{Dst: prefix("fd10:5:0:2::/64"), Via: addr("fd31::2"), Dev: "eth0", Protocol: RouteProtocol},
		Route{Dst: prefix("10.5.8.0/24"), Dev: "eth0", Scope: ScopeLink, Protocol: RouteProtocol},
		Route{Dst: prefix("10.5.7.0/24"), Via: addr("172.31.0.7"), Dev: "eth0", Scope: 17,
			Protocol: RouteProtocol})
	want.Neighbours = append(want.Neighbours, Neighbour{"flannel.1", addr("fd10:5:0:2::"), macB})
	t.Cleanup(func() {
		if removed, err := Cleanup(k); err != nil || len(removed) == 0 {
			t.Errorf("removed %q, %v", removed, err)
		}
	})
	if err := ApplyOnce(k, want); err != nil {
		t.Fatal(err)
	}
	have, err := k.Read(OverlayName)
	if err != nil {
		t.Fatal(err)
	}
	if c := diff(have, want); len(c.ops) > 0 || len(c.conflicts) > 0 || len(c.waiting) > 0 {
		t.Errorf("applied, yet %q, %q, %q", texts(c.ops), c.conflicts, c.waiting)
	}
	// A route with several next hops reads as several routes.
	if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(prefix("10.77.0.0/24")), MultiPath: []*netlink.NexthopInfo{
		{LinkIndex: must(netlink.LinkByName("eth0")).Attrs().Index, Gw: addr("172.31.0.7").AsSlice()},
		{LinkIndex: must(netlink.LinkByName("eth0")).Attrs().Index, Gw: addr("172.31.0.8").AsSlice()},
	}}); err != nil {
		t.Fatal(err)
	}
	have, err = k.Read(OverlayName)
	if err != nil {
		t.Fatal(err)
	}
	var via []string
	for _, r := range have.Routes {
		if r.Dst == prefix("10.77.0.0/24") {
			via = append(via, r.Via.String()+" "+r.Dev)
		}
	}
	if want := []string{"172.31.0.7 eth0", "172.31.0.8 eth0"}; !slices.Equal(via, want) {
		t.Errorf("next hops %q, want %q", via, want)
	}
}

// ownRoute returns the route to a prefix with Weft's protocol.
func ownRoute(k *Kernel, dst string) (Route, error) {
	s, err := k.Read(func(string) bool { return false })
	if err != nil {
		return Route{}, err
	}
	for _, r := range s.Routes {
		if r.Dst == prefix(dst) && r.Protocol == RouteProtocol {
			return r, nil
		}
	}
	return Route{}, errors.New("no own route to " + dst)
}

// TestNetnsRejectRoutes checks that foreign routes that reject packets are kept and reported, in
// each family, and that those with Weft's protocol are deleted.
func TestNetnsRejectRoutes(t *testing.T) {
	addBridge(t, "eth0", "172.31.0.1/24", "fd31::1/64")
	k := open(t)
	for _, dst := range []netip.Prefix{prefix("10.5.2.0/24"), prefix("fd10:5:0:2::/64")} {
		via := addr("172.31.0.2")
		if dst.Addr().Is6() {
			via = addr("fd31::2")
		}
		want := State{Networks: nets, Routes: []Route{{Dst: dst, Via: via, Dev: "eth0", Protocol: RouteProtocol}}}
		for typ, kind := range map[int]RouteKind{unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit",
			unix.RTN_THROW: "throw"} {
			r := &netlink.Route{Dst: ipNet(dst), Type: typ, Protocol: protocolBoot}
			if err := netlink.RouteAdd(r); err != nil {
				t.Fatal(err)
			}
			if err := ApplyOnce(k, want); err == nil ||
				!strings.Contains(err.Error(), "not owned by this daemon: route "+string(kind)+" "+dst.String()) {
				t.Errorf("%s %s: got %v", kind, dst, err)
			}
			if err := netlink.RouteDel(r); err != nil {
				t.Errorf("%s %s is gone: %v", kind, dst, err)
			}
			r.Protocol = RouteProtocol
			if err := netlink.RouteAdd(r); err != nil {
				t.Fatal(err)
			}
			removed, err := Cleanup(k)
			if left, _ := ownRoute(k, dst.String()); err != nil || len(removed) != 1 || left != (Route{}) {
				t.Errorf("%s %s: removed %q, %v, left %v", kind, dst, removed, err, left)
			}
		}
	}
}

// TestNetnsWatchOverflow checks that lost messages (ENOBUFS) cause a notification.
func TestNetnsWatchOverflow(t *testing.T) {
	l := addBridge(t, "br7")
	k := open(t)
	var notified atomic.Int32
	seen, release := make(chan struct{}), make(chan struct{})
	relevant := func(Event) bool { // reject all, so that only the overflow notifies
		select {
		case seen <- struct{}{}:
			<-release
		default:
		}
		return false
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := k.Watch(ctx, relevant, func() { notified.Add(1) }); !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
	await(t, "the first notification", func() bool { return notified.Load() == 1 })
	change := func(n int) {
		for i := range n {
			if err := netlink.LinkSetMTU(l, 1400+i%2); err != nil {
				t.Fatal(err)
			}
		}
	}
	change(1)
	<-seen
	change(2000) // about 1.5 KiB each, into a buffer of 208 KiB that is not drained
	close(release)
	await(t, "the notification of the overflow", func() bool { return notified.Load() == 2 })
	cancel()
	wg.Wait()
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

// TestNetnsRouteMatch looks up more addresses than fit one message, with and without a route.
func TestNetnsRouteMatch(t *testing.T) {
	addBridge(t, "eth0", "172.31.0.1/24", "fd31::1/64")
	k := open(t)
	own, own6 := prefix("10.5.0.0/17"), prefix("fd10:5::/64")
	want := State{Networks: nets, Routes: []Route{
		{Dst: own, Via: addr("172.31.0.2"), Dev: "eth0", Protocol: RouteProtocol},
		{Dst: own6, Via: addr("fd31::2"), Dev: "eth0", Protocol: RouteProtocol}}}
	if err := ApplyOnce(k, want); err != nil {
		t.Fatal(err)
	}
	m, err := k.RouteMatcher()
	if err != nil {
		t.Fatal(err)
	}
	queries := []RouteQuery{
		{Dst: addr("10.5.1.1"), Src: addr("203.0.113.9")}, // not of this host
		{Dst: addr("fd10:5::1")},
		{Dst: addr("172.31.0.1")},
		{}, // no address
	}
	for i := range 2 * batchSize {
		a := netip.AddrFrom4([4]byte{10, 5, byte(i), 1})
		queries = append(queries, RouteQuery{Dst: a, Src: addr("172.31.0.1")})
	}
	matches := m.Match(queries)
	route := RouteMatch{Dst: own, Via: addr("172.31.0.2"), Dev: "eth0", Protocol: RouteProtocol,
		Table: unix.RT_TABLE_MAIN}
	route6 := route
	route6.Dst, route6.Via = own6, addr("fd31::2")
	for i, r := range matches {
		switch q := queries[i]; {
		case i == 1:
			if r != route6 {
				t.Errorf("%v: %+v, want %+v", q, r, route6)
			}
		case i == 2:
			if r.Err != nil || !r.Local || r.Dst != HostPrefix(q.Dst) {
				t.Errorf("%v: %+v, want a local route", q, r)
			}
		case own.Contains(q.Dst):
			if r != route {
				t.Errorf("%v: %+v, want %+v", q, r, route)
			}
		case r.Err == nil:
			t.Errorf("%v: %+v, want an error", q, r)
		}
	}
}

// BenchmarkNetnsRouteMatch looks up two addresses per node.
func BenchmarkNetnsRouteMatch(b *testing.B) {
	k, err := OpenKernel(nil)
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	m, err := k.RouteMatcher()
	if err != nil {
		b.Fatal(err)
	}
	queries := make([]RouteQuery, 512)
	for i := range queries {
		queries[i] = RouteQuery{Dst: netip.AddrFrom4([4]byte{127, 5, byte(i >> 8), byte(i)})}
	}
	for b.Loop() {
		m.Match(queries)
	}
}
