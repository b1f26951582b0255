package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/cmd/weftd/config"
	"weft/ctrl"
	"weft/ctrl/netfilter"
	"weft/dataplane/fib"
	"weft/lease"
	"weft/lease/subnetenv"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func testLease(name, subnet, public string) lease.Lease {
	return lease.Lease{Node: name, Subnet: prefix(subnet), Attrs: lease.Attrs{PublicIP: addr(public)}}
}

func TestFibNodes(t *testing.T) {
	gone := testLease("g", "10.5.3.0/24", "192.0.2.3")
	half := testLease("h", "10.5.4.0/24", "192.0.2.4")
	half.Subnet6 = prefix("fd00:4::/64")
	dual := testLease("d", "10.5.2.0/24", "192.0.2.2")
	dual.Subnet6 = prefix("fd00:2::/64")
	six := lease.Lease{Node: "s", Subnet6: prefix("fd00:6::/64"), Attrs: lease.Attrs{PublicIPv6: addr("2001:db8::6")}}
	self := testLease("me", "10.5.1.0/24", "192.0.2.1")
	// Ours has lapsed and went to another node: what belongs here stays here.
	usurper := testLease("x", "10.5.1.0/24", "192.0.2.9")

	n := &node{self: self, state: lease.State{All: []lease.Lease{self, usurper, dual, gone, half, six}}}
	without := map[netip.Prefix]string{gone.Subnet: "no", half.Subnet6: "not this"}
	want := []fib.Node{
		{Name: "d", Prefixes: []netip.Prefix{dual.Subnet, dual.Subnet6}, Endpoint: netip.MustParseAddrPort("192.0.2.2:8285")},
		{Name: "h", Prefixes: []netip.Prefix{half.Subnet}, Endpoint: netip.MustParseAddrPort("192.0.2.4:8285")},
		{Name: "s", Prefixes: []netip.Prefix{six.Subnet6}, Endpoint: netip.MustParseAddrPort("[2001:db8::6]:8285")},
	}
	if got := fibNodes(n.peers(), without, 8285); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	var reasons []string
	for _, s := range nodeStatuses(n.peers(), without) {
		reasons = append(reasons, s.Name+":"+s.Unreachable)
	}
	if want := []string{"d:", "g:no", "h:not this", "s:"}; !slices.Equal(reasons, want) {
		t.Errorf("got %q, want %q", reasons, want)
	}
}

func TestBindAddress(t *testing.T) {
	// Behind a NAT the public address is not one of ours.
	i := ctrl.Iface{Addr: addr("10.0.0.1"), Addr6: addr("fd00::1"), Public: addr("192.0.2.1")}
	if got := bindAddress(i, ctrl.Spec{Port: 1}).String(); got != "10.0.0.1:1" {
		t.Errorf("got %s", got)
	}
	if got := bindAddress(ctrl.Iface{Addr6: addr("fd00::1")}, ctrl.Spec{Port: 1}).String(); got != "[fd00::1]:1" {
		t.Errorf("got %s", got)
	}
}

func TestDesiredRules(t *testing.T) {
	n := &node{
		weftd:   &weftd{cfg: &config.Config{Rules: config.Rules{Masquerade: true, NoRandomPorts: true, KeepSource: config.Off}}},
		network: lease.Network{Network: prefix("10.5.0.0/16"), IPv6Network: prefix("fd00::/48"), EnableNFTables: true},
		self:    testLease("me", "10.5.1.0/24", "192.0.2.1"),
	}
	want := netfilter.Desired{
		Nets:       []netfilter.Net{{Network: prefix("10.5.0.0/16"), Subnet: prefix("10.5.1.0/24")}},
		Masquerade: true, NoRandomPorts: true, NFTables: true,
	}
	if got := n.desiredRules(ctrl.State{}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	n.cfg, n.network.EnableNFTables = &config.Config{Rules: config.Rules{Forward: true}}, false
	n.self.Subnet6 = prefix("fd00:0:0:1::/64")
	want = netfilter.Desired{Nets: append(want.Nets, netfilter.Net{Network: prefix("fd00::/48"), Subnet: n.self.Subnet6}), Forward: true}
	if got := n.desiredRules(ctrl.State{}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	n.cfg, n.network.Backend.Type = &config.Config{Rules: config.Rules{NoTrack: true}}, "udp"
	n.host.Iface = ctrl.Iface{Name: "eth0", MTU: 1500, Addr: addr("10.0.0.1"), Public: addr("192.0.2.1")}
	if err := n.prepare(n.host.Iface); err != nil {
		t.Fatal(err)
	}
	if got := n.desiredRules(ctrl.State{}).NoTrack; !slices.Equal(got, []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:8285")}) {
		t.Errorf("left untracked: %v", got)
	}
}

func TestTunnelEnds(t *testing.T) {
	i := ctrl.Iface{Name: "eth0", MTU: 1500, Addr: addr("10.0.0.1"), Addr6: addr("fd00::1"),
		Public: addr("10.0.0.1"), Public6: addr("fd00::1")}
	self := testLease("me", "10.5.1.0/24", "10.0.0.1")
	self.Subnet6 = prefix("fd01:1::/64")
	for _, test := range []struct {
		backend, ipv6, want string
	}{
		{`{"Type": "udp", "Port": 1}`, ``, "10.0.0.1:1"},
		{`{"Type": "udp", "Carrier": "kernel"}`, ``, "10.0.0.1:8285"},
		{`{"Type": "vxlan"}`, ``, "10.0.0.1:8472"},
		{`{"Type": "vxlan", "Port": 4789}`, `"EnableIPv6": true, "IPv6Network": "fd01::/16",`, "10.0.0.1:4789 [fd00::1]:4789"},
		{`{"Type": "host-gw"}`, ``, ""},
	} {
		network, err := lease.ParseNetwork([]byte(`{"Network": "10.5.0.0/16", ` + test.ipv6 + ` "Backend": ` + test.backend + `}`))
		if err != nil {
			t.Fatal(err)
		}
		b, err := ctrl.NewBackend(network, ctrl.Self{Iface: i, FOU: true})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, end := range tunnelEnds(i, b.Spec(), b.Plan(self, nil)) {
			got = append(got, end.String())
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: %q, want %q", test.backend, got, test.want)
		}
	}
}

func TestLostSubnetIsExplained(t *testing.T) {
	self, other := testLease("me", "10.5.1.0/24", "192.0.2.1"), testLease("them", "10.5.7.0/24", "192.0.2.7")
	all := []lease.Lease{self, other}
	tests := []struct {
		name     string
		previous subnetenv.File
		want     string
	}{
		{"none before", subnetenv.File{}, ""},
		{"the same", subnetenv.File{Subnet: self.Subnet}, ""},
		{"another's", subnetenv.File{Subnet: other.Subnet}, "subnet=10.5.7.0/24 owner=them"},
		{"nobody's", subnetenv.File{Subnet6: prefix("fd00::/64")}, `subnet=fd00::/64 owner="no node"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			log, logged := testLog()
			n := &node{weftd: &weftd{cfg: &config.Config{Node: config.Node{SubnetFile: "/s"}}, log: log}, previous: test.previous}
			n.leaseHeld(lease.State{Self: self, Held: true, All: all})
			if got := logged.String(); !strings.Contains(got, test.want) || (test.want == "") != (got == "") {
				t.Errorf("logged %q, want %q", got, test.want)
			}
			if n.since.IsZero() || !n.self.SameSubnets(self) {
				t.Errorf("the lease is not taken over: %+v since %v", n.self, n.since)
			}
		})
	}
}

func TestNothingIsPromisedBeforeItIsThere(t *testing.T) {
	log, _ := testLog()
	path := filepath.Join(t.TempDir(), "subnet.env")
	n := &node{
		weftd:      &weftd{cfg: &config.Config{Node: config.Node{SubnetFile: path}}, log: log},
		reconciler: ctrl.NewReconciler(nil, ctrl.ReconcilerOptions{}), // has brought nothing about yet
		rules:      netfilter.New(netfilter.Options{}),
	}
	self := testLease("me", "10.5.1.0/24", "192.0.2.1")
	n.leaseChanged(lease.State{Self: self})
	if !n.since.IsZero() || n.self.Subnet.IsValid() {
		t.Errorf("a lease that is not held is taken over: %+v since %v", n.self, n.since)
	}
	var err error
	if n.backend, err = ctrl.NewBackend(lease.Network{Backend: lease.Backend{Type: "alloc"}}, ctrl.Self{}); err != nil {
		t.Fatal(err)
	}
	n.leaseHeld(lease.State{Self: self, Held: true})
	n.writeSubnetFile()
	if _, err := os.Stat(path); err == nil {
		t.Error("the subnet file is written before the kernel is set up")
	}
	n.state = lease.State{Self: self, Held: true}
	n.publish()
	var missing []string
	for _, c := range n.conditions() {
		if !c.OK {
			missing = append(missing, c.Name+": "+c.Reason)
		}
	}
	if want := []string{"kernel: not set up yet", "subnet-file: " + path + " is written when all else is in place"}; !slices.Equal(missing, want) {
		t.Errorf("missing are %q, want %q", missing, want)
	}
}

// TestNetnsSubnetFileWaitsForTheLastPlan: that the plan before is in place is not enough.
func TestNetnsSubnetFileWaitsForTheLastPlan(t *testing.T) {
	kernel, err := ctrl.OpenKernel()
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	log, _ := testLog()
	path := filepath.Join(t.TempDir(), "subnet.env")
	n := &node{
		weftd:      &weftd{cfg: &config.Config{Node: config.Node{SubnetFile: path}}, log: log},
		reconciler: ctrl.NewReconciler(kernel, ctrl.ReconcilerOptions{}),
		rules:      netfilter.New(netfilter.Options{}),
	}
	if n.backend, err = ctrl.NewBackend(lease.Network{Backend: lease.Backend{Type: "alloc"}}, ctrl.Self{}); err != nil {
		t.Fatal(err)
	}
	bringAbout := func() {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.reconciler.Run(ctx) }()
		await(t, patience, "the plan in place", func() error {
			if s := n.reconciler.Status(); !s.Synced || !s.Current {
				return fmt.Errorf("status %+v", s)
			}
			return nil
		})
		cancel()
		<-ended
	}
	n.leaseChanged(lease.State{Self: testLease("me", "10.5.1.0/24", "192.0.2.1"), Held: true})
	bringAbout()
	n.replan()
	n.writeSubnetFile()
	if _, err := os.Stat(path); err == nil {
		t.Error("the subnet file is written when only the plan before is in place")
	}
	n.former = []netip.Prefix{prefix("10.99.0.0/16")}
	if got := n.plan().Networks; !slices.Equal(got, n.former) {
		t.Errorf("to be kept clean: %v, want the former network too", got)
	}
	bringAbout()
	n.writeSubnetFile()
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	if got := n.plan().Networks; len(got) > 0 || n.reconciler.Status().Current {
		t.Errorf("to be kept clean: %v, the former network was to be given up", got)
	}
}

func TestChangedSubnetIsLoud(t *testing.T) {
	log, logged := testLog()
	n := &node{weftd: &weftd{cfg: &config.Config{}, log: log}}
	first := testLease("me", "10.5.1.0/24", "192.0.2.1")
	n.leaseHeld(lease.State{Self: first, Held: true})
	since := n.since
	n.leaseHeld(lease.State{Self: first, Held: true})
	if n.since != since || logged.Len() > 0 {
		t.Errorf("a renewal counts as a new lease: since %v, then %v, logged %q", since, n.since, logged.String())
	}
	n.leaseHeld(lease.State{Self: testLease("me", "10.5.2.0/24", "192.0.2.1"), Held: true})
	if got := logged.String(); !strings.Contains(got, "level=ERROR") || !strings.Contains(got, "old=10.5.1.0/24 new=10.5.2.0/24") {
		t.Errorf("logged %q", got)
	}
	if n.since == since {
		t.Error("a changed subnet does not count as a new lease")
	}
}

func TestInterfaceIsRefusedAndLost(t *testing.T) {
	log, _ := testLog()
	n := &node{weftd: &weftd{cfg: &config.Config{}, log: log}, network: lease.Network{Backend: lease.Backend{Type: "udp"}}}
	good := ctrl.Iface{Name: "eth0", MTU: 1500, Addr: addr("10.0.0.1"), Public: addr("10.0.0.1")}
	if err := n.prepare(good); err != nil {
		t.Fatal(err)
	}
	bad := good
	bad.MTU = 60
	if n.ifaceChanged(bad); n.ifaceErr == nil || n.host.Iface != good {
		t.Errorf("an MTU of %d: %v, interface %+v", bad.MTU, n.ifaceErr, n.host.Iface)
	}
	if n.ifaceReported(ifaceNews{iface: good}); n.ifaceErr != nil {
		t.Errorf("as before: %v", n.ifaceErr)
	}
	lost := errors.New("no address")
	if n.ifaceReported(ifaceNews{err: lost}); !errors.Is(n.ifaceErr, lost) || n.host.Iface != good {
		t.Errorf("lost: %v, interface %+v", n.ifaceErr, n.host.Iface)
	}
	if n.ifaceReported(ifaceNews{iface: good}); n.ifaceErr != nil {
		t.Errorf("there again: %v", n.ifaceErr)
	}
}

func TestInterfaceChangeIsLoggedForWhatItIs(t *testing.T) {
	log, logged := testLog()
	n := &node{weftd: &weftd{cfg: &config.Config{}, log: log}}
	n.host.Iface = ctrl.Iface{Name: "eth0", MTU: 1500, Addr: addr("10.0.0.1")}
	i := n.host.Iface
	i.OnLink = ctrl.NewPrefixSet(prefix("10.0.0.0/24"))
	if n.logIface(i); !strings.Contains(logged.String(), "level=INFO") || strings.Contains(logged.String(), "mtu") {
		t.Errorf("another route on the link: %s", logged)
	}
	logged.Reset()
	i.MTU = 1400
	if n.logIface(i); !strings.Contains(logged.String(), "level=WARN") || !strings.Contains(logged.String(), "mtu=1400 address=10.0.0.1") {
		t.Errorf("another MTU: %s", logged)
	}
}

func TestTunnelAddressOutlivesTheNodes(t *testing.T) {
	network, err := lease.ParseNetwork([]byte(`{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd10::/48", "Backend": {"Type": "vxlan"}}`))
	if err != nil {
		t.Fatal(err)
	}
	n := &node{network: network} // of a machine that has no device yet
	var said [2]lease.Attrs
	for i, last := range []string{"1", "2"} {
		iface := ctrl.Iface{Name: "eth0", MTU: 1500, Addr: addr("10.0.0." + last), Addr6: addr("fd00::" + last)}
		iface.Public, iface.Public6 = iface.Addr, iface.Addr6
		if err := n.prepare(iface); err != nil {
			t.Fatal(err)
		}
		said[i] = attrs(iface, n.backend.Spec())
	}
	if string(said[0].BackendData) != string(said[1].BackendData) || string(said[0].BackendV6Data) != string(said[1].BackendV6Data) {
		t.Errorf("at first %+v, with another address %+v", said[0], said[1])
	}
}

// script is a store that answers Network with each of errs in turn and then with
// a config.
type script struct {
	lease.Store
	errs []string
}

func (s *script) Network(context.Context) (lease.Network, error) {
	if len(s.errs) == 0 {
		return lease.Network{EnableIPv4: true}, nil
	}
	err := errors.New(s.errs[0])
	s.errs = s.errs[1:]
	return lease.Network{}, err
}

func TestNetworkConfigIsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, logged := testLog()
		d := &weftd{cfg: &config.Config{}, log: log}
		if c := d.conditions(); len(c) != 1 || c[0] != (condition{Name: "config", Reason: "not read yet"}) {
			t.Errorf("before the first look: %+v", c)
		}
		start := time.Now()
		network, err := d.awaitNetwork(t.Context(), &script{errs: []string{"one", "one", "one", "two", "two"}})
		if err != nil || !network.EnableIPv4 {
			t.Fatal(network, err)
		}
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("took %v for five tries", took)
		}
		if got := strings.Count(logged.String(), "\n"); got != 2 || !strings.Contains(logged.String(), "err=two") {
			t.Errorf("two causes were logged as %q", logged.String())
		}
		if c := d.conditions(); len(c) != 1 || c[0] != (condition{Name: "config", Reason: "two"}) {
			t.Errorf("while waiting: %+v", c)
		}
	})
}

func TestNetworkConfigIsAwaitedUntilTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _ := testLog()
		d := &weftd{cfg: &config.Config{}, log: log}
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := d.awaitNetwork(ctx, &script{errs: slices.Repeat([]string{"no"}, 9)})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 2500*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestLatestDropsTheOld(t *testing.T) {
	l := make(latest[int], 1)
	for i := range 3 {
		l.put(i)
	}
	if got := <-l; got != 2 {
		t.Errorf("got %d", got)
	}
}

func TestShow(t *testing.T) {
	if got := show(prefix("10.5.1.0/24"), prefix("fd00::/64")); got != "10.5.1.0/24 fd00::/64" {
		t.Errorf("got %q", got)
	}
	if got := show(netip.Addr{}, addr("fd00::1")); got != "fd00::1" {
		t.Errorf("got %q", got)
	}
}
