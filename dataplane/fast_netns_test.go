package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weft/dataplane/capture"
	"weft/dataplane/fastpath"
	"weft/dataplane/fib"
	"weft/deploy/lab"
)

// skipWithoutFastPath skips a test on a host that cannot have a fast path, such as a rootless lab.
func skipWithoutFastPath(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, fastpath.ErrUnsupported) {
		t.Skip("NOT TESTED:", err)
	}
}

// underlay6 is an underlay without IPv4.
var underlay6 = []netip.Prefix{netip.MustParsePrefix("fd31::/64")}

// fast is the config of an engine with a fast path.
var fast = Config{FastPath: FastPathAuto, Underlay: "eth0"}

// startFast is startOverlay for engines that know of each other whether they have a fast path.
func startFast(t *testing.T, o lab.Options, configs ...Config) *overlay {
	t.Helper()
	ov := startOverlay(t, o, configs...)
	for i, e := range ov.engines {
		e.mu.Lock()
		err := e.fast.err
		e.mu.Unlock()
		skipWithoutFastPath(t, err)
		if e.config.FastPath != FastPathOff && err != nil {
			t.Fatalf("node %d: %v", i, err)
		}
	}
	ov.connectFast()
	return ov
}

// connectFast is connect with the announcements of the fast path.
func (ov *overlay) connectFast() {
	for _, e := range ov.engines {
		var others []fib.Node
		for _, o := range ov.engines {
			if o != e {
				n := o.asNode()
				n.Fast = o.FastPath().Active
				others = append(others, n)
			}
		}
		e.SetNodes(e.asNode(), others)
	}
}

func TestNetnsFastPath(t *testing.T) {
	off := Config{}
	for _, test := range []struct {
		name     string
		underlay []netip.Prefix
		configs  []Config
		fast     bool
	}{
		{"both", nil, []Config{fast, fast}, true},
		{"sender", nil, []Config{fast, off}, false},
		{"receiver", nil, []Config{off, fast}, false},
		{"both, outer IPv6", underlay6, []Config{fast, fast}, true},
		{"sender, outer IPv6", underlay6, []Config{fast, off}, false},
		{"receiver, outer IPv6", underlay6, []Config{off, fast}, false},
	} {
		for _, underlay := range []lab.Mode{lab.ModeWire, lab.ModeOff} {
			t.Run(fmt.Sprint(test.name, " ", underlay), func(t *testing.T) {
				ov := startFast(t, lab.Options{Mode: underlay, Underlay: test.underlay}, test.configs...)
				ov.expectPing(t, 0, 1)
				ov.expectPing(t, 1, 0)
				from, to := ov.pod(0), ov.pod(1)
				for range 3 {
					must(t, lab.CheckTCP(t.Context(), from.NS, to.NS, podAddr(1), 50_000))
				}
				must(t, lab.CheckTCP(t.Context(), from.NS, to.NS, podAddr(1), 8<<20))
				must(t, lab.CheckTCP(t.Context(), to.NS, from.NS, podAddr(0), 8<<20))
				must(t, lab.CheckUDP(t.Context(), from.NS, to.NS, podAddr(1),
					0, 1, 100, 1424, 1425, 1444, 1445, 4000, 30_000, 65_000))
				for i, e := range ov.engines {
					s := e.Stats()
					t.Logf("node %d: %+v of sent %+v received %+v drops %v", i, s.FastPath, s.Sent, s.Received, s.Drops)
					if took := s.FastPath.Sent.Packets > 10 && s.FastPath.Received.Packets > 10; took != test.fast {
						t.Errorf("node %d: fast path used %v, want %v", i, took, test.fast)
					}
				}
				p, err := from.Ping(t.Context(), podAddr(1), lab.Ping{Count: 200, Interval: time.Millisecond})
				must(t, err)
				t.Logf("ping %v lost %d", p.RTTMedian(), p.Lost())
			})
		}
	}
}

// TestNetnsFastPathPausesForCapture counts the packets of a ping that a capture sees.
func TestNetnsFastPathPausesForCapture(t *testing.T) {
	ov := startFast(t, lab.Options{}, fast, fast)
	e := ov.engines[0]
	awaitFast := func(when string) {
		t.Helper()
		before := e.Stats().FastPath.Sent.Packets
		must(t, lab.Await(t.Context(), 20*time.Second, "packets of the fast path "+when, func() error {
			// A new flow: one that workers have carried stays with them until it is silent.
			err := lab.CheckUDP(t.Context(), ov.pod(0).NS, ov.pod(1).NS, podAddr(1), 100, 100, 100)
			if err == nil && e.Stats().FastPath.Sent.Packets == before {
				err = errors.New("none")
			}
			return err
		}))
	}
	awaitFast("before the capture")
	session, stop, err := e.Capture(capture.Options{})
	must(t, err)
	taken := e.Stats().FastPath
	p, err := ov.pod(0).Ping(t.Context(), podAddr(1), lab.Ping{Count: 50, Interval: time.Millisecond})
	must(t, err)
	if now := e.Stats().FastPath; now.Sent != taken.Sent || now.Received != taken.Received {
		t.Errorf("the fast path has taken packets: %+v, then %+v", taken, now)
	}
	stop()
	var all records
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must(t, session.Run(ctx, &all, 0))
	if p.Received != 50 || len(all) < 100 {
		t.Errorf("captured %d packets of %d pings", len(all), p.Received)
	}
	awaitFast("after the capture")
}

// TestNetnsFastPathJoins sends TCP in bulk over an underlay that cuts frames: the kernel carries it
// on both nodes, and joins the packets before they reach the pod. The underlay also finishes
// checksums, as every wire does: otherwise packets arrive with the mark of the sender's tunnel
// (skb->encapsulation), and the bridge of older kernels (6.1) cuts joined ones again for it.
func TestNetnsFastPathJoins(t *testing.T) {
	for name, underlay := range map[string][]netip.Prefix{"outer IPv4": nil, "outer IPv6": underlay6} {
		t.Run(name, func(t *testing.T) { joins(t, lab.Options{Mode: lab.ModeNIC, Underlay: underlay}) })
	}
}

func joins(t *testing.T, o lab.Options) {
	ov := startFast(t, o, fast, fast)
	ov.expectPing(t, 0, 1)
	counters := func(ns *lab.NS, device string) lab.Counters {
		l, err := ns.Link(device)
		must(t, err)
		return l.Counters
	}
	staged := func() uint64 { return counters(ov.lab.Nodes[1].NS, "flannel0-join").RxPackets }
	arrived := func() uint64 { return counters(ov.pod(1).NS, "eth0").RxPackets }
	const enough = 300 // packets that were to be joined: on a slow machine only bursts are
	frames, before := arrived(), ov.engines[1].Stats()
	for tries := 0; staged() < enough; tries++ {
		if tries == 20 {
			t.Fatalf("the stage got %d packets, want %d", staged(), enough)
		}
		must(t, lab.CheckTCP(t.Context(), ov.pod(0).NS, ov.pod(1).NS, podAddr(1), 1<<20))
	}
	after := ov.engines[1].Stats()
	all := after.Received.Packets - before.Received.Packets
	taken := after.FastPath.Received.Packets - before.FastPath.Received.Packets
	if taken < all*9/10 {
		t.Errorf("the kernel carried %d of %d packets", taken, all)
	}
	// The others of the flow arrive one by one.
	most := taken - staged() + staged()/2
	if got := arrived() - frames; got > most {
		t.Errorf("%d packets arrived as %d frames, want at most %d; the stage got %d", taken, got, most,
			staged())
	}
}

// TestNetnsFastPathSubnetMoves gives the subnet of a node to another one while pings to it run: the
// fast path follows at once, and the node that had it is no longer a source of its packets.
func TestNetnsFastPathSubnetMoves(t *testing.T) {
	ov := startFast(t, lab.Options{Nodes: 3}, fast, fast, fast)
	// A steady flow whose first packets wait for the link address of a node stays with the workers.
	ov.expectPing(t, 0, 1)
	ov.expectPing(t, 0, 2)
	// An address that the pods of two nodes have.
	moving := netip.MustParsePrefix("10.5.9.2/24")
	for _, i := range []int{1, 2} {
		must(t, ov.pod(i).AddAddr("eth0", netip.PrefixFrom(moving.Addr(), 32)))
		must(t, ov.lab.Nodes[i].AddRoute(moving.Masked(), podAddr(i), "cni0"))
	}
	received := func(i int) uint64 { return ov.engines[i].Stats().FastPath.Received.Packets }
	ov.give(1, moving.Masked())
	must(t, lab.Await(t.Context(), 20*time.Second, "packets of the fast path", func() error {
		const silence = 200 * time.Millisecond // after which a flow returns from the workers
		time.Sleep(silence)
		before := received(1)
		p, err := ov.pod(0).Ping(t.Context(), moving.Addr(), lab.Ping{})
		if err == nil && (p.Received == 0 || received(1) == before) {
			err = fmt.Errorf("none of %+v", p)
		}
		return err
	}))
	p, err := ov.pod(0).StartPing(t.Context(), moving.Addr(),
		lab.Ping{Count: -1, Interval: time.Millisecond})
	must(t, err)
	defer p.Stop()
	for _, owner := range []int{1, 2, 1, 2} {
		ov.give(owner, moving.Masked())
		must(t, lab.Await(t.Context(), 20*time.Second, "answers of the new owner", func() error {
			before, answers := received(owner), p.Result().Received
			time.Sleep(50 * time.Millisecond)
			if received(owner) == before || p.Result().Received == answers {
				return fmt.Errorf("%d packets, %d answers", received(owner)-before, p.Result().Received-answers)
			}
			return nil
		}))
		other := 3 - owner
		before := received(other)
		time.Sleep(50 * time.Millisecond)
		if now := received(other); now != before {
			t.Errorf("node %d got %d packets after the subnet moved to node %d", other, now-before, owner)
		}
	}
	r := p.Stop()
	t.Logf("lost %d of %d", r.Lost(), r.Sent)
	if r.Duplicates > 0 {
		t.Errorf("%d duplicates", r.Duplicates)
	}
	const former, packets = 1, 20
	from := net.UDPAddrFromAddrPort(netip.AddrPortFrom(moving.Addr(), 0))
	drops := func() uint64 { return ov.engines[0].Stats().Drops[DropSpoofedInnerSource] }
	before := drops() // of answers that were on their way when the subnet moved
	must(t, ov.pod(former).Do(func() error {
		conn, err := net.DialUDP("udp", from, net.UDPAddrFromAddrPort(netip.AddrPortFrom(podAddr(0), 9)))
		for range packets {
			if err == nil {
				_, err = conn.Write([]byte("x"))
			}
		}
		return errors.Join(err, conn.Close())
	}))
	must(t, lab.Await(t.Context(), 20*time.Second, "drops of the former owner's packets", func() error {
		if n := drops() - before; n != packets {
			return fmt.Errorf("%d, want %d", n, packets)
		}
		return nil
	}))
}

// give gives a further subnet to one of the nodes, which all have a fast path.
func (ov *overlay) give(owner int, subnet netip.Prefix) {
	var nodes []fib.Node
	for i, e := range ov.engines {
		n := e.asNode()
		n.Fast = true
		if i == owner {
			n.Prefixes = append(n.Prefixes, subnet)
		}
		nodes = append(nodes, n)
	}
	for i, e := range ov.engines {
		e.SetNodes(nodes[i], slices.Delete(slices.Clone(nodes), i, i+1))
	}
}
