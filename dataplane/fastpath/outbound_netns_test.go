//go:build amd64 || arm64

package fastpath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"weft/dataplane/fib"
	"weft/deploy/lab"
	"weft/encap"
)

// outboundTwin is the outbound program in Go, apart from the flows that send in bulk.
type outboundTwin struct {
	underlay
	table   *fib.Table[int]
	mtu     int // of the path to a
	tosMask uint8
	paused  bool
	avoided bool // a is
}

// outbound returns the frame that the program sends, or the reason for which it passes the packet.
func (w outboundTwin) outbound(pkt []byte) ([]byte, Pass) {
	in, err := encap.ParseInner(pkt)
	if err != nil || !(twin{}).carries(&in, pkt) {
		return nil, PassUnusual
	}
	i, ok := w.table.Lookup(in.Dst)
	local := slices.ContainsFunc(localNode.Prefixes, func(p netip.Prefix) bool { return p.Contains(in.Dst) })
	tos := encap.TOS(pkt)
	_, overhead := w.headers()
	switch {
	case local, !ok, !w.others[i].Fast, w.avoided && w.others[i].Endpoint.Addr() == w.a,
		w.others[i].Endpoint.Addr().Is4() != w.self.Is4():
		return nil, PassNoPeer
	case w.paused:
		return nil, PassPaused
	case tos >= 0xfc:
		return nil, PassProbe
	case len(pkt)+overhead > w.mtu:
		return nil, PassNoRoute
	}
	f := outerFrame(w.self, w.others[i].Endpoint.Addr(), tos&w.tosMask, pkt)
	binary.BigEndian.PutUint16(f[ethernet+overhead-8:], sourcePort)
	return f, notOurs
}

// outboundLab is a node with a route and a neighbour entry for a, in which outbound runs.
type outboundLab struct {
	*Path
	node *lab.Node
}

func newOutboundLab(t testing.TB, u underlay, s settingsValue) *outboundLab {
	t.Helper()
	l := lab.Start(t, lab.Options{Nodes: 1, PodsPerNode: -1})
	o := &outboundLab{node: l.Nodes[0]}
	if err := o.node.AddAddr("eth0", netip.PrefixFrom(u.self, u.self.BitLen()/2)); err != nil {
		t.Fatal(err)
	}
	if err := o.node.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		s.Underlay = uint32(eth0.Index)
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: eth0.Index, IP: u.a.AsSlice(),
			State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2}})
	}); err != nil {
		t.Fatal(err)
	}
	s.Device, s.Link = 1, ethernet
	o.Path = newTestPath(t, u, s)
	return o
}

// run runs the program on a packet, and returns the frame that it sends or the counter that it has
// increased.
func (o *outboundLab) run(t testing.TB, pkt []byte, link *ebpf.RunOptions) ([]byte, Pass) {
	t.Helper()
	protocol := uint16(0x0800)
	if len(pkt) >= 40 && pkt[0]>>4 == 6 { // the kernel refuses to run a program on a shorter one
		protocol = 0x86dd
	}
	link.Data = append(binary.BigEndian.AppendUint16(make([]byte, 12), protocol), pkt...)
	link.DataOut = make([]byte, len(link.Data)+256)
	before := o.Stats().Passed
	var verdict uint32
	if err := o.node.Do(func() (err error) {
		verdict, err = o.objects.Outbound.Run(link)
		return err
	}); err != nil {
		t.Fatalf("%x: %v", pkt, err)
	}
	if int32(verdict) == actRedirect {
		return link.DataOut, notOurs
	}
	if int32(verdict) != actPass || !bytes.Equal(link.DataOut, link.Data) {
		t.Fatalf("%x: verdict %d, changed to %x", pkt, int32(verdict), link.DataOut)
	}
	for p, n := range o.Stats().Passed {
		if n > before[p] {
			return nil, p
		}
	}
	t.Fatalf("%x: passed without a count", pkt)
	return nil, notOurs
}

func (o *outboundLab) compare(t testing.TB, w outboundTwin, pkt []byte) (taken bool) {
	t.Helper()
	want, wantPass := w.outbound(pkt)
	got, pass := o.run(t, pkt, &ebpf.RunOptions{})
	if pass != wantPass || !bytes.Equal(got, want) {
		t.Fatalf("%+v\npacket %x\npassed for %v, want %v\n%x, want\n%x", w, pkt, pass, wantPass, got, want)
	}
	return got != nil
}

// outboundSeeds are inner packets from this node.
func outboundSeeds() [][]byte {
	all := seeds() // of other nodes, and broken ones
	for _, dst := range []string{"10.5.2.7", "10.5.3.7", "10.5.1.7", "10.5.4.7", "10.9.9.9"} {
		for _, tos := range []uint8{0, 1, 0xb8, 0xfb, 0xfc, 0xff} {
			for _, n := range []int{0, 8, 40, 1300, 1332, 1333, 1352, 1353, 1432, 1433, 1452, 1453, 1600} {
				all = append(all, inner("10.5.1.2", dst, 17, tos, n))
			}
		}
	}
	for n := range 256 { // for all checksums of the outer header
		all = append(all, inner("10.5.1.2", "10.5.2.7", 17, 0, n))
	}
	for _, dst := range []string{"fd00:2::7", "fd00:3::7", "fd00:4::7", "::ffff:10.5.2.7"} {
		for _, next := range []uint8{6, 17, 58, 0, 44, 132} {
			all = append(all, inner("fd00:1::2", dst, next, 2, 40), inner("fd00:1::2", dst, next, 0xff, 1400))
		}
	}
	return all
}

// TestNetnsOutboundTwin compares the program with its twin.
func TestNetnsOutboundTwin(t *testing.T) {
	for _, w := range []outboundTwin{
		{mtu: 1500}, {mtu: 1400, tosMask: 3}, {mtu: 1500, tosMask: 0xff},
		{mtu: 1500, paused: true}, {mtu: 1500, avoided: true},
	} {
		for name, u := range underlays {
			w.underlay = u
			t.Run(fmt.Sprintf("%s MTU %d mask %d paused %v avoided %v", name, w.mtu, w.tosMask,
				w.paused, w.avoided), func(t *testing.T) {
				compareOutbound(t, w)
			})
		}
	}
}

func compareOutbound(t *testing.T, w outboundTwin) {
	w.table = fib.New(w.others)
	s := settingsValue{TOSMask: w.tosMask}
	if w.paused {
		s.Flags = flagPaused
	}
	o := newOutboundLab(t, w.underlay, s)
	if err := o.SetPathMTUs(map[netip.Addr]int{w.a: w.mtu}); err != nil {
		t.Fatal(err)
	}
	if err := o.Avoid(map[netip.Addr]bool{w.a: w.avoided}); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(3, 4))
	taken := 0
	for _, pkt := range outboundSeeds() {
		if len(pkt) < 20 {
			continue // the kernel refuses to run a program on it
		}
		for range 3 {
			if o.compare(t, w, pkt) {
				taken++
			}
			pkt = slices.Clone(pkt) // then with a random byte changed
			pkt[random.IntN(len(pkt))] = byte(random.Uint32())
		}
	}
	if (taken > 0) == (w.paused || w.avoided) {
		t.Errorf("the program took %d packets", taken)
	}
}

// TestNetnsOutboundProbes runs the program on echoes with the priorities of the mesh probe.
func TestNetnsOutboundProbes(t *testing.T) {
	o := newOutboundLab(t, onIPv4, settingsValue{})
	pkt := inner("10.5.1.2", "10.5.2.0", 1, 0, 64)
	const workers, fast = 0x57454654, 0x57454655 // of package probe
	check := func(avoided bool, priority uint32, want Pass) {
		t.Helper()
		if err := o.Avoid(map[netip.Addr]bool{onIPv4.a: avoided}); err != nil {
			t.Fatal(err)
		}
		// struct __sk_buff of linux/bpf.h: the priority is its ninth word.
		context := make([]byte, 192)
		binary.NativeEndian.PutUint32(context[32:], priority)
		if _, got := o.run(t, pkt, &ebpf.RunOptions{Context: context}); got != want {
			t.Errorf("avoided %v, priority %#x: passed for %v, want %v", avoided, priority, got, want)
		}
	}
	check(false, 0, notOurs)
	check(false, workers, PassProbe)
	check(false, fast, notOurs)
	check(true, 0, PassNoPeer)
	check(true, workers, PassNoPeer)
	check(true, fast, notOurs)
}

// burst runs the program on a packet n times, and reports whether it has taken all.
func (o *outboundLab) burst(t testing.TB, pkt []byte, n int) bool {
	t.Helper()
	verdict := uint32(actRedirect)
	if err := o.node.Do(func() (err error) {
		frame := append([]byte{12: 8, 13: 0}, pkt...)
		for i := 0; i < n && err == nil && verdict == actRedirect; i++ {
			verdict, err = o.objects.Outbound.Run(&ebpf.RunOptions{Data: frame})
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return verdict == actRedirect
}

// TestNetnsOutboundAnswers lets a flow send more packets than a sparse one, but wait for an answer
// now and then.
func TestNetnsOutboundAnswers(t *testing.T) {
	o := newOutboundLab(t, onIPv4, settingsValue{})
	if err := o.node.Do(func() error { onIPv4.listen(t); return nil }); err != nil {
		t.Fatal(err)
	}
	pkt, answer := inner("10.5.1.2", "10.5.2.7", 17, 0, 64), inner("10.5.2.7", "10.5.1.2", 17, 0, 64)
	for i := range 20 { // fewer bytes than a flow in bulk has in a window
		if err := o.Beat(); err != nil {
			t.Fatal(err)
		}
		if !o.burst(t, pkt, 100) {
			t.Fatalf("after %d answers, the program passed for %v", i, o.Stats().Passed)
		}
		if _, taken := runInbound(t, o.Path, onIPv4.frame(onIPv4.a, 0, 0, answer)); !taken {
			t.Fatal("the answer was not taken")
		}
	}
}

// TestNetnsOutboundBulk lets a flow send in bulk: with a daemon, the program gives it to the
// workers until it is silent.
func TestNetnsOutboundBulk(t *testing.T) {
	for name, u := range underlays {
		t.Run(name, func(t *testing.T) { outboundBulk(t, u) })
	}
}

func outboundBulk(t *testing.T, u underlay) {
	o := newOutboundLab(t, u, settingsValue{})
	pkt := inner("10.5.1.2", "10.5.2.7", 17, 0, 1400)
	// More than a sparse flow has in a window.
	burst := func() bool { return o.burst(t, pkt, 400) }
	if !burst() {
		t.Errorf("without a daemon: passed for %v", o.Stats().Passed)
	}
	if err := o.node.Do(func() error { u.listen(t); return nil }); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second) // on a busy machine a burst may take several windows
	for taken := true; taken; taken = burst() {
		if time.Now().After(deadline) {
			t.Fatal("with a daemon, the program takes a flow in bulk")
		}
		if err := o.Beat(); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Beat(); err != nil {
		t.Fatal(err)
	}
	if _, p := o.run(t, pkt, &ebpf.RunOptions{}); p != PassBulk {
		t.Errorf("the next packet: passed for %v", p)
	}
	time.Sleep(silence)
	if _, p := o.run(t, pkt, &ebpf.RunOptions{}); p != notOurs {
		t.Errorf("after a silence: passed for %v", p)
	}
}

// silence is longer than SILENCE of the programs.
const silence = 120 * time.Millisecond

// TestNetnsOutboundSilence lets the program pass a packet of a flow for each reason that may end
// before the flow does: the workers keep the flow until it is silent for a while.
func TestNetnsOutboundSilence(t *testing.T) {
	o := newOutboundLab(t, onIPv4, settingsValue{})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(o.node.Do(func() error { onIPv4.listen(t); return nil }))
	avoid := func(on bool) { must(o.Avoid(map[netip.Addr]bool{onIPv4.a: on})) }
	setFlags := func(flags uint8) {
		var s settingsValue
		must(o.objects.Settings.Lookup(uint32(0), &s))
		s.Flags = flags
		must(o.objects.Settings.Put(uint32(0), s))
	}
	setMTU := func(mtu int) { must(o.SetPathMTUs(map[netip.Addr]int{onIPv4.a: mtu})) }
	nothing := func() {}
	for _, r := range []passReason{
		{PassNoPeer, func() { avoid(true) }, func() { avoid(false) }, 0},
		{PassPaused, func() { setFlags(flagPaused) }, func() { setFlags(0) }, 0},
		{PassNoRoute, func() { setMTU(1000) }, func() { setMTU(1500) }, 0},
		{PassProbe, nothing, nothing, 0xfc},
	} {
		must(lab.Await(t.Context(), 20*time.Second, r.pass.String(), func() error { return o.keepFlow(t, r) }))
		for range 3 { // each packet of the flow begins the silence again
			time.Sleep(silence / 4)
			o.runAlive(t, 0)
		}
		time.Sleep(silence)
		if p := o.runAlive(t, 0); p != notOurs {
			t.Errorf("%v: after a silence: passed for %v", r.pass, p)
		}
	}
}

// passReason is a reason for passing a packet with this TOS, between two calls.
type passReason struct {
	pass       Pass
	begin, end func()
	tos        uint8
}

// runAlive runs the program on a packet of one flow, while the daemon runs.
func (o *outboundLab) runAlive(t *testing.T, tos uint8) Pass {
	t.Helper()
	if err := o.Beat(); err != nil {
		t.Fatal(err)
	}
	_, p := o.run(t, inner("10.5.1.2", "10.5.2.7", 17, tos, 1000), &ebpf.RunOptions{})
	return p
}

// keepFlow lets the program pass a packet and checks that it then passes the others of the flow. It
// returns an error if that took so long that the flow may have returned.
func (o *outboundLab) keepFlow(t *testing.T, r passReason) error {
	t.Helper()
	begin := time.Now()
	r.begin()
	if p := o.runAlive(t, r.tos); p != r.pass {
		t.Fatalf("passed for %v, want %v", p, r.pass)
	}
	r.end()
	first, second := o.runAlive(t, 0), o.runAlive(t, 0)
	if took := time.Since(begin); took > silence/2 {
		return fmt.Errorf("the packets took %v", took)
	}
	if first != PassBulk || second != PassBulk {
		t.Errorf("%v: the next packets passed for %v and %v, want %v", r.pass, first, second, PassBulk)
	}
	_, p := o.run(t, inner("10.5.1.9", "10.5.2.7", 17, 0, 1000), &ebpf.RunOptions{})
	if p != notOurs {
		t.Errorf("%v: a packet of another flow passed for %v", r.pass, p)
	}
	return nil
}

// FuzzOutbound compares the program with its twin. It needs the right to load programs.
func FuzzOutbound(f *testing.F) { fuzzOutbound(f, onIPv4) }

// FuzzOutboundOuter6 is FuzzOutbound for outer IPv6.
func FuzzOutboundOuter6(f *testing.F) { fuzzOutbound(f, onIPv6) }

func fuzzOutbound(f *testing.F, u underlay) {
	w := outboundTwin{underlay: u, table: fib.New(u.others), mtu: 1500, tosMask: encap.MaskECN}
	o := newOutboundLab(f, u, settingsValue{TOSMask: w.tosMask})
	for _, s := range outboundSeeds() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const longest = 2000
		if len(b) < 20 || len(b) > longest {
			return // the kernel refuses to run a program on shorter ones
		}
		o.compare(t, w, b)
	})
}
