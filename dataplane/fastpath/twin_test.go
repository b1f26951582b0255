//go:build amd64 || arm64

package fastpath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"weft/dataplane/fib"
	"weft/deploy/lab"
	"weft/encap"
)

const (
	ethernet = 14

	sourcePort = 8290 // of packets to other nodes

	// Values of dataplane.SourceCheck.
	checkKnown, checkStrict, checkOff = 0, 1, 2

	actPass     = -1 // linux/pkt_cls.h, TC_ACT_UNSPEC
	actRedirect = 7  // TC_ACT_REDIRECT
)

var (
	// The address of a makes a checksum that is carried twice, for some lengths.
	onIPv4 = newUnderlay("192.0.2.1", "192.0.184.250", "192.0.2.3", "192.0.2.9", "fd31::2")
	onIPv6 = newUnderlay("fd31::1", "fd31::2", "fd31::3", "fd31::9", "192.0.2.2")

	underlays = map[string]underlay{"IPv4": onIPv4, "IPv6": onIPv6}

	localNode = fib.Node{Name: "self", Prefixes: prefixes("10.5.1.0/24", "fd00:1::/64")}
)

// underlay is the outer addresses of a test.
type underlay struct {
	self, a netip.Addr
	b       netip.Addr // without a fast path
	nobody  netip.Addr
	others  []fib.Node // a, b, and one whose address is of the other family
}

func newUnderlay(self, a, b, nobody, foreign string) underlay {
	u := underlay{self: netip.MustParseAddr(self), a: netip.MustParseAddr(a),
		b: netip.MustParseAddr(b), nobody: netip.MustParseAddr(nobody)}
	node := func(name string, at netip.Addr, p ...string) fib.Node {
		return fib.Node{Name: name, Endpoint: netip.AddrPortFrom(at, 8285), Fast: name != "b",
			Prefixes: prefixes(p...)}
	}
	u.others = []fib.Node{
		node("a", u.a, "10.5.2.0/24", "fd00:2::/64"),
		node("b", u.b, "10.5.3.0/24", "fd00:3::/64"),
		node("c", netip.MustParseAddr(foreign), "10.5.4.0/24", "fd00:4::/64"),
	}
	return u
}

// headers returns the lengths of the outer IP header, and of both outer headers.
func (u underlay) headers() (ip, all int) {
	if u.self.Is4() {
		return 20, encap.OverheadUDP4
	}
	return 40, encap.OverheadUDP6
}

func prefixes(all ...string) (list []netip.Prefix) {
	for _, p := range all {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

// twin is the inbound program in Go, made of the parts that a worker uses.
type twin struct {
	underlay
	table *fib.Table[int]
	check uint8
	ecn   bool
	alive bool
}

// inbound returns the packet that the program hands to the TUN device, or false if it passes the
// frame.
func (w twin) inbound(frame []byte) ([]byte, bool) {
	header, outer := w.headers()
	if len(frame) < ethernet+outer {
		return nil, false
	}
	ip := frame[ethernet:]
	udp, pkt := ip[header:outer], slices.Clone(ip[outer:])
	isOurs, from, tos := w.isOurs4, ip[12:16], ip[1]
	if header == 40 {
		isOurs, from, tos = w.isOurs6, ip[8:24], ip[0]<<4|ip[1]>>4
	}
	switch {
	case !isOurs(frame), binary.BigEndian.Uint16(udp[2:]) != 8285,
		int(binary.BigEndian.Uint16(udp[4:])) != len(ip)-header:
		return nil, false
	case binary.BigEndian.Uint16(udp[6:]) != 0 && w.alive:
		return nil, false
	}
	sender, _ := netip.AddrFromSlice(from)
	in, err := encap.ParseInner(pkt)
	if err != nil || !w.carries(&in, pkt) || !w.accepts(&in, sender) {
		return nil, false
	}
	if w.ecn {
		tos, ok := encap.DecapTOS(encap.TOS(pkt), tos)
		if !ok {
			return nil, false
		}
		if tos != encap.TOS(pkt) {
			encap.SetTOS(pkt, tos)
		}
	}
	return pkt, true
}

// isOurs4 reports whether the frame is an IPv4 packet that may be of the overlay.
func (w twin) isOurs4(frame []byte) bool {
	ip := frame[ethernet:]
	return binary.BigEndian.Uint16(frame[12:]) == 0x0800 && ip[0] == 0x45 && ip[9] == 17 &&
		binary.BigEndian.Uint16(ip[6:])&0x3fff == 0 && sum(ip[:20]) == 0xffff &&
		netip.AddrFrom4([4]byte(ip[16:20])) == w.self && int(binary.BigEndian.Uint16(ip[2:])) == len(ip)
}

// isOurs6 is isOurs4 for IPv6.
func (w twin) isOurs6(frame []byte) bool {
	ip := frame[ethernet:]
	return binary.BigEndian.Uint16(frame[12:]) == 0x86dd && ip[0]>>4 == 6 && ip[6] == 17 &&
		netip.AddrFrom16([16]byte(ip[24:40])) == w.self &&
		int(binary.BigEndian.Uint16(ip[4:])) == len(ip)-40
}

// carries reports whether the programs read the header.
func (w twin) carries(in *encap.Inner, pkt []byte) bool {
	if in.Version == 4 {
		return true
	}
	next := pkt[6]
	known := next == encap.ProtoTCP || next == encap.ProtoUDP || next == 132 ||
		next == 58 && len(pkt) > 40 && !in.IsNDP(pkt)
	return known && !in.Src.Is4In6() && !in.Dst.Is4In6()
}

// accepts is dataplane's checkInner.
func (w twin) accepts(in *encap.Inner, from netip.Addr) bool {
	if w.check == checkOff {
		return true
	}
	if from != w.a && from != w.b {
		return false
	}
	i, leased := w.table.Lookup(in.Src)
	local := func(a netip.Addr) bool {
		return slices.ContainsFunc(localNode.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	switch {
	case leased && w.others[i].Endpoint.Addr() != from, local(in.Src):
		return false
	case !leased && w.check == checkStrict:
		return false
	}
	return local(in.Dst)
}

// newTestPath loads the programs without attaching them. It skips the test if that is impossible.
func newTestPath(t testing.TB, u underlay, s settingsValue) *Path {
	t.Helper()
	p := &Path{counted: make(map[netip.Addr]bool), mtus: make(map[netip.Addr]uint16)}
	if err := p.load(); errors.Is(err, ErrUnsupported) {
		t.Skip("NOT TESTED:", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	s.Local, s.Port, s.Source = u.self.As16(), bigEndian(8285), bigEndian(sourcePort)
	s.Flags |= familyBit(u.self)
	if err := p.objects.Settings.Put(uint32(0), s); err != nil {
		t.Fatal(err)
	}
	if _, err := p.SetNodes(localNode, u.others); err != nil {
		t.Fatal(err)
	}
	return p
}

// listen opens the daemon's socket.
func (u underlay) listen(t testing.TB) net.PacketConn {
	t.Helper()
	network := "udp4"
	if u.self.Is6() {
		network = "udp6"
	}
	c, err := net.ListenPacket(network, ":8285")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// runInbound runs the program on a frame.
func runInbound(t testing.TB, p *Path, frame []byte) ([]byte, bool) {
	t.Helper()
	out := make([]byte, len(frame)+256)
	r := ebpf.RunOptions{Data: frame, DataOut: out}
	verdict, err := p.objects.Inbound.Run(&r)
	if err != nil {
		t.Fatalf("%x: %v", frame, err)
	}
	switch int32(verdict) {
	case actPass:
		if !bytes.Equal(r.DataOut, frame) {
			t.Fatalf("passed frame changed:\n%x\n%x", r.DataOut, frame)
		}
		return nil, false
	case actRedirect:
		return r.DataOut[ethernet:], true
	}
	t.Fatalf("%x: verdict %d", frame, int32(verdict))
	return nil, false
}

// frame returns a frame with the outer headers of the overlay.
func (u underlay) frame(from netip.Addr, tos uint8, checksum uint16, inner []byte) []byte {
	b := outerFrame(from, u.self, tos, inner)
	_, outer := u.headers()
	binary.BigEndian.PutUint16(b[ethernet+outer-2:], checksum)
	return b
}

// outerFrame returns a frame with outer headers, without a UDP checksum.
func outerFrame(from, to netip.Addr, tos uint8, inner []byte) []byte {
	b := make([]byte, 12, ethernet+encap.OverheadUDP6+len(inner))
	if n := len(inner); from.Is4() {
		b = binary.BigEndian.AppendUint16(b, 0x0800)
		ip := []byte{0x45, tos, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0}
		binary.BigEndian.PutUint16(ip[2:], uint16(encap.OverheadUDP4+n))
		ip = append(append(ip, from.AsSlice()...), to.AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], ^sum(ip))
		b = append(b, ip...)
	} else {
		b = append(b, 0x86, 0xdd, 0x60|tos>>4, tos<<4, 0, 0)
		b = append(binary.BigEndian.AppendUint16(b, uint16(8+n)), 17, 64)
		b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	}
	for _, field := range []uint16{8285, 8285, uint16(8 + len(inner)), 0} {
		b = binary.BigEndian.AppendUint16(b, field)
	}
	return append(b, inner...)
}

// inner returns an inner packet with n bytes of payload.
func inner(src, dst string, proto, tos uint8, n int) []byte {
	from, to := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	if from.Is4() {
		b := make([]byte, 20+n)
		b[0], b[1], b[8], b[9] = 0x45, tos, 64, proto
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		copy(b[12:], from.AsSlice())
		copy(b[16:], to.AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^sum(b[:20]))
		return b
	}
	b := make([]byte, 40+n)
	b[0], b[1], b[6], b[7] = 0x60|tos>>4, tos<<4, proto, 64
	binary.BigEndian.PutUint16(b[4:], uint16(n))
	copy(b[8:], from.AsSlice())
	copy(b[24:], to.AsSlice())
	return b
}

// sum returns the Internet checksum's sum of b (RFC 1071).
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// seeds are inner packets of all kinds.
func seeds() [][]byte {
	var all [][]byte
	for _, src := range []string{"10.5.2.7", "10.5.3.7", "10.5.1.7", "10.5.4.7", "10.9.9.9"} {
		for _, dst := range []string{"10.5.1.2", "10.5.2.2", "198.51.100.1"} {
			for tos := range uint8(4) {
				all = append(all, inner(src, dst, 6, tos, 40), inner(src, dst, 17, tos, 8),
					inner(src, dst, 1, tos, 0), inner(src, dst, 1, tos, 1400))
			}
		}
	}
	for _, src := range []string{"fd00:2::7", "fd00:3::7", "fd00:1::7", "fd00:4::7", "::ffff:10.5.2.7"} {
		for _, next := range []uint8{6, 17, 58, 0, 44, 132} {
			all = append(all, inner(src, "fd00:1::2", next, next&3, 40),
				inner(src, "::ffff:10.5.1.2", next, 2, 40))
		}
	}
	for _, kind := range []byte{132, 133, 135, 137, 138} { // around neighbour discovery
		message := inner("fd00:2::7", "fd00:1::2", 58, 0, 40)
		message[40] = kind
		all = append(all, message)
	}
	label := inner("fd00:2::7", "fd00:1::2", 17, 2, 40)
	label[1], label[2], label[3] = label[1]|0x0a, 0xbc, 0xde
	short := inner("10.5.2.7", "10.5.1.2", 17, 0, 0)
	short[0] = 0x46 // options that are missing
	all = append(all, label, short, []byte{}, []byte{0x45}, []byte{0x60}, make([]byte, 60))
	return all
}

// frames returns frames with the seeds, and broken variants.
func (u underlay) frames() [][]byte {
	broken := []change{{12, 0x86}, {14, 0x46}, {16, 7}, {20, 0x20}, {21, 1}, {23, 6}, {30, 9}, {36, 9},
		{38, 9}, {39, 1}}
	if u.self.Is6() {
		// Another version, length, next header (UDP-Lite, fragment, hop-by-hop options) and
		// destination; another port and length of the datagram.
		broken = []change{{12, 8}, {13, 0}, {14, 0x40}, {18, 9}, {19, 1}, {20, 136}, {20, 44}, {20, 0},
			{22, 0xfe}, {38, 0xff}, {53, 9}, {56, 9}, {58, 9}, {59, 1}}
	}
	var all [][]byte
	for _, s := range seeds() {
		for _, from := range []netip.Addr{u.a, u.b, u.nobody} {
			for tos := range uint8(4) {
				all = append(all, u.frame(from, tos, 0, s))
			}
			all = append(all, u.frame(from, 0, 1, s))
		}
		for _, b := range broken {
			f := u.frame(u.a, 0xb8, 0, s)
			f[b.at] = b.value
			all = append(all, f)
			if u.self.Is4() { // and with a right checksum of the outer header
				f = slices.Clone(f)
				f[24], f[25] = 0, 0
				binary.BigEndian.PutUint16(f[24:], ^sum(f[ethernet:ethernet+20]))
				all = append(all, f)
			}
		}
	}
	return all
}

// change is another value of a byte.
type change struct {
	at    int
	value byte
}

// TestNetnsInboundTwin compares the program with its twin.
func TestNetnsInboundTwin(t *testing.T) {
	for name, u := range underlays {
		t.Run(name, func(t *testing.T) {
			u.listen(t)
			for _, w := range []twin{
				{check: checkKnown, alive: true}, {check: checkStrict, alive: true},
				{check: checkOff, alive: true}, {check: checkKnown, ecn: true, alive: true},
				{check: checkKnown},
			} {
				w.underlay, w.table = u, fib.New(u.others)
				compareInbound(t, w)
			}
		})
	}
}

func compareInbound(t *testing.T, w twin) {
	t.Helper()
	s := settingsValue{Device: 1, Underlay: 1, Check: w.check, Stage: 1}
	if w.ecn {
		s.TOSMask = encap.MaskECN
	}
	p := newTestPath(t, w.underlay, s)
	random := rand.New(rand.NewPCG(1, 2))
	taken := 0
	for _, f := range w.frames() {
		for range 3 {
			if w.alive {
				if err := p.Beat(); err != nil {
					t.Fatal(err)
				}
			}
			compare(t, w, p, f, &taken)
			f = slices.Clone(f) // then with a random byte changed
			f[random.IntN(len(f))] = byte(random.Uint32())
		}
	}
	if taken == 0 {
		t.Errorf("%+v: the program took no frame", w)
	}
}

// TestNetnsInboundDaemon runs the program on a packet of a worker in each state of the daemon.
func TestNetnsInboundDaemon(t *testing.T) {
	for name, u := range underlays {
		t.Run(name, func(t *testing.T) { inboundDaemon(t, u) })
	}
}

func inboundDaemon(t *testing.T, u underlay) {
	p := newTestPath(t, u, settingsValue{Device: 1, Underlay: 1})
	f := u.frame(u.a, 0, 1, inner("10.5.2.7", "10.5.1.2", 6, 0, 40))
	check := func(daemon string, want bool) {
		t.Helper()
		if _, taken := runInbound(t, p, f); taken != want {
			t.Errorf("%s: taken %v, want %v", daemon, taken, want)
		}
	}
	check("not started", true)
	c := u.listen(t)
	check("without a heartbeat", true)
	if err := p.Beat(); err != nil {
		t.Fatal(err)
	}
	check("running", false)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	check("killed", true)
	u.listen(t)
	check("started again", false)
	if err := p.Leave(); err != nil {
		t.Fatal(err)
	}
	check("ending", true)
	if err := p.Beat(); err != nil {
		t.Fatal(err)
	}
	check("running again", false)
	if err := lab.Await(t.Context(), 10*time.Second, "stopped", func() error {
		if _, taken := runInbound(t, p, f); !taken {
			return errors.New("the program leaves packets to a daemon without a heartbeat")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func compare(t testing.TB, w twin, p *Path, f []byte, taken *int) {
	t.Helper()
	want, wantTaken := w.inbound(f)
	got, gotTaken := runInbound(t, p, f)
	if gotTaken != wantTaken || !bytes.Equal(got, want) {
		t.Fatalf("%+v\nframe %x\ntaken %v, want %v\n%x, want\n%x", w, f, gotTaken, wantTaken, got, want)
	}
	if gotTaken {
		*taken++
	}
}

// FuzzInbound compares the program with its twin. It needs the right to load programs.
func FuzzInbound(f *testing.F) { fuzzInbound(f, onIPv4) }

// FuzzInboundOuter6 is FuzzInbound for outer IPv6.
func FuzzInboundOuter6(f *testing.F) { fuzzInbound(f, onIPv6) }

func fuzzInbound(f *testing.F, u underlay) {
	w := twin{underlay: u, table: fib.New(u.others), check: checkKnown, ecn: true, alive: true}
	p := newTestPath(f, u, settingsValue{Device: 1, Underlay: 1, TOSMask: encap.MaskECN})
	u.listen(f)
	header, _ := u.headers()
	for _, s := range u.frames() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const longest = 2000
		if len(b) < ethernet+header || len(b) > longest {
			return // the kernel refuses to run a program on shorter ones
		}
		if err := p.Beat(); err != nil {
			t.Fatal(err)
		}
		taken := 0
		compare(t, w, p, b, &taken)
	})
}
