package dataplane

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
	"weft/dataplane/fib"
	"weft/dataplane/tun"
	"weft/deploy/lab"
	"weft/encap"
	"weft/encap/checksum"
	"weft/encap/offload"
)

// TestNetnsCompareModes sends seeded random traffic through engines of every mode and with each
// feature disabled in turn. It compares the received packets byte for byte, in order per flow, with
// those sent.
//
// Two TUN devices take the place of pods. The kernel of node 1 forwards frames that the test writes
// to the first to its engine's device. The kernel of node 2 forwards frames that its engine writes
// to the second, and splits GSO frames.
func TestNetnsCompareModes(t *testing.T) {
	configs := map[string][2]Config{
		"offload":                {{}, {}},
		"offload, one worker":    {{Workers: 1}, {Workers: 1}},
		"portable":               {{Mode: ModePortable}, {Mode: ModePortable}},
		"portable to offload":    {{Mode: ModePortable}, {}},
		"offload to portable":    {{}, {Mode: ModePortable}},
		"ECN and DSCP":           {{ECN: true, DSCP: true}, {ECN: true, DSCP: true}},
		"ECN, portable":          {{ECN: true, Mode: ModePortable}, {ECN: true, Mode: ModePortable}},
		"source ports":           {{SourcePort: 20_000}, {SourcePort: 20_000}},
		"source ports, portable": {{SourcePort: 20_000, Mode: ModePortable}, {SourcePort: 20_000, Mode: ModePortable}},
	}
	for _, f := range feature.All() {
		off := Config{DisabledFeatures: []feature.Name{f}}
		configs["without "+string(f)] = [2]Config{off, off}
	}
	for name, c := range configs {
		t.Run(name, func(t *testing.T) {
			ov := startOverlay(t, lab.Options{PodsPerNode: -1}, c[0], c[1])
			w := newWire(t, ov)
			for seed := range uint64(3) {
				w.run(t, newMix(seed))
			}
			checkOffloads(t, ov, c, w.noUSO)
			for i, e := range ov.engines {
				for d, n := range e.Stats().Drops {
					if n != 0 && d != DropNeighbourMessage && d != DropMulticast {
						t.Errorf("node %d dropped %d: %v", i+1, n, d)
					}
				}
			}
		})
	}
}

// checkOffloads checks that the offloads were in use: a silent fallback would pass the comparison.
// noUSO means that the kernel has no UDP GSO frames on TUN devices.
func checkOffloads(t *testing.T, ov *overlay, c [2]Config, noUSO bool) {
	t.Helper()
	from, to := ov.engines[0].Stats(), ov.engines[1].Stats()
	off := func(i int, f feature.Name) bool {
		return c[i].Mode == ModePortable || slices.Contains(c[i].DisabledFeatures, f) || f == feature.USO && noUSO
	}
	tsoOut := off(0, feature.VnetHeader) || off(0, feature.TSO) && off(0, feature.USO)
	if few := from.FramesRead < from.Sent.Packets*3/4; few == tsoOut {
		t.Errorf("node 1 read %d frames for %d packets", from.FramesRead, from.Sent.Packets)
	}
	if few := to.MessagesReceived < to.Received.Packets*3/4; few == (off(0, feature.GSO) || off(1, feature.GRO)) {
		t.Errorf("node 2 received %d messages for %d packets", to.MessagesReceived, to.Received.Packets)
	}
	tsoIn := off(1, feature.VnetHeader) || off(1, feature.TSO) && off(1, feature.USO)
	if few := to.FramesWritten < to.Received.Packets*3/4; few == tsoIn {
		t.Errorf("node 2 wrote %d frames for %d packets", to.FramesWritten, to.Received.Packets)
	}
}

// wire is the path through the overlay of a lab: frames go into one end, and packets come out of
// the other.
type wire struct {
	in, out *tun.Queue
	noUSO   bool // the kernel rejects UDP GSO frames (before Linux 6.2)
}

func newWire(t *testing.T, ov *overlay) *wire {
	t.Helper()
	six := []netip.Prefix{netip.MustParsePrefix("fd00:5:1::/64"), netip.MustParsePrefix("fd00:5:2::/64")}
	var ends [2]*tun.Queue
	for i, e := range ov.engines {
		must(t, e.node.Sysctl("ipv6/conf/all/forwarding", "1"))
		must(t, e.node.AddRoute(six[1-i], netip.Addr{}, e.Device()))
		open := tun.OpenOffload
		if i == 1 {
			open = tun.OpenPortable
		}
		must(t, e.node.Do(func() error {
			d, err := open(tun.Config{Name: "pods", Queues: 1, MTU: 1472})
			if err == nil {
				ends[i] = d.Queues()[0]
				t.Cleanup(func() { must(t, d.Close()) })
			}
			return err
		}))
		must(t, e.node.SetUp("pods", true))
		must(t, e.node.AddRoute(subnetOf(i), netip.Addr{}, "pods"))
		must(t, e.node.AddRoute(six[i], netip.Addr{}, "pods"))
	}
	a, b := ov.engines[0].asNode(), ov.engines[1].asNode()
	a.Prefixes, b.Prefixes = append(a.Prefixes, six[0]), append(b.Prefixes, six[1])
	ov.engines[0].SetNodes(a, []fib.Node{b})
	ov.engines[1].SetNodes(b, []fib.Node{a})
	w := &wire{in: ends[0], out: ends[1]}
	// While a neighbour is resolved, later packets sent by other CPUs can overtake the queued ones
	// (net/core/neighbour.c, neigh_update). So resolve it first.
	must(t, w.in.Write(tun.Frame{Packet: udp4("10.5.1.2", "10.5.2.2", 0, 64, 0)}))
	w.next(t)
	return w
}

// run sends the mix in portions that fit every queue on the path, and compares the packets
// received.
func (w *wire) run(t *testing.T, m *mix) {
	t.Helper()
	want := map[flowKey][][]byte{}
	sent := 0
	for range 12 {
		portion := 0
		for portion < 150 {
			f := m.frame()
			packets := packetsOf(t, f)
			w.send(t, f, packets)
			for _, pkt := range packets {
				k := keyOf(pkt)
				want[k] = append(want[k], forwardedTwice(pkt))
				portion++
			}
		}
		sent += portion
		for range portion {
			pkt := w.next(t)
			k := keyOf(pkt)
			normalise(pkt)
			if len(want[k]) == 0 {
				t.Fatalf("unexpected packet of flow %v: %x", k, pkt)
			}
			if !bytes.Equal(pkt, want[k][0]) {
				i := slices.IndexFunc(want[k], func(b []byte) bool { return bytes.Equal(b, pkt) })
				t.Fatalf("flow %v: got %d bytes, which is packet %d of the expected ones\n got %x\nwant %x",
					k, len(pkt), i, pkt, want[k][0])
			}
			want[k] = want[k][1:]
		}
	}
	if sent < 1500 {
		t.Errorf("sent only %d packets", sent)
	}
}

// send writes a frame, or its packets one by one if the kernel rejects it.
func (w *wire) send(t *testing.T, f tun.Frame, packets [][]byte) {
	t.Helper()
	err := w.in.Write(f)
	if !errors.Is(err, tun.ErrGSORejected) {
		must(t, err)
		return
	}
	if f.Header.GSO != offload.GSOUDP {
		t.Fatalf("the kernel rejects a TCP GSO frame: %+v", f.Header)
	}
	w.noUSO = true
	for _, pkt := range packets {
		must(t, w.in.Write(tun.Frame{Packet: pkt}))
	}
}

// next waits for a packet at the other end.
func (w *wire) next(t *testing.T) []byte {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		f, err := w.out.Read()
		must(t, err)
		// Skip packets that the kernel of node 2 sends on a new device.
		if in, err := encap.ParseInner(f.Packet); err == nil && (in.IsNDP(f.Packet) || in.IsMulticast()) {
			continue
		}
		if f.Packet != nil {
			return slices.Clone(f.Packet)
		}
		left := time.Until(deadline)
		if left <= 0 {
			t.Fatal("timeout waiting for a packet")
		}
		fds := []unix.PollFd{{Fd: int32(w.out.FD()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
	}
}

// packetsOf splits a frame into packets.
func packetsOf(t *testing.T, f tun.Frame) (all [][]byte) {
	t.Helper()
	s, err := offload.Split(f.Header, f.Packet)
	must(t, err)
	for n := s.NextLen(); n > 0; n = s.NextLen() {
		b := make([]byte, n)
		s.Next(b)
		all = append(all, b)
	}
	return all
}

// forwardedTwice returns pkt as forwarded by two routers.
func forwardedTwice(pkt []byte) []byte {
	b := slices.Clone(pkt)
	if b[0]>>4 == 6 {
		b[7] -= 2
	} else {
		b[8] -= 2
	}
	normalise(b)
	return b
}

// normalise clears the identification of an IPv4 packet that is never fragmented (RFC 6864). It may
// differ: the segments of a GSO frame have consecutive ones.
func normalise(b []byte) {
	if b[0]>>4 != 4 {
		return
	}
	if binary.BigEndian.Uint16(b[6:]) == dontFragment {
		b[4], b[5] = 0, 0
	}
	header := int(b[0]&15) * 4
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^checksum.Sum(b[:header], 0))
}

// flowKey identifies a flow. The ports are 0 for fragments and protocols without ports.
type flowKey struct {
	src, dst netip.Addr
	proto    uint8
	ports    uint32
}

func keyOf(pkt []byte) flowKey {
	in, err := encap.ParseInner(pkt)
	if err != nil {
		return flowKey{}
	}
	k := flowKey{src: in.Src, dst: in.Dst, proto: in.Proto}
	fragment := in.Version == 4 && binary.BigEndian.Uint16(pkt[6:])&0x3fff != 0 || in.Version == 6 && pkt[6] == 44
	switch {
	case fragment:
		k.proto = 0
	case in.Proto == 6, in.Proto == 17:
		k.ports = binary.BigEndian.Uint32(pkt[in.HeaderLen:])
	}
	return k
}

// mix generates frames of some flows from a seed.
type mix struct {
	rng   *rand.Rand
	flows []mixFlow
}

type mixFlow struct {
	v6      bool
	proto   uint8
	src     int
	port    uint16
	seq     uint32
	id      uint16
	options []byte // TCP
	df      uint16
}

func newMix(seed uint64) *mix {
	m := &mix{rng: rand.New(rand.NewPCG(seed, 11))}
	for i := range 12 {
		f := mixFlow{
			v6:    i%3 == 2,
			proto: []uint8{6, 17}[i%2],
			src:   2 + i%4,
			port:  uint16(40_000 + int(seed)*100 + i),
			seq:   m.rng.Uint32(),
		}
		if i%4 < 2 {
			f.options = []byte{1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, byte(i)}
		}
		if f.proto == 6 || i%4 == 3 {
			f.df = dontFragment
		}
		m.flows = append(m.flows, f)
	}
	return m
}

// frame returns the next frame of the mix.
func (m *mix) frame() tun.Frame {
	f := &m.flows[m.rng.IntN(len(m.flows))]
	switch m.rng.IntN(12) {
	case 0:
		return tun.Frame{Packet: m.unusual()}
	case 1, 2, 3:
		return m.gsoFrame(f)
	case 4: // header only
		if f.proto == 6 {
			return tun.Frame{Packet: m.packet(f, []uint8{0x10, 0x02, 0x11, 0x14, 0xd0}[m.rng.IntN(5)], 0)}
		}
	}
	sizes := []int{1, 7, 64, 64, 64, 536, 1200, 1200, 1348, 1388}
	return tun.Frame{Packet: m.packet(f, 0x10, sizes[m.rng.IntN(len(sizes))])}
}

// gsoFrame returns the next segments of a flow in one GSO frame.
func (m *mix) gsoFrame(f *mixFlow) tun.Frame {
	segment := []int{100, 536, 1200, 1348}[m.rng.IntN(4)]
	n := segment + 1 + m.rng.IntN(40*segment)
	n = min(n, 60_000, 40*segment)
	b := m.packet(f, []uint8{0x10, 0x18, 0x50}[m.rng.IntN(3)], n)
	ip, l4 := 20, 8
	h := offload.Header{
		Flags: offload.NeedsChecksum, GSO: offload.GSOUDP, SegmentSize: uint16(segment), ChecksumOffset: 6,
	}
	if f.v6 {
		ip = 40
	}
	if f.proto == 6 {
		l4 = 20 + len(f.options)
		h.GSO, h.ChecksumOffset = offload.GSOTCPv4, 16
		if f.v6 {
			h.GSO = offload.GSOTCPv6
		}
	}
	h.HeaderLen, h.ChecksumStart = uint16(ip+l4), uint16(ip)
	addrs := b[ip-8 : ip]
	if f.v6 {
		addrs = b[8:40]
	}
	binary.BigEndian.PutUint16(b[ip+int(h.ChecksumOffset):], checksum.Pseudo(addrs, f.proto, len(b)-ip))
	f.id += uint16((n+segment-1)/segment) - 1 // packet has counted one
	return tun.Frame{Header: h, Packet: b}
}

// packet returns the next packet of a flow with n bytes of payload.
func (m *mix) packet(f *mixFlow, flags uint8, n int) []byte {
	src, dst := fmt.Sprintf("10.5.1.%d", f.src), "10.5.2.2"
	if f.v6 {
		src, dst = fmt.Sprintf("fd00:5:1::%d", f.src), "fd00:5:2::2"
	}
	l4 := make([]byte, 8, 80+n)
	check := 6
	binary.BigEndian.PutUint16(l4, f.port)
	binary.BigEndian.PutUint16(l4[2:], 80)
	if f.proto == 6 {
		check = 16
		binary.BigEndian.PutUint32(l4[4:], f.seq)
		l4 = append(l4, 0, 0, 0, 9, uint8(5+len(f.options)/4)<<4, flags, 2, 0, 0, 0, 0, 0)
		l4 = append(l4, f.options...)
		f.seq += uint32(n)
	} else {
		binary.BigEndian.PutUint16(l4[4:], uint16(8+n))
	}
	start := len(l4)
	l4 = l4[:start+n]
	for i := range l4[start:] {
		l4[start+i] = byte(f.seq) + byte(i)*3 + byte(i>>8)
	}
	f.seq++ // so that UDP payloads differ
	if f.proto == 6 {
		f.seq--
	}
	var b, addrs []byte
	if f.v6 {
		b = ip6(src, dst, f.proto, l4)
		addrs = b[8:40]
	} else {
		b = ip4(src, dst, f.proto, f.df, l4)
		setID(b, f.id)
		f.id++
		addrs = b[12:20]
	}
	u := b[len(b)-len(l4):]
	binary.BigEndian.PutUint16(u[check:], ^checksum.Sum(u, checksum.Pseudo(addrs, f.proto, len(u))))
	return b
}

// unusual returns a packet without ports, or with an unusual header.
func (m *mix) unusual() []byte {
	f := &m.flows[m.rng.IntN(len(m.flows))]
	src4, src6 := fmt.Sprintf("10.5.1.%d", f.src), fmt.Sprintf("fd00:5:1::%d", f.src)
	payload := make([]byte, 8+8*m.rng.IntN(100))
	for i := range payload {
		payload[i] = byte(m.rng.Uint32())
	}
	switch m.rng.IntN(9) {
	case 0: // first fragment, without the others
		return ip4(src4, "10.5.2.2", 17, 0x2000, payload)
	case 1: // later fragment
		return ip4(src4, "10.5.2.2", 17, uint16(1+m.rng.IntN(100)), payload)
	case 2: // echo request
		payload[0], payload[1], payload[2], payload[3] = 8, 0, 0, 0
		binary.BigEndian.PutUint16(payload[2:], ^checksum.Sum(payload, 0))
		return ip4(src4, "10.5.2.2", 1, 0, payload)
	case 3: // protocol without ports (GRE)
		return ip4(src4, "10.5.2.3", 47, dontFragment, payload)
	case 4: // IPv4 options that routers ignore
		b := ip4(src4, "10.5.2.2", 17, 0, append([]byte{1, 1, 1, 0}, payload...))
		b[0] = 0x46
		normalise(b)
		return b
	case 5: // UDP with no checksum or a wrong one
		f.proto, f.v6 = 17, false
		b := m.packet(f, 0, 100)
		if m.rng.IntN(2) == 0 {
			b[26], b[27] = 0, 0
		} else {
			b[26] ^= 1
		}
		return b
	case 6: // IPv6 extension header
		ext := append([]byte{17, 0, 1, 4, 0, 0, 0, 0}, payload...)
		return ip6(src6, "fd00:5:2::2", 60, ext)
	case 7: // IPv6 fragment
		frag := append([]byte{17, 0, 0, 1, 0, 0, 0, byte(m.rng.Uint32())}, payload...)
		return ip6(src6, "fd00:5:2::2", 44, frag)
	}
	return ip6(src6, "fd00:5:2::2", 59, payload) // no next header
}
