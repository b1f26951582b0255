package ctrl

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"weft/deploy/lab"
	"weft/lease"
)

// open gives a kernel of this namespace.
func open(t *testing.T) *Kernel {
	t.Helper()
	k, err := OpenKernel()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// addBridge makes a device that is up, with addresses, for the time of the test.
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

// bridge makes an empty bridge, which is the plainest device that every kernel of ours has.
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

// TestNetnsApplyErrors: in a batch, each operation has its own fate, told in the kernel's words.
func TestNetnsApplyErrors(t *testing.T) {
	addBridge(t, "under0", "172.20.0.1/24")
	k := open(t)
	var ops []op
	bad := map[int]string{}
	for i := range 3 * bulkSize {
		r := Route{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), Via: addr("172.20.0.2"), Dev: "under0", Protocol: RouteProtocol}
		switch i {
		case 0, 200, 3*bulkSize - 1:
			r.Via, bad[i] = addr("172.99.0.1"), "Nexthop has invalid gateway"
		case 5:
			r.Dev, bad[i] = "none0", "Link not found"
		}
		ops = append(ops, op{doReplace, r})
	}
	for i, err := range k.apply(context.Background(), ops) {
		switch want := bad[i]; {
		case want == "" && err != nil:
			t.Errorf("operation %d: %v", i, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), ops[i].String())):
			t.Errorf("operation %d: got %v, want %q", i, err, want)
		}
	}
	s, err := k.read(func(string) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	ours := 0
	for i := range ops {
		ops[i].verb = doDelete
		r, _ := ops[i].object.(Route)
		r.Dev = "under0"
		ops[i].object = r
		if slices.Contains(s.Routes, r) {
			ours++
		}
	}
	if want := len(ops) - len(bad); ours != want {
		t.Errorf("%d routes are there, want %d", ours, want)
	}
	// Deleting all, also what never was, is fine, and so is doing it again.
	for range 2 {
		if err := errors.Join(k.apply(context.Background(), ops)...); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if err := errors.Join(k.apply(context.Background(), []op{{doDelete, Link{Name: "none0"}}, {doDelete, Addr{"under0", prefix("172.20.0.9/32")}}})...); err != nil {
		t.Errorf("delete what is not there: %v", err)
	}
	if errs := k.apply(context.Background(), []op{{doCreate, Link{Name: "x0", Kind: "strange"}}}); !errors.Is(errs[0], errors.ErrUnsupported) {
		t.Errorf("a device of a strange type: %v", errs)
	}
	if errs := k.apply(context.Background(), []op{{doCreate, vx(func(l *Link) { l.VXLAN.Parent = "none0" })}}); errs[0] == nil || !strings.Contains(errs[0].Error(), "underlay device none0") {
		t.Errorf("a VXLAN on nothing: %v", errs)
	}
}

// TestNetnsLateAnswers: answers to an earlier message, which was given up on, are not taken for those to this one.
func TestNetnsLateAnswers(t *testing.T) {
	addBridge(t, "under0", "172.20.0.1/24")
	k := open(t)
	bad := Route{Dst: prefix("10.9.0.0/24"), Via: addr("172.99.0.1"), Dev: "under0", Protocol: RouteProtocol}
	good := bad
	good.Via = addr("172.20.0.2")
	index := must(netlink.LinkByName("under0")).Attrs().Index
	for range 2 {
		k.seq++
		req := request(op{doReplace, bad}, index)
		req.Seq = k.seq
		if err := unix.Sendto(k.bulk.GetFd(), req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			t.Fatal(err)
		}
	}
	last := k.seq
	errs := k.apply(context.Background(), []op{{doReplace, good}, {doReplace, bad}, {doDelete, good}})
	if errs[0] != nil || errs[1] == nil || errs[2] != nil {
		t.Errorf("got %v", errs)
	}
	if k.seq != last+4 {
		t.Errorf("%d numbers used for 3 operations and the end", k.seq-last)
	}
}

// TestNetnsReadBack: what was applied is read back as it was, for each kind of object this kernel has.
func TestNetnsReadBack(t *testing.T) {
	addBridge(t, "eth0", "172.31.0.1/24", "fd31::1/64")
	k := open(t)
	want := vxlanWant()
	want.Routes = append(want.Routes,
		Route{Dst: prefix("10.5.9.0/24"), Kind: Blackhole, Metric: 77, Protocol: RouteProtocol},
		Route{Dst: prefix("fd10:5:0:9::/64"), Kind: Blackhole, Metric: 77, Protocol: RouteProtocol},
		Route{Dst: prefix("fd10:5:0:2::/64"), Via: addr("fd31::2"), Dev: "eth0", Protocol: RouteProtocol},
		Route{Dst: prefix("10.5.8.0/24"), Dev: "eth0", LinkOnly: true, Protocol: RouteProtocol})
	want.Neighbours = append(want.Neighbours, Neighbour{"flannel.1", addr("fd10:5:0:2::"), macB})
	t.Cleanup(func() {
		if removed, err := Cleanup(k); err != nil || len(removed) == 0 {
			t.Errorf("removed %q, %v", removed, err)
		}
	})
	if err := ApplyOnce(k, want); err != nil {
		t.Fatal(err)
	}
	have, err := k.read(overlayName)
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
	have, err = k.read(overlayName)
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

// TestNetnsRefusals: a route that refuses packets is seen, left alone and told where it is someone else's, of whatever
// kind and family; with our mark it goes.
func TestNetnsRefusals(t *testing.T) {
	addBridge(t, "eth0", "172.31.0.1/24", "fd31::1/64")
	k := open(t)
	for _, dst := range []netip.Prefix{prefix("10.5.2.0/24"), prefix("fd10:5:0:2::/64")} {
		via := addr("172.31.0.2")
		if dst.Addr().Is6() {
			via = addr("fd31::2")
		}
		want := State{Networks: nets, Routes: []Route{{Dst: dst, Via: via, Dev: "eth0", Protocol: RouteProtocol}}}
		for typ, kind := range map[int]RouteKind{unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit", unix.RTN_THROW: "throw"} {
			r := &netlink.Route{Dst: ipNet(dst), Type: typ, Protocol: protocolBoot}
			if err := netlink.RouteAdd(r); err != nil {
				t.Fatal(err)
			}
			if err := ApplyOnce(k, want); err == nil || !strings.Contains(err.Error(), "not ours to change: route "+string(kind)+" "+dst.String()) {
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
			if left, _ := ourRoute(k, dst.String()); err != nil || len(removed) != 1 || left != (Route{}) {
				t.Errorf("%s %s: removed %q, %v, left %v", kind, dst, removed, err, left)
			}
		}
	}
}

// TestNetnsWatchOverflow: messages that did not fit the socket (ENOBUFS) count as a change of everything.
func TestNetnsWatchOverflow(t *testing.T) {
	l := addBridge(t, "br7")
	k := open(t)
	var signs atomic.Int32
	seen, release := make(chan struct{}), make(chan struct{})
	relevant := func(event) bool { // of nothing, so that only the overflow can give a sign
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
		if err := k.watch(ctx, relevant, func() { signs.Add(1) }); !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
	await(t, "the first sign", func() bool { return signs.Load() == 1 })
	change := func(n int) {
		for i := range n {
			if err := netlink.LinkSetMTU(l, 1400+i%2); err != nil {
				t.Fatal(err)
			}
		}
	}
	change(1)
	<-seen
	change(2000) // some 1.5 KiB each, into a buffer of 208 KiB that nobody empties
	close(release)
	await(t, "the sign of the overflow", func() bool { return signs.Load() == 2 })
	cancel()
	wg.Wait()
}

// await waits for ok.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	err := lab.Await(t.Context(), patience(5*time.Second), what, func() error {
		if !ok() {
			return errSoFar
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestNetnsWatchIface follows the address, the MTU and the disappearance of the underlay.
func TestNetnsWatchIface(t *testing.T) {
	l := addBridge(t, "wan0", "192.0.2.1/24")
	var mu sync.Mutex
	var seen []Iface
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		err := WatchIface(ctx, IfaceOptions{IPv4: true, Iface: []string{"wan0"}}, func(i Iface, err error) {
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
	if got := last(); got.Name != "wan0" || got.Kind != "bridge" || got.MTU != 1500 || !got.OnLink.Contains(addr("192.0.2.200")) {
		t.Errorf("got %+v", got)
	}
	for _, err := range []error{
		netlink.AddrDel(l, &netlink.Addr{IPNet: ipNet(prefix("192.0.2.1/24"))}),
		netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(prefix("198.51.100.7/24"))}),
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
	if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(prefix("198.51.100.9/32")), Gw: addr("198.51.100.1").AsSlice()}); err != nil {
		t.Fatal(err)
	}
	await(t, "the peer that is by a gateway now", func() bool { return !last().OnLink.Contains(addr("198.51.100.9")) })
	cancel()
	wg.Wait()
}

// TestNetnsChooseIface asks the real kernel: the default route, what it would use for an address, and its order of
// addresses.
func TestNetnsChooseIface(t *testing.T) {
	addBridge(t, "wan0", "192.0.2.1/24", "2001:db8::1/64")
	addBridge(t, "wan1", "198.51.100.7/24")
	k := open(t)
	if err := errors.Join(k.apply(context.Background(), []op{
		{doReplace, Route{Dst: prefix("0.0.0.0/0"), Via: addr("198.51.100.1"), Dev: "wan1", Metric: 50}},
		{doReplace, Route{Dst: prefix("0.0.0.0/0"), Via: addr("192.0.2.254"), Dev: "wan0", Metric: 10}},
		{doReplace, Route{Dst: prefix("::/0"), Via: addr("2001:db8::2"), Dev: "wan0"}},
	})...); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		o    IfaceOptions
		want string
	}{
		{IfaceOptions{IPv4: true}, "wan0 192.0.2.1"},
		{IfaceOptions{IPv4: true, IPv6: true}, "wan0 192.0.2.1 2001:db8::1"},
		{IfaceOptions{IPv4: true, CanReach: addr("198.51.100.99")}, "wan1 198.51.100.7"},
		{IfaceOptions{IPv4: true, PublicIP: addr("198.51.100.7")}, "wan1 198.51.100.7"},
	} {
		i, err := ChooseIface(tt.o, k)
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
	if _, err := ChooseIface(IfaceOptions{IPv4: true, Iface: []string{"nope0"}}, k); err == nil || !strings.Contains(err.Error(), "wan1 198.51.100.7") {
		t.Errorf("got %v", err)
	}
}

// TestNetnsOnLink: what counts as on the link is what the kernel would send there without a gateway.
func TestNetnsOnLink(t *testing.T) {
	addBridge(t, "wan0", "192.0.2.1/24")
	addBridge(t, "wan1", "198.51.100.7/24")
	k := open(t)
	if err := errors.Join(k.apply(context.Background(), []op{
		{doReplace, Route{Dst: prefix("192.0.2.9/32"), Via: addr("192.0.2.254"), Dev: "wan0"}},
		{doReplace, Route{Dst: prefix("192.0.2.16/28"), Via: addr("192.0.2.254"), Dev: "wan0"}},
		{doReplace, Route{Dst: prefix("192.0.2.17/32"), Dev: "wan0", LinkOnly: true}},
		{doReplace, Route{Dst: prefix("192.0.2.40/32"), Dev: "wan1", LinkOnly: true}},
		{doReplace, Route{Dst: prefix("203.0.113.0/24"), Via: addr("192.0.2.254"), Dev: "wan0"}},
	})...); err != nil {
		t.Fatal(err)
	}
	i, err := ChooseIface(IfaceOptions{IPv4: true, Iface: []string{"wan0"}}, k)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"192.0.2.8", "192.0.2.9", "192.0.2.10", "192.0.2.16", "192.0.2.17", "192.0.2.18", "192.0.2.32", "192.0.2.40", "203.0.113.1", "198.51.100.9"} {
		rs, err := k.h.RouteGet(addr(s).AsSlice())
		if err != nil {
			t.Fatal(err)
		}
		if want := rs[0].Gw == nil && rs[0].LinkIndex == i.Index; i.OnLink.Contains(addr(s)) != want {
			t.Errorf("%s is on the link: %v; the kernel's route is %v", s, !want, rs[0])
		}
	}
}

// TestNetnsSelf: what a backend keeps over restarts is found again.
func TestNetnsSelf(t *testing.T) {
	addBridge(t, "eth0", "172.31.0.1/24")
	k := open(t)
	i := me().Iface
	o := SelfOptions{KeyFile: filepath.Join(t.TempDir(), "a", "wgkey"), Blackhole: true}
	self := func(backend string) Self {
		t.Helper()
		s, err := k.Self(network(t, backend), i, o)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := self(`{"Type":"vxlan"}`); s.VTEP != (MAC{}) || s.Iface != i || !s.Blackhole {
		t.Errorf("without devices: %+v", s)
	}
	if err := errors.Join(k.apply(context.Background(), []op{{doCreate, vx(func(l *Link) { l.MAC = macB })}})...); err != nil {
		t.Fatal(err)
	}
	if s := self(`{"Type":"vxlan"}`); s.VTEP != macB || s.VTEP6 != (MAC{}) {
		t.Errorf("with a device: %+v", s)
	}
	if err := errors.Join(k.apply(context.Background(), []op{{doDelete, vx(nil)}})...); err != nil {
		t.Fatal(err)
	}
	first := self(`{"Type":"wireguard"}`).PrivateKey
	if again := self(`{"Type":"wireguard"}`).PrivateKey; again != first || again == (Key{}) {
		t.Error("another key after a restart")
	}
	if s := self(`{"Type":"extension","PreStartupCommand":"echo '  hi '"}`); s.Startup != "hi" {
		t.Errorf("got %q", s.Startup)
	}
	if s := self(`{"Type":"udp"}`); s.FOU || s.NoFOU != "not asked for" {
		t.Errorf("got %+v", s)
	}
	for backend, want := range map[string]string{
		`{"Type":"vxlan","VNI":-1}`:                            "VNI",
		`{"Type":"udp","Carrier":1}`:                           "Carrier",
		`{"Type":"extension","PreStartupCommand":"'"}`:         "PreStartupCommand",
		`{"Type":"extension","PreStartupCommand":"sh -c no9"}`: "PreStartupCommand",
	} {
		if _, err := k.Self(network(t, backend), i, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", backend, err)
		}
	}
}

func TestPrivateKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "wgkey")
	k, err := privateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o400 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	b, err := os.ReadFile(path)
	if err != nil || string(b) != k.Base64() {
		t.Errorf("file holds %q, %v", b, err)
	}
	other := filepath.Join(t.TempDir(), "key")
	for text, ok := range map[string]bool{k.Base64(): true, k.Base64() + "\n": true, "": false, "x": false, "AAAA": false} {
		if err := os.WriteFile(other, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := privateKey(other)
		if ok != (err == nil) || ok && got != k {
			t.Errorf("%q: got %v", text, err)
		}
		if err != nil && text != "" && strings.Contains(err.Error(), text+`"`) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
	if _, err := privateKey(t.TempDir()); err == nil {
		t.Error("a folder is a key file")
	}
	if _, err := privateKey(filepath.Join(other, "below", "key")); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("below a file: %v", err)
	}
}

// TestWireGuardFields reads WireGuard's own words, and refuses what they never are.
func TestWireGuardFields(t *testing.T) {
	hex := strings.Repeat("0a", 32)
	var d wgtypes.Device
	for _, l := range [][2]string{{"private_key", hex}, {"listen_port", "7"}, {"fwmark", "1"}, {"public_key", hex}, {"preshared_key", hex},
		{"protocol_version", "1"}, {"endpoint", "[fd00::1]:5"}, {"last_handshake_time_sec", "100"}, {"persistent_keepalive_interval", "25"},
		{"allowed_ip", "10.5.2.0/24"}, {"allowed_ip", "fd00::/64"}} {
		if err := setField(&d, l[0], l[1]); err != nil {
			t.Errorf("%s: %v", l, err)
		}
	}
	p := d.Peers[0]
	if d.ListenPort != 7 || d.PrivateKey[31] != 0xa || p.Endpoint.String() != "[fd00::1]:5" || p.PersistentKeepaliveInterval != 25*time.Second ||
		p.LastHandshakeTime.Unix() != 100 || len(p.AllowedIPs) != 2 {
		t.Errorf("got %+v", d)
	}
	for _, l := range [][2]string{{"private_key", "0a"}, {"private_key", "zz"}, {"listen_port", "x"}, {"public_key", "0"}, {"endpoint", "x"},
		{"allowed_ip", "x"}, {"persistent_keepalive_interval", "x"}, {"last_handshake_time_sec", ""}} {
		if err := setField(&d, l[0], l[1]); err == nil {
			t.Errorf("%s is taken", l)
		}
	}
}

// TestEndpoint: a peer that WireGuard follows by itself is where we said it is, until its session has ended.
func TestEndpoint(t *testing.T) {
	given, roamed := netip.MustParseAddrPort("172.31.0.2:51820"), netip.MustParseAddrPort("192.0.2.9:1024")
	w := newWireGuards()
	w.given[peerKey{"flannel-wg", Key{2}}] = given
	for _, tt := range []struct {
		name      string
		key       Key
		handshake time.Duration // ago
		at        *net.UDPAddr
		want      netip.AddrPort
	}{
		{"in a session", Key{2}, sessionLife - time.Minute, net.UDPAddrFromAddrPort(roamed), given},
		{"in no session any more", Key{2}, sessionLife + time.Minute, net.UDPAddrFromAddrPort(roamed), roamed},
		{"of an earlier run", Key{3}, time.Second, &net.UDPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 1024}, roamed},
		{"nowhere", Key{3}, time.Second, nil, netip.AddrPort{}},
	} {
		p := wgtypes.Peer{PublicKey: wgtypes.Key(tt.key), LastHandshakeTime: time.Now().Add(-tt.handshake), Endpoint: tt.at}
		if got := w.endpoint("flannel-wg", p); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestAllowed: a peer with more than one prefix of a family is not as we want any.
func TestAllowed(t *testing.T) {
	for _, tt := range []struct {
		in     []string
		v4, v6 netip.Prefix
	}{
		{nil, netip.Prefix{}, netip.Prefix{}},
		{[]string{"10.0.0.0/24"}, prefix("10.0.0.0/24"), netip.Prefix{}},
		{[]string{"10.0.0.0/24", "fd00::/64"}, prefix("10.0.0.0/24"), prefix("fd00::/64")},
		{[]string{"10.0.0.0/24", "10.0.1.0/24", "fd00::/64", "fd01::/64"}, netip.Prefix{}, netip.Prefix{}},
	} {
		var in []net.IPNet
		for _, s := range tt.in {
			in = append(in, *ipNet(prefix(s)))
		}
		v4, v6 := allowed(in)
		if v4 != tt.v4 || v6 != tt.v6 {
			t.Errorf("%q: got %v, %v", tt.in, v4, v6)
		}
	}
}

// FuzzPlan gives the backends what another node may have published: whatever it is, there is a plan.
func FuzzPlan(f *testing.F) {
	for _, s := range []string{vxlanData2, wgData(2, 51820), `"printed"`, `null`, `{}`, `{"VtepMAC":1}`, `{"PublicKey":"AAAA","Port":-1}`} {
		f.Add(s, s)
	}
	n4, err := lease.ParseNetwork([]byte(`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd10:5::/48"}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data, data6 string) {
		for _, typ := range []string{"vxlan", "wireguard", "extension", "host-gw", "ipip", "udp"} {
			n := n4
			n.Backend = lease.Backend{Type: typ, Raw: []byte(`{"Mode":"auto","SubnetAddCommand":"x"}`)}
			b, err := NewBackend(n, me())
			if err != nil {
				t.Fatal(err)
			}
			peer := node(2, typ, data, data6)
			s := b.Plan(node(1, typ, "", ""), []lease.Lease{peer})
			for _, u := range s.Unreachable {
				if u.Node == "" || u.Reason == "" {
					t.Errorf("%s: %+v", typ, u)
				}
			}
		}
	})
}
