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

	"weft/cmd/control"
	"weft/cmd/weftd/config"
	"weft/ctrl"
	"weft/ctrl/backend"
	"weft/ctrl/netfilter"
	"weft/ctrl/underlay"
	"weft/dataplane/fib"
	"weft/lease"
	"weft/lease/subnetenv"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func testLease(name, subnet, public string) lease.Lease {
	return lease.Lease{Node: name, Subnet: prefix(subnet), Attrs: lease.Attrs{PublicIP: addr(public)}}
}

func TestEngineNodes(t *testing.T) {
	gone := testLease("g", "10.5.3.0/24", "192.0.2.3")
	half := testLease("h", "10.5.4.0/24", "192.0.2.4")
	half.Subnet6 = prefix("fd00:4::/64")
	dual := testLease("d", "10.5.2.0/24", "192.0.2.2")
	dual.Subnet6 = prefix("fd00:2::/64")
	six := lease.Lease{Node: "s", Subnet6: prefix("fd00:6::/64"), Attrs: lease.Attrs{PublicIPv6: addr("2001:db8::6")}}
	self := testLease("me", "10.5.1.0/24", "192.0.2.1")
	// This node's lease expired and another node claimed the subnet.
	overlapping := testLease("x", "10.5.1.0/24", "192.0.2.9")

	v := &peerView{
		self: self, leases: lease.NewSet(self, overlapping, dual, gone, half, six), port: 8285,
		unplanned: reasons{gone.Subnet: "no"}, cut: reasons{half.Subnet6: "not this"},
	}
	want := []fib.Node{
		{Name: "s", Prefixes: []netip.Prefix{six.Subnet6}, Endpoint: netip.MustParseAddrPort("[2001:db8::6]:8285")},
		{Name: "d", Prefixes: []netip.Prefix{dual.Subnet, dual.Subnet6},
			Endpoint: netip.MustParseAddrPort("192.0.2.2:8285")},
		{Name: "h", Prefixes: []netip.Prefix{half.Subnet}, Endpoint: netip.MustParseAddrPort("192.0.2.4:8285")},
	}
	if got := v.engineNodes(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	var texts []string
	for _, s := range v.statuses() {
		texts = append(texts, s.Name+":"+s.Unreachable)
	}
	if want := []string{"s:", "d:", "g:no", "h:not this"}; !slices.Equal(texts, want) {
		t.Errorf("got %q, want %q", texts, want)
	}
}

func TestDesiredRules(t *testing.T) {
	a := &agent{
		daemon: &daemon{cfg: &config.Config{Rules: config.Rules{Masquerade: true, NoRandomPorts: true,
			KeepSource: config.Off}}},
		network: lease.Network{Network: prefix("10.5.0.0/16"), IPv6Network: prefix("fd00::/48"),
			EnableNFTables: true},
		leaseView: leaseView{self: testLease("me", "10.5.1.0/24", "192.0.2.1")},
	}
	want := netfilter.Desired{
		Nets:       []netfilter.Net{{Network: prefix("10.5.0.0/16"), Subnet: prefix("10.5.1.0/24")}},
		Masquerade: true, NoRandomPorts: true, NFTables: true,
	}
	if got := a.desiredRules(ctrl.State{}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	a.cfg, a.network.EnableNFTables = &config.Config{Rules: config.Rules{Forward: true}}, false
	a.self.Subnet6 = prefix("fd00:0:0:1::/64")
	want = netfilter.Desired{Nets: append(want.Nets,
		netfilter.Net{Network: prefix("fd00::/48"), Subnet: a.self.Subnet6}), Forward: true, KeepSource: true}
	if got := a.desiredRules(ctrl.State{}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	a.cfg, a.network.Backend.Type = &config.Config{Rules: config.Rules{NoTrack: true}}, "udp"
	a.host.Iface = underlay.Iface{Name: "eth0", MTU: 1500, Addr: addr("10.0.0.1"), Public: addr("192.0.2.1")}
	if err := a.setUnderlay(a.host.Iface); err != nil {
		t.Fatal(err)
	}
	if got := a.desiredRules(a.plan().State).NoTrack; !slices.Equal(got,
		[]netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:8285")}) {
		t.Errorf("NoTrack is %v", got)
	}
	for allow, want := range map[bool]int{false: 1, true: 0} {
		a.cfg.Rules.AllowPodsToTunnelPort = allow
		if got := a.desiredRules(a.plan().State).TunnelPorts; len(got) != want {
			t.Errorf("pods allowed %t: TunnelPorts is %v", allow, got)
		}
	}
}

func TestWarnLostSubnet(t *testing.T) {
	self, other := testLease("me", "10.5.1.0/24", "192.0.2.1"), testLease("them", "10.5.7.0/24", "192.0.2.7")
	all := lease.NewSet(self, other)
	tests := []struct {
		name     string
		previous subnetenv.File
		want     string
	}{
		{"no previous file", subnetenv.File{}, ""},
		{"same subnet", subnetenv.File{Subnet: self.Subnet}, ""},
		{"owned by another node", subnetenv.File{Subnet: other.Subnet}, "subnet=10.5.7.0/24 owner=them"},
		{"not leased", subnetenv.File{Subnet6: prefix("fd00::/64")}, `subnet=fd00::/64 owner="no node"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			log, logged := testLog()
			a := &agent{
				daemon: &daemon{cfg: &config.Config{Node: config.Node{SubnetFile: "/s"}}, log: log},
				file:   subnetFile{previous: test.previous},
			}
			a.setLease(lease.State{Self: self, Held: true, All: all})
			if got := logged.String(); !strings.Contains(got, test.want) || (test.want == "") != (got == "") {
				t.Errorf("logged %q, want %q", got, test.want)
			}
			if a.acquired.IsZero() || !a.self.SameSubnets(self) {
				t.Errorf("lease not in force: %+v since %v", a.self, a.acquired)
			}
		})
	}
}

func TestSubnetFileAfterKernelState(t *testing.T) {
	log, _ := testLog()
	path := filepath.Join(t.TempDir(), "subnet.env")
	a := &agent{
		daemon: &daemon{cfg: &config.Config{Node: config.Node{SubnetFile: path}}, log: log},
		parts: parts{
			reconciler: ctrl.NewReconciler(nil, ctrl.ReconcilerOptions{}), // has not run yet
			rules:      netfilter.New(netfilter.Options{}),
		},
		file: subnetFile{path: path},
	}
	self := testLease("me", "10.5.1.0/24", "192.0.2.1")
	a.onLeaseState(lease.State{Self: self})
	if !a.acquired.IsZero() || a.self.Subnet.IsValid() {
		t.Errorf("lease in force that is not held: %+v since %v", a.self, a.acquired)
	}
	var err error
	if a.backend, err = backend.New(lease.Network{Backend: lease.Backend{Type: "alloc"}},
		backend.LocalNode{}); err != nil {
		t.Fatal(err)
	}
	a.setLease(lease.State{Self: self, Held: true})
	a.syncSubnetFile()
	if _, err := os.Stat(path); err == nil {
		t.Error("subnet file written before the kernel is set up")
	}
	a.state = lease.State{Self: self, Held: true}
	a.publish()
	var missing []string
	for _, c := range a.conditions() {
		if !c.OK {
			missing = append(missing, c.Name+": "+c.Reason)
		}
	}
	if want := []string{"kernel: not set up yet",
		"subnet-file: " + path + " is written once all else is in place"}; !slices.Equal(missing, want) {
		t.Errorf("conditions not met: %q, want %q", missing, want)
	}
}

// TestNetnsSubnetFileAfterLatestPlan checks that a previous plan in place is not enough.
func TestNetnsSubnetFileAfterLatestPlan(t *testing.T) {
	kernel, err := ctrl.OpenKernel(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	log, _ := testLog()
	path := filepath.Join(t.TempDir(), "subnet.env")
	a := &agent{
		daemon: &daemon{cfg: &config.Config{Node: config.Node{SubnetFile: path}}, log: log},
		parts: parts{
			reconciler: ctrl.NewReconciler(kernel, ctrl.ReconcilerOptions{}),
			rules:      netfilter.New(netfilter.Options{}),
		},
		file: subnetFile{path: path},
	}
	if a.backend, err = backend.New(lease.Network{Backend: lease.Backend{Type: "alloc"}},
		backend.LocalNode{}); err != nil {
		t.Fatal(err)
	}
	reconcile := func() {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.reconciler.Run(ctx) }()
		await(t, patience, "the plan in place", func() error {
			if s := a.reconciler.Status(); !s.Synced || !s.Current {
				return fmt.Errorf("status %+v", s)
			}
			return nil
		})
		cancel()
		<-ended
	}
	a.onLeaseState(lease.State{Self: testLease("me", "10.5.1.0/24", "192.0.2.1"), Held: true})
	reconcile()
	a.replan()
	a.syncSubnetFile()
	if _, err := os.Stat(path); err == nil {
		t.Error("subnet file written while only the previous plan is in place")
	}
	a.file.abandoned = []netip.Prefix{prefix("10.99.0.0/16")}
	if got := a.plan().Networks; !slices.Equal(got, a.file.abandoned) {
		t.Errorf("networks of the plan: %v, want the abandoned one too", got)
	}
	reconcile()
	a.syncSubnetFile()
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	if got := a.plan().Networks; len(got) > 0 || a.reconciler.Status().Current {
		t.Errorf("networks of the plan: %v, want none after the file is written", got)
	}
}

func TestSubnetChangeLogged(t *testing.T) {
	log, logged := testLog()
	a := &agent{daemon: &daemon{cfg: &config.Config{}, log: log}}
	first := testLease("me", "10.5.1.0/24", "192.0.2.1")
	a.setLease(lease.State{Self: first, Held: true})
	since := a.acquired
	a.setLease(lease.State{Self: first, Held: true})
	if a.acquired != since || logged.Len() > 0 {
		t.Errorf("renewal counts as a new lease: since %v, then %v, logged %q", since, a.acquired, logged.String())
	}
	a.setLease(lease.State{Self: testLease("me", "10.5.2.0/24", "192.0.2.1"), Held: true})
	if got := logged.String(); !strings.Contains(got, "level=ERROR") ||
		!strings.Contains(got, "old=10.5.1.0/24 new=10.5.2.0/24") {
		t.Errorf("logged %q", got)
	}
	if a.acquired == since {
		t.Error("changed subnet does not count as a new lease")
	}
}

func TestInterfaceUnusableAndLost(t *testing.T) {
	log, _ := testLog()
	a := &agent{daemon: &daemon{cfg: &config.Config{}, log: log},
		network: lease.Network{Backend: lease.Backend{Type: "udp"}}}
	good := underlay.Iface{Name: "eth0", MTU: 1500, Addr: addr("10.0.0.1"), Public: addr("10.0.0.1")}
	if err := a.setUnderlay(good); err != nil {
		t.Fatal(err)
	}
	bad := good
	bad.MTU = 60
	if a.onIfaceChange(bad); a.ifaceErr == nil || !a.host.Iface.Equal(good) {
		t.Errorf("an MTU of %d: %v, interface %+v", bad.MTU, a.ifaceErr, a.host.Iface)
	}
	if a.onIfaceEvent(ifaceEvent{iface: good}); a.ifaceErr != nil {
		t.Errorf("back as before: %v", a.ifaceErr)
	}
	noted := good
	noted.Note = "a restart would choose eth1"
	if a.onIfaceEvent(ifaceEvent{iface: noted}); a.host.Iface.Note != noted.Note {
		t.Errorf("note %q", a.host.Iface.Note)
	}
	if got := a.ifaceInUse(); !got.Equal(good) {
		t.Errorf("in use: %+v", got)
	}
	lost := errors.New("no address")
	if a.onIfaceEvent(ifaceEvent{err: lost}); !errors.Is(a.ifaceErr, lost) || !a.host.Iface.Equal(good) {
		t.Errorf("lost: %v, interface %+v", a.ifaceErr, a.host.Iface)
	}
	if a.onIfaceEvent(ifaceEvent{iface: good}); a.ifaceErr != nil {
		t.Errorf("back after loss: %v", a.ifaceErr)
	}
}

func TestInterfaceChangeLogLevel(t *testing.T) {
	log, logged := testLog()
	a := &agent{daemon: &daemon{cfg: &config.Config{}, log: log}}
	a.host.Iface = underlay.Iface{Name: "eth0", MTU: 1500, Addr: addr("10.0.0.1")}
	i := a.host.Iface
	i.OnLink = underlay.NewPrefixSet(prefix("10.0.0.0/24"))
	if a.logIfaceChange(i); !strings.Contains(logged.String(), "level=INFO") ||
		strings.Contains(logged.String(), "mtu") {
		t.Errorf("changed on-link route: %s", logged)
	}
	logged.Reset()
	i.MTU = 1400
	if a.logIfaceChange(i); !strings.Contains(logged.String(), "level=WARN") ||
		!strings.Contains(logged.String(), "mtu=1400 address=10.0.0.1") {
		t.Errorf("changed MTU: %s", logged)
	}
}

func TestVTEPAddressKept(t *testing.T) {
	network, err := lease.ParseNetwork([]byte(`{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd10::/48", "Backend": {"Type": "vxlan"}}`))
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{daemon: &daemon{}, network: network} // without a VXLAN device
	var published [2]lease.Attrs
	for i, last := range []string{"1", "2"} {
		iface := underlay.Iface{Name: "eth0", MTU: 1500, Addr: addr("10.0.0." + last), Addr6: addr("fd00::" + last)}
		iface.Public, iface.Public6 = iface.Addr, iface.Addr6
		if err := a.setUnderlay(iface); err != nil {
			t.Fatal(err)
		}
		published[i] = a.backend.Advertisement().Attrs
	}
	if string(published[0].BackendData) != string(published[1].BackendData) ||
		string(published[0].BackendV6Data) != string(published[1].BackendV6Data) {
		t.Errorf("first %+v, with another node address %+v", published[0], published[1])
	}
}

// scriptedStore returns each of errs from Network in turn and then a config.
type scriptedStore struct {
	lease.Store
	errs []string
}

func (s *scriptedStore) Network(context.Context) (lease.Network, error) {
	if len(s.errs) == 0 {
		return lease.Network{EnableIPv4: true}, nil
	}
	err := errors.New(s.errs[0])
	s.errs = s.errs[1:]
	return lease.Network{}, err
}

func TestAwaitNetworkRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, logged := testLog()
		d := &daemon{cfg: &config.Config{}, log: log}
		if c := d.conditions(); len(c) != 1 || c[0] != (control.Condition{Name: "config", Reason: "not read yet"}) {
			t.Errorf("before the first attempt: %+v", c)
		}
		start := time.Now()
		network, err := d.awaitNetwork(t.Context(), &scriptedStore{errs: []string{"one", "one", "one", "two", "two"}})
		if err != nil || !network.EnableIPv4 {
			t.Fatal(network, err)
		}
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("five attempts took %v", took)
		}
		if got := strings.Count(logged.String(), "\n"); got != 2 || !strings.Contains(logged.String(), "err=two") {
			t.Errorf("two causes logged as %q", logged.String())
		}
		if c := d.conditions(); len(c) != 1 || c[0] != (control.Condition{Name: "config", Reason: "two"}) {
			t.Errorf("while waiting: %+v", c)
		}
	})
}

func TestAwaitNetworkCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _ := testLog()
		d := &daemon{cfg: &config.Config{}, log: log}
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := d.awaitNetwork(ctx, &scriptedStore{errs: slices.Repeat([]string{"no"}, 9)})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 2500*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestLatestReplacesOldValue(t *testing.T) {
	l := make(latest[int], 1)
	for i := range 3 {
		l.put(i)
	}
	if got := <-l; got != 2 {
		t.Errorf("got %d", got)
	}
}

func TestJoinValid(t *testing.T) {
	if got := joinValid(prefix("10.5.1.0/24"), prefix("fd00::/64")); got != "10.5.1.0/24 fd00::/64" {
		t.Errorf("got %q", got)
	}
	if got := joinValid(netip.Addr{}, addr("fd00::1")); got != "fd00::1" {
		t.Errorf("got %q", got)
	}
}
