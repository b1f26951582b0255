package lab_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/deploy/lab"
	"weft/lease/subnetenv"
)

func TestNetnsPods(t *testing.T) {
	l := lab.Start(t, lab.Options{Nodes: 2, PodsPerNode: 2, Mode: lab.ModeWire,
		Underlay6: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}})
	a := l.Nodes[0]
	env := subnetenv.File{Subnet: netip.MustParsePrefix("10.5.1.1/24"),
		Subnet6: netip.MustParsePrefix("fd10:5:1::1/64"), MTU: 1400}
	if err := a.Attach(env); err != nil {
		t.Fatal(err)
	}
	if want := netip.MustParseAddr("10.5.1.3"); a.Pods[1].Addr != want {
		t.Errorf("second pod has %s, want %s", a.Pods[1].Addr, want)
	}
	for _, c := range []struct {
		from *lab.NS
		to   netip.Addr
	}{
		{a.NS, l.Nodes[1].Addr}, {a.NS, l.Nodes[1].Addr6}, {l.Root.NS, a.Addr}, {a.NS, l.Root.Addr6},
		{a.Pods[0].NS, a.Pods[1].Addr}, {a.Pods[0].NS, a.Pods[1].Addr6}, {a.Pods[0].NS, env.Subnet.Addr()},
	} {
		r, err := c.from.Ping(t.Context(), c.to, lab.Ping{Count: 3})
		if err != nil || r.Received != 3 {
			t.Errorf("ping %s from %s: %+v, %v", c.to, c.from.Name, r, err)
		}
	}
	if err := lab.CheckTCP(t.Context(), a.Pods[0].NS, a.Pods[1].NS, a.Pods[1].Addr, 1<<20); err != nil {
		t.Error(err)
	}
	if err := lab.CheckUDP(t.Context(), a.Pods[0].NS, a.Pods[1].NS, a.Pods[1].Addr6, 0, 1, 1400, 3000); err != nil {
		t.Error(err)
	}
}

func TestNetnsModes(t *testing.T) {
	for _, c := range []struct {
		mode              lab.Mode
		segment, checksum bool
	}{{lab.ModeWire, false, true}, {lab.ModeNIC, false, false}, {lab.ModeOff, true, true}} {
		t.Run(string(c.mode), func(t *testing.T) {
			l := lab.Start(t, lab.Options{Mode: c.mode, PodsPerNode: -1, MTU: 1400})
			for ns, device := range map[*lab.NS]string{l.Nodes[0].NS: "eth0", l.Root.NS: "u-node1"} {
				features, err := ns.Features(device)
				if err != nil {
					t.Fatal(err)
				}
				for name, on := range features {
					if strings.HasSuffix(name, "-segmentation") && on && !c.segment {
						t.Errorf("%s %s: %s is on", ns.Name, device, name)
					}
				}
				if features["tx-checksum-ip-generic"] != c.checksum || features["rx-checksum"] != c.checksum {
					t.Errorf("%s %s: checksum offload %v %v, want %v", ns.Name, device,
						features["tx-checksum-ip-generic"], features["rx-checksum"], c.checksum)
				}
				if features["tx-tcp-segmentation"] != c.segment || features["tx-udp-segmentation"] != c.segment {
					t.Errorf("%s %s: tcp and udp segmentation %v %v, want %v", ns.Name, device,
						features["tx-tcp-segmentation"], features["tx-udp-segmentation"], c.segment)
				}
			}
			// With segmentation offload, the receiver counts far fewer frames than the bytes need
			// at this MTU.
			before, err := l.Nodes[1].Link("eth0")
			if err != nil {
				t.Fatal(err)
			}
			const size = 4 << 20
			if err := lab.CheckTCP(t.Context(), l.Nodes[0].NS, l.Nodes[1].NS, l.Nodes[1].Addr, size); err != nil {
				t.Fatal(err)
			}
			after, err := l.Nodes[1].Link("eth0")
			if err != nil {
				t.Fatal(err)
			}
			frames := after.Counters.RxPackets - before.Counters.RxPackets
			if whole := frames < size/1400/2; whole != c.segment {
				t.Errorf("%d frames of %d bytes", frames, size)
			}
		})
	}
}

func TestNetnsFaults(t *testing.T) {
	l := lab.Start(t, lab.Options{Nodes: 3, PodsPerNode: -1})
	a, b, c := l.Nodes[0], l.Nodes[1], l.Nodes[2]
	reaches := func(from, to *lab.Node, want bool) {
		t.Helper()
		r, err := from.Ping(t.Context(), to.Addr, lab.Ping{Count: 2, Timeout: 200 * time.Millisecond})
		if err != nil || (r.Received > 0) != want {
			t.Errorf("%s reaches %s: %+v, %v; want %v", from.Name, to.Name, r, err, want)
		}
	}
	reaches(a, b, true)
	if err := l.Partition(a, b); err != nil {
		t.Fatal(err)
	}
	reaches(a, b, false)
	reaches(b, a, false)
	reaches(a, c, true)
	if err := l.Heal(a, b); err != nil {
		t.Fatal(err)
	}
	reaches(a, b, true)
	if err := l.Partition(l.Root, c); err != nil {
		t.Fatal(err)
	}
	reaches(c, l.Root, false)
	if err := l.Heal(l.Root, c); err != nil {
		t.Fatal(err)
	}
	reaches(c, l.Root, true)
	old := b.Addr
	if err := b.ChangeAddress(netip.MustParseAddr("172.31.0.99")); err != nil {
		t.Fatal(err)
	}
	reaches(a, b, true)
	if r, err := a.Ping(t.Context(), old, lab.Ping{Timeout: 200 * time.Millisecond}); err != nil || r.Received != 0 {
		t.Errorf("ping to the old address: %+v, %v", r, err)
	}
	if err := l.KillNode(b); err != nil {
		t.Fatal(err)
	}
	reaches(a, b, false)
}

func TestNetnsTwoUnderlaySubnets(t *testing.T) {
	l := lab.Start(t, lab.Options{Nodes: 3, PodsPerNode: -1, Underlay: []netip.Prefix{
		netip.MustParsePrefix("172.31.1.0/24"), netip.MustParsePrefix("172.31.2.0/24")}})
	a, b, c := l.Nodes[0], l.Nodes[1], l.Nodes[2]
	if b.Addr != netip.MustParseAddr("172.31.2.11") || c.Addr != netip.MustParseAddr("172.31.1.12") {
		t.Errorf("addresses %s and %s", b.Addr, c.Addr)
	}
	for _, to := range []*lab.Node{b, c} {
		if r, err := a.Ping(t.Context(), to.Addr, lab.Ping{Count: 2}); err != nil || r.Received != 2 {
			t.Errorf("%s to %s: %+v, %v", a.Name, to.Name, r, err)
		}
	}
	if err := l.Partition(a, b); err == nil {
		t.Error("a partition across subnets returned no error")
	}
}

func TestNetnsPingUntilStopped(t *testing.T) {
	l := lab.Start(t, lab.Options{Direct: true, PodsPerNode: -1})
	p, err := l.Nodes[0].StartPing(t.Context(), l.Nodes[1].Addr, lab.Ping{Count: -1, Interval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	err = lab.Await(t.Context(), 5*time.Second, "20 replies", func() error {
		if r := p.Result(); r.Received < 20 {
			return fmt.Errorf("%d replies", r.Received)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r := p.Stop()
	if r.Received < 20 || r.Lost() != 0 || len(r.RTT) != r.Received || r.RTTMedian() <= 0 {
		t.Errorf("%+v", r)
	}
	if second := p.Stop(); second.Sent != r.Sent {
		t.Errorf("second Stop: %d sent, want %d", second.Sent, r.Sent)
	}
}

func TestNetnsDirect(t *testing.T) {
	l := lab.Start(t, lab.Options{Direct: true, PodsPerNode: -1, Mode: lab.ModeWire})
	r, err := l.Nodes[0].Ping(t.Context(), l.Nodes[1].Addr, lab.Ping{Size: 1500, DontFragment: true})
	if err != nil || r.Received != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestNetnsKernelTunnels(t *testing.T) {
	subnets := []netip.Prefix{netip.MustParsePrefix("10.5.1.0/24"), netip.MustParsePrefix("10.5.2.0/24")}
	for _, c := range []struct {
		kind, driver string
		mtu          int
		join         func(n *lab.Node, own netip.Prefix, peers []lab.Peer) (int, error)
	}{
		{"none", "", 1500, func(n *lab.Node, _ netip.Prefix, peers []lab.Peer) (int, error) {
			return n.RoutePeers(peers)
		}},
		{"vxlan", "vxlan", 1450, (*lab.Node).TunnelVXLAN},
		{"ipip", "ipip", 1480, (*lab.Node).TunnelIPIP},
		{"fou", "", 1472, (*lab.Node).TunnelFOU},
	} {
		t.Run(c.kind, func(t *testing.T) {
			l := lab.Start(t, lab.Options{NamePrefix: "x", Direct: true, Mode: lab.ModeWire,
				Management: netip.MustParsePrefix("10.254.7.0/24")})
			if c.driver != "" && !l.Nodes[0].HasDriver(c.driver) {
				t.Skipf("NOT TESTED: the kernel has no %s driver", c.driver)
			}
			for i, n := range l.Nodes {
				other := lab.Peer{Node: l.Nodes[1-i], Subnet: subnets[1-i]}
				mtu, err := c.join(n, subnets[i], []lab.Peer{other})
				if c.kind == "fou" && errors.Is(err, unix.ENOENT) {
					t.Skip("NOT TESTED: the kernel has no foo over UDP: ", err)
				}
				if err != nil || mtu != c.mtu {
					t.Fatalf("MTU %d, %v, want %d", mtu, err, c.mtu)
				}
				env := subnetenv.File{Subnet: netip.PrefixFrom(subnets[i].Addr().Next(), 24), MTU: mtu}
				if err := n.Attach(env); err != nil {
					t.Fatal(err)
				}
				r, err := l.Root.Ping(t.Context(), n.Management, lab.Ping{})
				if err != nil || r.Received != 1 {
					t.Errorf("ping from root to %s (%s): %+v, %v", n.Name, n.Management, r, err)
				}
			}
			a, b := l.Nodes[0].Pods[0], l.Nodes[1].Pods[0]
			r, err := a.Ping(t.Context(), b.Addr, lab.Ping{Count: 3, Size: c.mtu, DontFragment: true})
			if err != nil || r.Received != 3 {
				t.Errorf("%+v, %v", r, err)
			}
			if err := lab.CheckTCP(t.Context(), a.NS, b.NS, b.Addr, 1<<20); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNetnsProcess(t *testing.T) {
	l := lab.Start(t, lab.Options{PodsPerNode: -1})
	n := l.Nodes[1]
	const script = `echo "$WHO"; cat /proc/sys/kernel/hostname; echo here >/run/file; ls /sys/class/net
trap 'exit 7' TERM; echo ready; while :; do :; done`
	p, err := n.Start([]string{"/bin/sh", "-c", script}, "WHO=me")
	if err != nil {
		t.Fatal(err)
	}
	err = lab.Await(t.Context(), 5*time.Second, "the script's output", func() error {
		if !strings.Contains(p.Log(), "ready") {
			return os.ErrNotExist
		}
		return nil
	})
	if err != nil {
		t.Fatal(err, p.Log())
	}
	if lines := p.Tail(100); lines[0] != "me" || lines[1] != "node2" || !slices.Contains(lines, "eth0") {
		t.Errorf("log %q: want the variable, the node's host name and its devices", lines)
	}
	if b, err := os.ReadFile(n.Path("file")); err != nil || string(b) != "here\n" {
		t.Errorf("the node's /run/file: %q, %v", b, err)
	}
	if fds, err := p.FDs(); err != nil || fds < 3 {
		t.Errorf("%d descriptors, %v", fds, err)
	}
	if m, err := p.RSS(); err != nil || m < 1<<16 {
		t.Errorf("%d bytes, %v", m, err)
	}
	if status, err := p.Stop(t.Context()); err != nil || status != 7 {
		t.Errorf("exit status %d, %v, want 7", status, err)
	}
	if p.Running() {
		t.Error("still running")
	}
}

func TestNetnsClose(t *testing.T) {
	l, err := lab.New(t.Context(), lab.Options{Nodes: 2})
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Nodes[0].Start([]string{"/bin/sh", "-c", "read x </dev/zero; while :; do :; done"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if p.Running() {
		t.Error("a process is still running after Close")
	}
	for _, dir := range []string{"/run/netns", "/run/weft-lab"} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s contains %v, %v after Close", dir, left, err)
		}
	}
	if second, err := lab.New(t.Context(), lab.Options{Nodes: 2}); err != nil {
		t.Errorf("second lab with the same names: %v", err)
	} else if err := second.Close(); err != nil {
		t.Error(err)
	}
}

// TestNetnsCPUTime waits until a busy process has used some CPU time and then checks an idle one.
func TestNetnsCPUTime(t *testing.T) {
	l := lab.Start(t, lab.Options{PodsPerNode: -1})
	start := func(script string) *lab.Process {
		p, err := l.Nodes[0].Start([]string{"/bin/sh", "-c", script})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	cpu := func(p *lab.Process) time.Duration {
		used, err := p.CPUTime()
		if err != nil {
			t.Fatal(err)
		}
		return used
	}
	idle, busy := start("exec sleep 60"), start("while :; do :; done")
	const enough = 300 * time.Millisecond
	for end := time.Now().Add(10 * time.Second); cpu(busy) < enough; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("a busy loop used %v in 10 s", cpu(busy))
		}
	}
	if used := cpu(idle); used <= 0 || used >= enough {
		t.Errorf("a sleeping process used %v", used)
	}
}
