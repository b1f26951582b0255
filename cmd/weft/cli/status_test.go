package cli

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/cmd/buildinfo"
	"weft/cmd/control"
	"weft/ctrl"
	"weft/lease/subnetenv"
	"weft/metrics"
)

func screenText(t *testing.T, p *screen, color bool) string {
	t.Helper()
	var b strings.Builder
	if err := p.write(&b, color); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestScreen(t *testing.T) {
	var p screen
	p.add(false, "a", "long cell", "end")
	p.add(true, "größer", "x")
	p.gap()
	p.add(false, "own columns", "y")
	want := "  a       long cell  end\n! größer  x\n\n  own columns  y\n"
	if got := screenText(t, &p, false); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := screenText(t, &p, true); !strings.Contains(got, "\n\x1b[31m  größer  x\x1b[0m\n") {
		t.Errorf("%q", got)
	}
}

// healthy is the status of a node without problems.
func healthy(now time.Time) control.Status {
	return control.Status{
		Node: "n1", Ready: true, Backend: "udp", Port: 8285, Device: "flannel0", MTU: 1472,
		Conditions: []control.Condition{{Name: "lease", OK: true}, {Name: "rules", OK: true}},
		Network:    &control.Network{Network: netip.MustParsePrefix("10.5.0.0/16")},
		Interface:  &control.Interface{Name: "eth0", MTU: 1500, Address: netip.MustParseAddr("192.0.2.1"), Public: netip.MustParseAddr("192.0.2.1"), Reason: "default route"},
		Lease:      &control.Lease{Held: true, Subnet: netip.MustParsePrefix("10.5.1.0/24"), Expires: now.Add(90 * time.Minute)},
		Store:      control.Store{Kind: "etcd", Endpoints: []string{"http://e:2379"}, Prefix: "/p", Connected: true, Since: now.Add(-time.Minute), Revision: 7},
		Nodes: []control.Node{{Name: "n2", Subnet: netip.MustParsePrefix("10.5.2.0/24"), Public: netip.MustParseAddr("192.0.2.2"),
			Path:  &control.Path{Sent: 9, Lost: 1, RTTMedian: 0.00025, MTU: 1472},
			Heard: now.Add(-time.Second), Sent: now.Add(-2 * time.Second)}},
		Traffic: &metrics.Traffic{Engine: "offload",
			FastPath: metrics.FastPath{Active: true, Out: metrics.Volume{Packets: 3, Bytes: 1e6}, In: metrics.Volume{Packets: 2, Bytes: 1e6}},
			Out:      metrics.Volume{Packets: 4, Bytes: 4e6}, In: metrics.Volume{Packets: 2, Bytes: 1e6},
			Nodes: []metrics.NodeTraffic{{Node: "n2",
				Out:      metrics.Volume{Packets: 4, Bytes: 4e6},
				In:       metrics.Volume{Packets: 2, Bytes: 1e6},
				FastPath: metrics.NodeFastPath{Out: metrics.Volume{Packets: 3, Bytes: 1e6}, In: metrics.Volume{Packets: 2, Bytes: 1e6}}}},
			Features: []metrics.Feature{{Name: "udp-gso", Reason: "too old"}, {Name: "udp-gro", Used: true}},
			Drops:    []metrics.Drop{{Reason: "no_node", Packets: 3, Meaning: "gone"}, {Reason: "no_room"}}},
	}
}

func healthyHost() interfaces {
	return interfaces{all: []iface{
		{name: "flannel0", mtu: 1472}, {name: "cni0", mtu: 1500, prefixes: []netip.Prefix{netip.MustParsePrefix("10.5.1.1/24")}}}}
}

func TestStatusScreen(t *testing.T) {
	now := time.Now()
	p := statusScreen(healthy(now), healthyHost(), now)
	const want = `  node       n1, ready, weftd 
  store      etcd http://e:2379 prefix /p, connected for 1m0s, revision 7
  network    10.5.0.0/16
  lease      10.5.1.0/24, expires in 1h30m
  backend    udp, device flannel0, port 8285, engine offload, 0 workers
             without udp-gso: too old
  fast path  used
  interface  eth0 192.0.2.1, default route
  MTU        pods 1472, bridge cni0 1500, flannel0 1472, eth0 1500

  met  lease, rules

  sent      4 packets, 4.0 MB
            kernel 3 packets, 1.0 MB; workers 1 packets, 3.0 MB
  received  2 packets, 1.0 MB
            kernel 2 packets, 1.0 MB; workers 0 packets, 0.0 MB
  dropped   3 no_node: gone

  NODE  SUBNET       ADDRESS    RTT      LOSS  MTU   HEARD  SENT  KERNEL  STATE
  n2    10.5.2.0/24  192.0.2.2  0.25 ms  1/9   1472  1s     2s    40 %    ok
`
	if got := screenText(t, p, false); got != strings.ReplaceAll(want, "weftd \n", "weftd\n") {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if p.problem() {
		t.Error("a healthy node has a problem")
	}
}

// nodeLines returns the table of nodes.
func nodeLines(t *testing.T, s control.Status, now time.Time) string {
	t.Helper()
	var p screen
	addNodes(&p, s, now)
	return strings.TrimPrefix(screenText(t, &p, false), "\n")
}

// TestStatusTraffic shows the counters that each kind of backend has.
func TestStatusTraffic(t *testing.T) {
	now := time.Now()
	s := healthy(now)
	s.Traffic.FastPath = metrics.FastPath{Reason: "disabled"}
	if got := nodeLines(t, s, now); !strings.Contains(got, "MTU   HEARD  SENT  STATE\n") {
		t.Errorf("without a fast path:\n%s", got)
	}
	if got := screenText(t, statusScreen(s, healthyHost(), now), false); strings.Contains(got, "kernel") {
		t.Errorf("without a fast path:\n%s", got)
	}
	s.Traffic = nil
	s.Nodes[0].Heard, s.Nodes[0].Sent = time.Time{}, time.Time{}
	s.KernelTraffic = &metrics.KernelTraffic{Devices: []metrics.DeviceTraffic{
		{Device: "flannel.1", Out: metrics.Volume{Packets: 5, Bytes: 6e6}, InDropped: 7}}}
	if got := nodeLines(t, s, now); !strings.Contains(got, "MTU   STATE\n") {
		t.Errorf("vxlan:\n%s", got)
	}
	want := "  sent      flannel.1 5 packets, 6.0 MB\n  received  flannel.1 0 packets, 0.0 MB, 7 dropped\n"
	if got := screenText(t, statusScreen(s, healthyHost(), now), false); !strings.Contains(got, want) {
		t.Errorf("vxlan:\n%s", got)
	}
	s.KernelTraffic.Nodes = []metrics.NodeTraffic{{Node: "n2", Out: metrics.Volume{Bytes: 2e6}}}
	if got := nodeLines(t, s, now); !strings.Contains(got, "MTU   OUT     IN      STATE\n") ||
		!strings.Contains(got, "1472  2.0 MB  0.0 MB  ok\n") {
		t.Errorf("wireguard:\n%s", got)
	}
}

func TestKernelShare(t *testing.T) {
	for _, c := range []struct {
		kernel, all float64
		want        string
	}{{0, 0, "-"}, {0, 9, "0 %"}, {9, 9, "100 %"}, {1, 1e6, "1 %"}, {999_999, 1e6, "99 %"}, {1, 3, "33 %"}} {
		if got := kernelShare(c.kernel, c.all); got != c.want {
			t.Errorf("%v of %v: %q, want %q", c.kernel, c.all, got, c.want)
		}
	}
}

// Each problem is a marked line that names it.
func TestStatusScreenProblems(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		change func(*control.Status, *interfaces)
		want   string // the only marked line
	}{
		"store lost": {func(s *control.Status, _ *interfaces) { s.Store.Connected, s.Store.Error = false, "refused" },
			"! store      etcd http://e:2379 prefix /p, not connected for 1m0s: refused"},
		"store with an error": {func(s *control.Status, _ *interfaces) { s.Store.Error = "line 3" }, "! store "},
		"no lease":            {func(s *control.Status, _ *interfaces) { s.Lease = nil }, "! lease      none"},
		"lease lost":          {func(s *control.Status, _ *interfaces) { s.Lease.Held = false }, "! lease      10.5.1.0/24, lost"},
		"device missing": {func(_ *control.Status, h *interfaces) { h.all = h.all[1:] },
			"! MTU        pods 1472, bridge cni0 1500, flannel0 is missing, eth0 1500"},
		"small bridge": {func(_ *control.Status, h *interfaces) { h.all[1].mtu = 1400 }, "bridge cni0 1400"},
		"condition": {func(s *control.Status, _ *interfaces) {
			s.Conditions[0] = control.Condition{Name: "lease", Reason: "why"}
		}, "! lease  NOT MET: why"},
		"difference":  {func(s *control.Status, _ *interfaces) { s.Kernel.Differences = []string{"replace route x"} }, "lacks: replace route x"},
		"unreachable": {func(s *control.Status, _ *interfaces) { s.Nodes[0].Unreachable = "other backend" }, "unreachable: other backend"},
		"refused": {func(s *control.Status, _ *interfaces) {
			s.Nodes[0].Error, s.Nodes[0].ErrorAt = "refused", now.Add(-time.Second)
		},
			"refused (1s ago)"},
		"silent": {func(s *control.Status, _ *interfaces) {
			s.Nodes[0].Heard, s.Nodes[0].Unanswered = now.Add(-time.Minute), 9
		}, "9 packets sent since it was last heard"},
	} {
		s, host := healthy(now), healthyHost()
		c.change(&s, &host)
		var marked []string
		for l := range strings.Lines(screenText(t, statusScreen(s, host, now), false)) {
			if strings.HasPrefix(l, "!") {
				marked = append(marked, l)
			}
		}
		if len(marked) != 1 || !strings.Contains(marked[0], c.want) {
			t.Errorf("%s: marked %q, want one with %q", name, marked, c.want)
		}
	}
}

func TestKernelState(t *testing.T) {
	prefix := netip.MustParsePrefix
	have := ctrl.State{
		Links: []ctrl.Link{{Name: "flannel.1", Kind: ctrl.KindVXLAN, MTU: 1400}, {Name: "eth0", MTU: 1500, Up: true}},
		Routes: []ctrl.Route{{Dst: prefix("10.5.2.0/24"), Via: netip.MustParseAddr("10.5.2.0"), Dev: "flannel.1", Protocol: ctrl.RouteProtocol},
			{Dst: prefix("192.0.2.0/24"), Dev: "eth0"}},
		FDB: []ctrl.FDBEntry{{Dev: "flannel.1", Dst: netip.MustParseAddr("192.0.2.2")}},
	}
	k := newKernelState(have, subnetenv.File{Subnet: prefix("10.5.1.1/24"), MTU: 1450})
	if len(k.Devices) != 1 || len(k.Routes) != 1 || len(k.Entries) != 1 || k.Subnet != prefix("10.5.1.0/24") {
		t.Errorf("%+v", k)
	}
	if want := []string{"device flannel.1 is down", "device flannel.1 has MTU 1400, pods have 1450"}; strings.Join(k.Problems, "|") != strings.Join(want, "|") {
		t.Errorf("%q, want %q", k.Problems, want)
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0}, {ExitStatus(0), 0}, {ExitStatus(7), 7}, {errors.New("x"), 1},
		{control.ErrNoDaemon, 3}, {control.ErrNoAnswer, 3}, {control.ErrPermission, 3}, {control.ErrUnknownPath, 1},
		{usageError{NewRoot(buildinfo.Info{}), errors.New("x")}, 2},
	} {
		var b strings.Builder
		if got := explain(&b, c.err); got != c.want || strings.Count(b.String(), "\n") > 1 {
			t.Errorf("%v: %d, want %d: %q", c.err, got, c.want, b.String())
		}
	}
}
