package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
	"weft/dataplane/fib"
	"weft/dataplane/tun"
	"weft/dataplane/udp"
	"weft/encap"
	"weft/encap/checksum"
	"weft/encap/offload"
)

func TestOutboundReachesTheNode(t *testing.T) {
	b := newBench(t)
	to2 := udp4("10.5.1.2", "10.5.2.2", 0, 100, 1)
	to3 := udp4("10.5.1.2", "10.5.3.2", 0, 50, 2)
	six := ip6("fd00:5:1::2", "fd00:5:2::2", 59, make([]byte, 30))
	b.leave(slices.Clone(to2), slices.Clone(to3), slices.Clone(six), slices.Clone(to2))
	want := []struct {
		node fib.Node
		data []byte
	}{{node2, to2}, {node3, to3}, {node2, six}, {node2, to2}}
	if len(b.socket.sent) != len(want) {
		t.Fatalf("%d datagrams left, want %d; drops %v", len(b.socket.sent), len(want), b.drops())
	}
	for i, w := range want {
		got := b.socket.sent[i]
		if got.key.To.Addr != w.node.Endpoint || !bytes.Equal(got.data, w.data) {
			t.Errorf("datagram %d: to %v: %x\nwant to %v: %x", i, got.key.To.Addr, got.data, w.node.Endpoint, w.data)
		}
	}
	if s := b.engine.Stats(); s.Sent != (Traffic{4, uint64(2*len(to2) + len(to3) + len(six))}) {
		t.Errorf("counted %+v", s.Sent)
	}
}

func TestSuperFrameLeavesAsSegments(t *testing.T) {
	b := newBench(t)
	frame := superTCP("10.5.1.2", "10.5.2.2", 3000, 1348)
	b.queue.in = []tun.Frame{frame}
	b.round()
	if len(b.socket.sent) != 3 {
		t.Fatalf("%d datagrams, want 3; drops %v", len(b.socket.sent), b.drops())
	}
	var payload []byte
	for i, d := range b.socket.sent {
		if i < 2 && len(d.data) != 1388 {
			t.Errorf("segment %d has %d bytes", i, len(d.data))
		}
		payload = append(payload, d.data[40:]...)
	}
	if !bytes.Equal(payload, frame.Packet[40:]) {
		t.Error("the payload differs")
	}
}

func TestInboundReachesTheTUN(t *testing.T) {
	b := newBench(t)
	first, second := udp4("10.5.2.2", "10.5.1.2", 0, 100, 1), ip6("fd00:5:2::9", "fd00:5:1::2", 59, make([]byte, 30))
	b.arrive("192.0.2.2", slices.Clone(first))
	b.arrive("192.0.2.2", slices.Clone(second))
	got := b.queue.packets(t)
	if len(got) != 2 || !bytes.Equal(got[0], first) || !bytes.Equal(got[1], second) {
		t.Fatalf("got %x; drops %v", got, b.drops())
	}
	s := b.engine.Stats()
	if want := (Traffic{2, uint64(len(first) + len(second))}); s.Received != want || s.Nodes[0].Received != want {
		t.Errorf("counted %+v, of node %+v", s.Received, s.Nodes[0])
	}
}

func TestTrainIsTakenApartAndJoined(t *testing.T) {
	b := newBench(t)
	var train []byte
	var segments [][]byte
	for i := range 40 {
		n := 1000
		if i == 39 {
			n = 300
		}
		segments = append(segments, tcp4("10.5.2.2", "10.5.1.2", uint32(i)*1000, n))
		setID(segments[i], uint16(i)) // they count up, as a sender's do
		train = append(train, segments[i]...)
	}
	b.socket.in = [][]udp.Message{{message("192.0.2.2", 1040, train)}}
	b.round()
	if len(b.queue.out) != 1 || b.queue.out[0].Header.GSO != offload.GSOTCPv4 {
		t.Fatalf("%d frames, first %+v", len(b.queue.out), b.queue.out[0].Header)
	}
	got := b.queue.packets(t)
	if len(got) != len(segments) {
		t.Fatalf("%d packets", len(got))
	}
	for i := range got {
		if !bytes.Equal(got[i], segments[i]) {
			t.Fatalf("packet %d\n got %x\nwant %x", i, got[i], segments[i])
		}
	}
	if s := b.engine.Stats(); s.Received != (Traffic{40, uint64(len(train))}) {
		t.Errorf("counted %+v for %d bytes", s.Received, len(train))
	}
}

// setID gives an IPv4 packet an identification.
func setID(pkt []byte, id uint16) {
	binary.BigEndian.PutUint16(pkt[4:], id)
	pkt[10], pkt[11] = 0, 0
	binary.BigEndian.PutUint16(pkt[10:], ^checksum.Sum(pkt[:20], 0))
}

func TestRefusedSuperFrameIsWrittenAsSegments(t *testing.T) {
	b := newBench(t)
	queue := &pickyQueue{fakeQueue: b.queue}
	b.inner.queues[sparse] = queue
	one, two := tcp4("10.5.2.2", "10.5.1.2", 0, 1000), tcp4("10.5.2.2", "10.5.1.2", 1000, 500)
	setID(two, 1)
	b.socket.in = [][]udp.Message{{message("192.0.2.2", 1040, append(slices.Clone(one), two...))}}
	b.round()
	got := b.queue.packets(t)
	if len(got) != 2 || !bytes.Equal(got[0], one) || !bytes.Equal(got[1], two) {
		t.Fatalf("got %x", got)
	}
	if s := b.engine.Stats(); s.GSOFramesRejected != 1 || s.Received.Packets != 2 {
		t.Errorf("refused %d, received %+v", s.GSOFramesRejected, s.Received)
	}
}

// pickyQueue is a kernel that does not like super-frames.
type pickyQueue struct{ *fakeQueue }

func (q *pickyQueue) Write(f tun.Frame) error {
	if f.Header.GSO != offload.GSONone {
		return tun.ErrGSORejected
	}
	return q.fakeQueue.Write(f)
}

func TestSourceCheck(t *testing.T) {
	const known, strict, off = CheckKnown, CheckStrict, CheckOff
	for _, c := range []struct {
		name               string
		from, src, dst     string
		known, strict, off Drop
	}{
		{"the node's own", "192.0.2.2", "10.5.2.9", "10.5.1.2", 0, 0, 0},
		{"IPv6", "192.0.2.2", "fd00:5:2::9", "fd00:5:1::2", 0, 0, 0},
		{"a stranger", "192.0.2.66", "10.5.2.9", "10.5.1.2", DropUnknownOuterSource, DropUnknownOuterSource, 0},
		{"another node's", "192.0.2.2", "10.5.3.9", "10.5.1.2", DropSpoofedInnerSource, DropSpoofedInnerSource, 0},
		{"our own", "192.0.2.2", "10.5.1.9", "10.5.1.2", DropSpoofedInnerSource, DropSpoofedInnerSource, 0},
		{"in no lease", "192.0.2.2", "8.8.8.8", "10.5.1.2", 0, DropUnleasedInnerSource, 0},
		{"to another node", "192.0.2.2", "10.5.2.9", "10.5.3.2", DropNotForUs, DropNotForUs, 0},
		{"to the host", "192.0.2.2", "10.5.2.9", "192.0.2.1", DropNotForUs, DropNotForUs, 0},
		{"to a group", "192.0.2.2", "10.5.2.9", "224.0.0.1", DropNotForUs, DropNotForUs, 0},
	} {
		for check, want := range map[SourceCheck]Drop{known: c.known, strict: c.strict, off: c.off} {
			b := newBench(t)
			b.engine.config.SourceCheck = check
			pkt := packetBetween(c.src, c.dst)
			b.arrive(c.from, slices.Clone(pkt))
			if want != dropNone {
				if d := b.drops(); len(d) != 1 || d[want] != 1 || len(b.queue.out) != 0 {
					t.Errorf("%s, %v: drops %v, written %d; want %v", c.name, check, d, len(b.queue.out), want)
				}
			} else if len(b.queue.out) != 1 || !bytes.Equal(b.queue.out[0].Packet, pkt) {
				t.Errorf("%s, %v: written %d, drops %v", c.name, check, len(b.queue.out), b.drops())
			}
		}
	}
}

// TestTrainIsCheckedPacketByPacket compares what passes of a train with what passes of its packets alone.
func TestTrainIsCheckedPacketByPacket(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 9))
	addrs := [][2]string{
		{"10.5.2.2", "10.5.1.2"}, {"10.5.2.2", "10.5.1.3"}, {"10.5.3.2", "10.5.1.2"}, {"10.5.2.2", "10.5.9.9"}, {"0.0.0.0", "0.0.0.0"},
		{"fd00:5:2::2", "fd00:5:1::2"}, {"fd00:5:3::2", "fd00:5:1::2"}, {"::", "::"}, {"8.8.8.8", "10.5.1.2"},
	}
	for _, check := range []SourceCheck{CheckKnown, CheckStrict} {
		for range 300 {
			const size = 60
			var train []byte
			alone, together := newBench(t), newBench(t)
			alone.engine.config.SourceCheck, together.engine.config.SourceCheck = check, check
			for range 1 + rng.IntN(20) {
				a := addrs[rng.IntN(len(addrs))]
				if rng.IntN(2) > 0 {
					a = addrs[0]
				}
				var pkt []byte
				if netip.MustParseAddr(a[0]).Is4() {
					pkt = ip4(a[0], a[1], 17, 0, make([]byte, size-20))
				} else {
					pkt = ip6(a[0], a[1], 17, make([]byte, size-40))
				}
				if rng.IntN(6) == 0 {
					pkt[rng.IntN(8)] ^= 1 << rng.IntN(8) // version, header length or length
				}
				train = append(train, pkt...)
				alone.arrive("192.0.2.2", pkt)
			}
			together.socket.in = [][]udp.Message{{message("192.0.2.2", size, train)}}
			together.round()
			if !maps.Equal(alone.drops(), together.drops()) || len(alone.queue.packets(t)) != len(together.queue.packets(t)) {
				t.Fatalf("%v: alone %v, together %v, of %x", check, alone.drops(), together.drops(), train)
			}
		}
	}
}

func packetBetween(src, dst string) []byte {
	if netip.MustParseAddr(src).Is4() {
		return udp4(src, dst, 0, 10, 0)
	}
	return ip6(src, dst, 59, make([]byte, 10))
}

// TestSharedEndpoint is two nodes behind one NAT: both are known by the same address.
func TestSharedEndpoint(t *testing.T) {
	b := newBench(t)
	behind := node3
	behind.Endpoint = netip.MustParseAddrPort("192.0.2.2:9285")
	b.engine.SetNodes(selfNode, []fib.Node{node2, behind})
	b.arrive("192.0.2.2", packetBetween("10.5.3.9", "10.5.1.2"))
	if len(b.queue.out) != 1 {
		t.Errorf("drops %v", b.drops())
	}
}

// TestNodesChangeBetweenMessages makes sure that what is remembered of the last sender does not outlive the view.
func TestNodesChangeBetweenMessages(t *testing.T) {
	b := newBench(t)
	pkt := packetBetween("10.5.2.9", "10.5.1.2")
	b.arrive("192.0.2.2", slices.Clone(pkt))
	b.engine.SetNodes(selfNode, []fib.Node{node3})
	b.arrive("192.0.2.2", slices.Clone(pkt))
	b.engine.SetNodes(selfNode, []fib.Node{node2})
	b.arrive("192.0.2.2", slices.Clone(pkt))
	if len(b.queue.out) != 2 || b.drops()[DropUnknownOuterSource] != 1 {
		t.Errorf("written %d, drops %v", len(b.queue.out), b.drops())
	}
}

func TestTOSGoesOut(t *testing.T) {
	const dscp, ect0 = 46 << 2, 2
	for _, c := range []struct {
		ecn, dscp bool
		want      uint8
	}{{false, false, 0}, {true, false, ect0}, {false, true, dscp}, {true, true, dscp | ect0}} {
		b := newBenchWith(t, Config{ECN: c.ecn, DSCP: c.dscp})
		four, six := packetBetween("10.5.1.2", "10.5.2.2"), packetBetween("fd00:5:1::2", "fd00:5:2::2")
		encap.SetTOS(four, dscp|ect0)
		encap.SetTOS(six, dscp|ect0)
		b.leave(four, six)
		for _, d := range b.socket.sent {
			if d.key.TOS != c.want {
				t.Errorf("ECN %v, DSCP %v: %#x", c.ecn, c.dscp, d.key.TOS)
			}
		}
		if len(b.socket.sent) != 2 {
			t.Errorf("drops %v", b.drops())
		}
	}
}

func TestCongestionMarkComesIn(t *testing.T) {
	for _, addrs := range [][2]string{{"10.5.2.2", "10.5.1.2"}, {"fd00:5:2::2", "fd00:5:1::2"}} {
		b := newBench(t)
		pkt := packetBetween(addrs[0], addrs[1])
		encap.SetTOS(pkt, 46<<2|2)
		m := message("192.0.2.2", len(pkt), pkt)
		m.TOS = 8<<2 | 3
		b.socket.in = [][]udp.Message{{m}}
		b.round()
		want := slices.Clone(pkt)
		encap.SetTOS(want, 46<<2|3)
		if got := b.queue.packets(t); len(got) != 1 || !bytes.Equal(got[0], want) {
			t.Errorf("got %x, want %x; drops %v", got, want, b.drops())
		}
	}
}

// TestEveryDrop reaches every reason, and no other one with it.
func TestEveryDrop(t *testing.T) {
	good := udp4("10.5.1.2", "10.5.2.2", 0, 10, 0)
	inbound := udp4("10.5.2.2", "10.5.1.2", 0, 10, 0)
	cases := map[Drop]func(*bench){
		DropTooShort:           func(b *bench) { b.arrive("192.0.2.2", []byte{0x45, 0, 0}) },
		DropBadVersion:         func(b *bench) { b.arrive("192.0.2.2", bytes.Repeat([]byte{0x75}, 40)) },
		DropBadLength:          func(b *bench) { b.leave(append(slices.Clone(good), 0)) },
		DropUnknownOuterSource: func(b *bench) { b.arrive("192.0.2.99", inbound) },
		DropSpoofedInnerSource: func(b *bench) { b.arrive("192.0.2.3", inbound) },
		DropNotForUs:           func(b *bench) { b.arrive("192.0.2.2", packetBetween("10.5.2.2", "10.5.3.3")) },
		DropMulticast:          func(b *bench) { b.leave(packetBetween("10.5.1.2", "224.0.0.251")) },
		DropNoNode:             func(b *bench) { b.leave(packetBetween("10.5.1.2", "10.5.9.9")) },
		DropNeighbourMessage: func(b *bench) {
			b.leave(ip6("fe80::1", "ff02::2", 58, []byte{133, 0, 0, 0, 0, 0, 0, 0}))
		},
		DropUnleasedInnerSource: func(b *bench) {
			b.engine.config.SourceCheck = CheckStrict
			b.arrive("192.0.2.2", packetBetween("9.9.9.9", "10.5.1.2"))
		},
		DropTruncated: func(b *bench) {
			m := message("192.0.2.2", len(inbound), inbound)
			m.Truncated = true
			b.socket.in = [][]udp.Message{{m}}
			b.round()
		},
		DropCongestion: func(b *bench) {
			m := message("192.0.2.2", len(inbound), inbound)
			m.TOS = 3
			b.socket.in = [][]udp.Message{{m}}
			b.round()
		},
		DropBadFrame: func(b *bench) {
			b.queue.in = []tun.Frame{{Packet: good, Header: offload.Header{GSO: 77}}}
			b.round()
		},
		DropPacketTooBig: func(b *bench) {
			b.socket.refuse = func([]byte) error { return unix.EMSGSIZE }
			b.pathMTU = func(*peer) (int, error) { return 60, nil }
			b.leave(udp4("10.5.1.2", "10.5.2.2", dontFragment, 100, 0))
		},
		DropNoRoom: func(b *bench) {
			b.socket.room, b.socket.full = 1, 1
			b.leave(good, good)
		},
		DropSendError: func(b *bench) {
			b.socket.refuse = func([]byte) error { return errRefused }
			b.leave(good)
		},
		DropTUNDown: func(b *bench) {
			b.queue.writeErr = tun.ErrDown
			b.arrive("192.0.2.2", inbound)
		},
		DropTUNWriteError: func(b *bench) {
			b.queue.writeErr = errRefused
			b.arrive("192.0.2.2", inbound)
		},
	}
	for _, d := range Drops() {
		provoke, ok := cases[d]
		if !ok {
			t.Errorf("no test reaches %v", d)
			continue
		}
		b := newBench(t)
		provoke(b)
		if got := b.drops(); len(got) != 1 || got[d] != 1 {
			t.Errorf("%v: counted %v", d, got)
		}
	}
}

func TestDropNames(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range append(Drops(), dropNone) {
		if d.String() == "" || seen[d.String()] {
			t.Errorf("reason %d has the name %q", d, d)
		}
		seen[d.String()] = true
	}
	if Drop(200).String() != "drop_200" {
		t.Error("a reason that is none has a name")
	}
}

func TestUnreachableIsTold(t *testing.T) {
	b := newBench(t)
	b.leave(packetBetween("10.5.1.2", "10.5.9.9"))
	got := b.queue.packets(t)
	if len(got) != 1 || got[0][20] != 3 || got[0][21] != 0 || netip.AddrFrom4([4]byte(got[0][16:20])) != netip.MustParseAddr("10.5.1.2") {
		t.Fatalf("written %x", got)
	}
	if s := b.engine.Stats(); s.ICMPSent != 1 {
		t.Errorf("counted %d", s.ICMPSent)
	}
}

func TestICMPIsRateLimited(t *testing.T) {
	b := newBench(t)
	for range 3 * icmpBurst {
		b.leave(packetBetween("10.5.1.2", "10.5.9.9"))
	}
	if s := b.engine.Stats(); s.ICMPSent != icmpBurst || s.ICMPSuppressed != 2*icmpBurst || len(b.queue.out) != icmpBurst {
		t.Errorf("sent %d, suppressed %d, written %d", s.ICMPSent, s.ICMPSuppressed, len(b.queue.out))
	}
	b.clock = b.clock.Add(10 * time.Second / icmpPerSecond)
	for range 20 {
		b.leave(packetBetween("10.5.1.2", "10.5.9.9"))
	}
	if s := b.engine.Stats(); s.ICMPSent != icmpBurst+10 {
		t.Errorf("after a pause for 10: sent %d", s.ICMPSent)
	}
	b.clock = b.clock.Add(time.Hour)
	for range 3 * icmpBurst {
		b.leave(packetBetween("10.5.1.2", "10.5.9.9"))
	}
	if s := b.engine.Stats(); s.ICMPSent != 2*icmpBurst+10 {
		t.Errorf("an hour earns more than a burst: sent %d", s.ICMPSent)
	}
}

// narrow makes the path to every node carry mtu bytes, outer headers included.
func (b *bench) narrow(mtu int) *int {
	asked := new(int)
	b.socket.refuse = func(d []byte) error {
		if len(d)+28 > mtu {
			return unix.EMSGSIZE
		}
		return nil
	}
	b.pathMTU = func(*peer) (int, error) { *asked++; return mtu, nil }
	return asked
}

func TestPathMTUIsLearntAndTold(t *testing.T) {
	b := newBench(t)
	asked := b.narrow(1000)
	long, fits := udp4("10.5.1.2", "10.5.2.2", dontFragment, 1000, 0), udp4("10.5.1.2", "10.5.2.2", dontFragment, 972-28, 0)
	b.leave(long, long) // refused in one flush
	b.leave(long)
	b.leave(fits)
	if len(b.socket.sent) != 1 || b.drops()[DropPacketTooBig] != 3 || *asked != 1 {
		t.Fatalf("sent %d, drops %v, the kernel was asked %d times", len(b.socket.sent), b.drops(), *asked)
	}
	told := b.queue.packets(t)
	if len(told) != 3 {
		t.Errorf("told %d times of 3 packets", len(told))
	}
	for _, msg := range told {
		if msg[20] != 3 || msg[21] != 4 || binary.BigEndian.Uint16(msg[26:]) != 972 {
			t.Errorf("told %x", msg[20:28])
		}
	}
	b.socket.refuse = nil // the path is wide again
	b.clock = b.clock.Add(pathMTUAge + time.Second)
	b.leave(long)
	if len(b.socket.sent) != 2 {
		t.Errorf("what was learnt did not expire: drops %v", b.drops())
	}
}

// TestPathMTUExpiresByTheMonotonicClock: a wall clock that is set back does not keep a path narrow.
func TestPathMTUExpiresByTheMonotonicClock(t *testing.T) {
	b := newBench(t)
	b.clock = time.Now()
	b.narrow(1000)
	long := udp4("10.5.1.2", "10.5.2.2", dontFragment, 1000, 0)
	b.leave(long)
	b.socket.refuse = nil
	b.clock = setBack(t, b.clock.Add(2*pathMTUAge), 24*time.Hour)
	b.leave(long)
	if len(b.socket.sent) != 1 {
		t.Errorf("what was learnt did not expire: drops %v", b.drops())
	}
}

// setBack returns what time.Now would say at the time now, had the wall clock been set back: the monotonic clock goes on.
// The standard library has no way to make such a time; the seconds of the wall clock lie above 30 bits of nanoseconds
// (time.Time).
func setBack(t *testing.T, now time.Time, by time.Duration) time.Time {
	t.Helper()
	then := now
	*(*uint64)(unsafe.Pointer(&then)) -= uint64(by/time.Second) << 30
	if then.Sub(now) != 0 || now.Round(0).Sub(then.Round(0)) != by {
		t.Fatalf("%v set back by %v is %v", now, by, then)
	}
	return then
}

func TestPathMTUIsPerNode(t *testing.T) {
	b := newBench(t)
	b.narrow(1000)
	b.leave(udp4("10.5.1.2", "10.5.2.2", dontFragment, 1000, 0))
	b.socket.refuse = nil
	b.leave(udp4("10.5.1.2", "10.5.3.2", dontFragment, 1000, 0))
	if len(b.socket.sent) != 1 || b.socket.sent[0].key.To.Addr != node3.Endpoint {
		t.Errorf("sent %d, drops %v", len(b.socket.sent), b.drops())
	}
}

func TestPathMTUOfIPv6(t *testing.T) {
	b := newBench(t)
	b.narrow(1400)
	b.leave(ip6("fd00:5:1::2", "fd00:5:2::2", 59, make([]byte, 1400)))
	msgs := b.queue.packets(t)
	if len(msgs) != 1 || msgs[0][40] != 2 || binary.BigEndian.Uint32(msgs[0][44:]) != 1372 {
		t.Errorf("told %x", msgs)
	}
}

func TestLongPacketWithoutDFIsCut(t *testing.T) {
	b := newBench(t)
	b.narrow(1000)
	pkt := udp4("10.5.1.2", "10.5.2.2", 0, 2500, 9)
	b.leave(slices.Clone(pkt)) // refused by the kernel, then cut
	b.leave(slices.Clone(pkt)) // known to be too long, and cut at once
	if len(b.socket.sent) != 6 || len(b.queue.out) != 0 {
		t.Fatalf("%d datagrams, %d ICMP errors, drops %v", len(b.socket.sent), len(b.queue.out), b.drops())
	}
	for i := range 2 {
		var payload []byte
		for _, d := range b.socket.sent[3*i:][:3] {
			if len(d.data) > 972 {
				t.Errorf("a fragment of %d bytes", len(d.data))
			}
			payload = append(payload, d.data[20:]...)
		}
		if !bytes.Equal(payload, pkt[20:]) {
			t.Error("the fragments do not make the packet")
		}
	}
	if s := b.engine.Stats(); s.Sent.Packets != 6 {
		t.Errorf("counted %+v", s.Sent)
	}
}

// TestLongSegmentsOfASuperFrame: a flow that does not know of the narrow path yet is told once for each segment
// that the rate limit allows, and none of its bytes leave.
// Every link has to carry 1280 bytes of IPv6, and senders that are told of less go on with that.
func TestIPv6OnAPathThatIsTooNarrowForIt(t *testing.T) {
	b := newBench(t)
	b.narrow(1280)
	b.leave(ip6("fd00:5:1::2", "fd00:5:2::2", 59, make([]byte, encap.MinMTU6+1-40)))
	if told := b.queue.packets(t); len(told) != 1 || binary.BigEndian.Uint32(told[0][44:]) != encap.MinMTU6 || len(b.socket.sent) != 0 {
		t.Errorf("told %x, sent %d", told, len(b.socket.sent))
	}
	for range 2 { // the limit is known, and not
		b.leave(ip6("fd00:5:1::2", "fd00:5:2::2", 59, make([]byte, encap.MinMTU6-40)))
		b.clock = b.clock.Add(pathMTUAge + time.Second)
	}
	if len(b.socket.sent) != 2 || b.drops()[DropPacketTooBig] != 1 || len(b.queue.packets(t)) != 1 {
		t.Errorf("1280 bytes: sent %d, drops %v", len(b.socket.sent), b.drops())
	}
}

func TestLongSegmentsOfASuperFrame(t *testing.T) {
	b := newBench(t)
	b.narrow(1000)
	for range 2 {
		b.queue.in = []tun.Frame{superTCP("10.5.1.2", "10.5.2.2", 3000, 1348)}
		b.round()
	}
	// The last segment of each is short enough.
	if len(b.socket.sent) != 2 || b.drops()[DropPacketTooBig] != 4 {
		t.Errorf("sent %d, drops %v", len(b.socket.sent), b.drops())
	}
	told := b.queue.packets(t)
	if len(told) != 4 {
		t.Errorf("told %d times of 4 segments", len(told))
	}
	for _, msg := range told {
		if binary.BigEndian.Uint16(msg[26:]) != 972 {
			t.Errorf("told %x", msg[20:28])
		}
	}
}

func TestUselessPathMTU(t *testing.T) {
	for name, answer := range map[string]func(*peer) (int, error){
		"the kernel does not know":   func(*peer) (int, error) { return 0, unix.ENETUNREACH },
		"the path would carry it":    func(*peer) (int, error) { return 9000, nil },
		"a path of less than an MTU": func(*peer) (int, error) { return 20, nil },
	} {
		b := newBench(t)
		b.narrow(1000)
		b.pathMTU = answer
		b.leave(udp4("10.5.1.2", "10.5.2.2", 0, 1000, 0))
		if len(b.socket.sent) != 0 || len(b.drops()) != 1 {
			t.Errorf("%s: sent %d, drops %v", name, len(b.socket.sent), b.drops())
		}
	}
}

// TestNothingReceivedIsTheEnd: a worker that found nothing sleeps.
func TestNothingReceivedIsTheEnd(t *testing.T) {
	b := newBench(t)
	b.round()
	if b.inbound() {
		t.Error("there may be more behind nothing")
	}
}

// TestFullSocketHoldsTheTUN: while the kernel has no room nothing is read, nothing is lost, and the order stays.
func TestFullSocketHoldsTheTUN(t *testing.T) {
	b := newBench(t)
	b.socket.full = 3
	var want [][]byte
	for i := range 200 {
		p := udp4("10.5.1.2", "10.5.2.2", 0, 20+i, byte(i))
		want = append(want, p)
		b.queue.in = append(b.queue.in, tun.Frame{Packet: slices.Clone(p)})
	}
	b.round()
	left := len(b.queue.in)
	if !b.blocked || b.more || left != 200-quantumFrames {
		t.Fatalf("blocked %v, goes on %v, %d frames left in the TUN", b.blocked, b.more, left)
	}
	b.arrive("192.0.2.2", packetBetween("10.5.2.2", "10.5.1.2"))
	if len(b.queue.in) != left || len(b.queue.out) != 1 {
		t.Errorf("read %d frames while blocked; the other way passed %d", left-len(b.queue.in), len(b.queue.out))
	}
	for range 10 {
		b.round()
	}
	if len(b.socket.sent) != len(want) {
		t.Fatalf("%d of %d datagrams", len(b.socket.sent), len(want))
	}
	for i := range want {
		if !bytes.Equal(b.socket.sent[i].data, want[i]) {
			t.Fatalf("datagram %d is another", i)
		}
	}
	if s := b.engine.Stats(); s.Sent.Packets != 200 {
		t.Errorf("counted %+v, drops %v", s.Sent, b.drops())
	}
}

// TestEverySegmentIsSentOrCounted has the socket run out of room in the middle of a super-frame, of which some segments
// may be too long for the path.
func TestEverySegmentIsSentOrCounted(t *testing.T) {
	for name, known := range map[string]int{"any path": 0, "a narrow path": 1000} {
		b := newBench(t)
		if known > 0 {
			b.view = b.engine.view.Load()
			b.view.peers[0].learn(known, b.clock)
		}
		b.socket.room, b.socket.full = 2, 6
		b.queue.in = []tun.Frame{
			{Packet: packetBetween("10.5.1.2", "10.5.2.2")},
			{Packet: packetBetween("10.5.1.2", "10.5.2.2")},
			superTCP("10.5.1.2", "10.5.2.2", 3000, 980),
		}
		for range 10 {
			b.round()
		}
		d := b.drops()
		if n := len(b.socket.sent) + int(d[DropNoRoom]+d[DropPacketTooBig]); n != 2+4 || d[DropNoRoom] == 0 || len(d) > 2 {
			t.Errorf("%s: sent %d, drops %v", name, len(b.socket.sent), d)
		}
		if s := b.engine.Stats(); s.Sent.Packets != uint64(len(b.socket.sent)) {
			t.Errorf("%s: sent %d, counted %+v", name, len(b.socket.sent), s.Sent)
		}
	}
}

// TestDroppedSuperFrameCountsItsPackets: on either way, as those that pass do.
func TestDroppedSuperFrameCountsItsPackets(t *testing.T) {
	var train []byte
	for i := range 40 {
		s := tcp4("10.5.2.2", "10.5.1.2", uint32(i)*1000, 1000)
		setID(s, uint16(i))
		train = append(train, s...)
	}
	for why, err := range map[Drop]error{DropTUNDown: tun.ErrDown, DropTUNWriteError: tun.ErrGone} {
		b := newBench(t)
		b.queue.writeErr = err
		for range 2 { // ErrGone takes the queue away
			b.socket.in = [][]udp.Message{{message("192.0.2.2", 1040, slices.Clone(train))}}
			b.round()
		}
		if d := b.drops(); len(d) != 1 || d[why] != 80 {
			t.Errorf("%v: drops %v", err, d)
		}
	}
	for why, to := range map[Drop]string{DropNoNode: "10.5.9.9", DropMulticast: "224.0.0.251"} {
		b := newBench(t)
		b.queue.in = []tun.Frame{superTCP("10.5.1.2", to, 10_000, 1000)}
		b.round()
		if d := b.drops(); len(d) != 1 || d[why] != 10 {
			t.Errorf("to %s: drops %v", to, d)
		}
	}
}

// TestSocketReplacedWhileBlocked: what waits for room in the old one is lost, and counted.
func TestSocketReplacedWhileBlocked(t *testing.T) {
	for name, lose := range map[string]func(*bench, *fakeSocket){
		"moved": func(b *bench, next *fakeSocket) { b.nextOuter.Store(&outer{outerPort: next}) },
		"lost": func(b *bench, next *fakeSocket) {
			b.socket.recvErr = errRefused
			b.round()
			b.nextOuter.Store(&outer{outerPort: next})
		},
	} {
		b := newBench(t)
		b.socket.full = 1000
		pkt := packetBetween("10.5.1.2", "10.5.2.2")
		b.leave(pkt, pkt)
		next := newFakeSocket()
		lose(b, next)
		b.leave(pkt)
		if d := b.drops(); len(d) != 1 || d[DropNoRoom] != 2 || len(next.sent) != 1 || b.blocked {
			t.Errorf("%s: drops %v, sent %d, blocked %v", name, d, len(next.sent), b.blocked)
		}
		if s := b.engine.Stats(); s.Sent.Packets != 1 {
			t.Errorf("%s: counted %+v", name, s.Sent)
		}
	}
}

func TestSmallBatchesAreFlushed(t *testing.T) {
	b := newBench(t)
	b.socket.room = 2
	b.queue.in = []tun.Frame{superTCP("10.5.1.2", "10.5.2.2", 10_000, 1000)}
	b.round()
	if len(b.socket.sent) != 10 {
		t.Errorf("%d of 10 segments, drops %v", len(b.socket.sent), b.drops())
	}
}

func TestCountersOutliveNodes(t *testing.T) {
	b := newBench(t)
	b.leave(packetBetween("10.5.1.2", "10.5.2.2"))
	b.arrive("192.0.2.2", packetBetween("10.5.2.2", "10.5.1.2"))
	p := b.view.peers[0]
	p.to.Packets.Add(5) // the fake socket does not count
	p.learn(900, b.clock)

	b.engine.SetNodes(selfNode, []fib.Node{node3, node2})
	if got := b.engine.view.Load().peers[1]; got != p {
		t.Error("a node that stays has become another peer")
	}
	moved := node2
	moved.Endpoint = netip.MustParseAddrPort("192.0.2.77:8285")
	b.engine.SetNodes(selfNode, []fib.Node{moved})
	got := b.engine.Stats().Nodes[0]
	if got.Sent.Packets != 5 || got.Received.Packets != 1 {
		t.Errorf("a node that moved has %+v", got)
	}
	if b.engine.view.Load().peers[0].knownPathMTU(b.now) != 0 {
		t.Error("a node that moved keeps what was learnt of its old path")
	}
	b.engine.SetNodes(selfNode, nil)
	if n := len(b.engine.Stats().Nodes); n != 0 {
		t.Errorf("%d nodes have counters", n)
	}
	b.engine.SetNodes(selfNode, []fib.Node{node2})
	if got := b.engine.Stats().Nodes[0]; got.Received.Packets != 0 {
		t.Errorf("a node that came back has %+v", got)
	}
	if s := b.engine.Stats(); s.Received.Packets != 1 {
		t.Errorf("the sum went back to %+v", s.Received)
	}
}

// TestNodeWithTwoLeases: a node that holds two subnets has each in an entry of its own, and its traffic is counted once.
func TestNodeWithTwoLeases(t *testing.T) {
	b := newBench(t)
	one := fib.Node{Name: "new", Endpoint: netip.MustParseAddrPort("192.0.2.4:8285"), Prefixes: node2.Prefixes}
	two := one
	two.Prefixes = node3.Prefixes
	for range 2 {
		b.engine.SetNodes(selfNode, []fib.Node{one, two})
		b.arrive("192.0.2.4", packetBetween("10.5.2.9", "10.5.1.2"))
		b.arrive("192.0.2.4", packetBetween("10.5.3.9", "10.5.1.2"))
	}
	if n := b.engine.Stats().Nodes; len(n) != 1 || n[0].Received.Packets != 4 {
		t.Errorf("4 packets received of one node: %+v, drops %v", n, b.drops())
	}
}

// TestLostQueueAndSocket: a worker that loses an end goes on with the other, reports the loss once, and takes what
// the supervisor leaves.
func TestLostQueueAndSocket(t *testing.T) {
	b := newBench(t)
	b.inner.age, b.outer.age = 7, 8
	b.queue.readErr = tun.ErrGone
	b.arrive("192.0.2.2", packetBetween("10.5.2.2", "10.5.1.2"))
	if b.inner != nil || b.engine.lostDevice.Load() != 7 || b.drops()[DropTUNWriteError] != 1 {
		t.Fatalf("queue %v, reported %d, drops %v", b.inner, b.engine.lostDevice.Load(), b.drops())
	}
	b.socket.recvErr = errRefused
	b.round()
	if b.outer != nil || b.engine.lostSocket.Load() != 8 {
		t.Fatalf("socket %v, reported %d", b.outer, b.engine.lostSocket.Load())
	}
	b.round() // with neither

	queue, socket := &fakeQueue{}, newFakeSocket()
	b.nextInner.Store(&inner{queues: [classes]innerPort{queue, &fakeQueue{}}})
	b.nextOuter.Store(&outer{outerPort: socket})
	b.queue, b.socket = queue, socket
	b.leave(packetBetween("10.5.1.2", "10.5.2.2"))
	b.arrive("192.0.2.2", packetBetween("10.5.2.2", "10.5.1.2"))
	if len(socket.sent) != 1 || len(queue.out) != 1 {
		t.Errorf("after the repair: sent %d, written %d", len(socket.sent), len(queue.out))
	}
}

// TestLateReportOfALoss: a worker that notices the loss of old sockets after another has lost the new ones.
func TestLateReportOfALoss(t *testing.T) {
	e, err := newEngine(Config{Device: "test0", Bind: netip.MustParseAddrPort("127.0.0.1:0"), Workers: 2})
	must(t, err)
	defer func() { must(t, e.Close()) }()
	e.deviceAge = 1 // nobody loses that
	must(t, e.repair())
	quick, slow := e.workers[0], e.workers[1]
	quick.adopt()
	slow.adopt()
	quick.loseOuter()
	must(t, e.repair())
	quick.adopt()
	quick.loseOuter()
	slow.loseOuter()
	must(t, e.repair())
	for i, w := range e.workers {
		if w.adopt(); w.outer == nil {
			t.Errorf("worker %d has no socket, and nobody will make one", i)
		}
	}
}

// TestQueueGoneWhileBlocked: a worker that waits for room to send reads nothing, and still notices the loss.
func TestQueueGoneWhileBlocked(t *testing.T) {
	var pipe [2]int
	must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	must(t, unix.Close(pipe[0]))
	defer unix.Close(pipe[1])
	b := newBench(t)
	b.queue.fd = pipe[1] // poll reports an error on a pipe that nobody reads
	b.socket.full = 1000
	b.leave(packetBetween("10.5.1.2", "10.5.2.2"))
	must(t, b.wait())
	if !b.blocked || b.inner != nil {
		t.Errorf("blocked %v, queue %v", b.blocked, b.inner)
	}
}

// TestQueueIsNotPolledInVain: who cannot send does not wake up because there is something to read.
func TestQueueIsNotPolledInVain(t *testing.T) {
	left := readable(t)
	found := func(b *bench) int {
		t.Helper()
		b.queue.fd = int(left[0].Fd)
		b.setPolls()
		n, err := unix.Poll(b.polls[:], 0)
		must(t, err)
		return n
	}
	b := newBench(t)
	if n := found(b); n != 1 {
		t.Errorf("%d descriptors are ready", n)
	}
	b.socket.full = 1
	b.leave(packetBetween("10.5.1.2", "10.5.2.2"))
	if n := found(b); !b.blocked || n != 0 {
		t.Errorf("blocked %v: %d descriptors are ready", b.blocked, n)
	}
	b.round()
	if n := found(b); b.blocked || n != 1 {
		t.Errorf("blocked %v: %d descriptors are ready", b.blocked, n)
	}
	b.socket.recvErr = errRefused
	b.round()
	if n := found(b); b.outer != nil || n != 0 {
		t.Errorf("socket %v: %d descriptors are ready", b.outer, n)
	}
}

// TestQueueGoneWhileWriting loses the device in the middle of a batch.
func TestQueueGoneWhileWriting(t *testing.T) {
	b := newBench(t)
	b.queue.writeErr = tun.ErrGone
	b.arrive("192.0.2.2", packetBetween("10.5.2.2", "10.5.1.2"), packetBetween("10.5.2.3", "10.5.1.2"))
	if b.inner != nil || b.drops()[DropTUNWriteError] != 2 {
		t.Errorf("queue %v, drops %v", b.inner, b.drops())
	}
}

func TestNothingIsAllocatedPerPacket(t *testing.T) {
	small, big := udp4("10.5.1.2", "10.5.2.2", 0, 64, 0), superTCP("10.5.1.2", "10.5.2.2", 60_000, 1348)
	var train []byte
	for i := range 40 {
		train = append(train, tcp4("10.5.2.2", "10.5.1.2", uint32(i)*1348, 1348)...)
	}
	for name, frame := range map[string]tun.Frame{"small packets": {Packet: small}, "super-frames": big} {
		b := newBench(t)
		b.queue.keep, b.socket.keep = true, true
		b.queue.in = []tun.Frame{frame}
		b.socket.buf = make([]byte, 65536)
		slot := message("192.0.2.2", 1388, train)
		b.socket.in = [][]udp.Message{{slot}}
		if n := testing.AllocsPerRun(50, func() {
			copy(slot.Data, train) // joining has moved the payloads
			b.round()
		}); n != 0 {
			t.Errorf("%s: %v allocations a round of %d frames", name, n, quantumFrames)
		}
		if b.queue.writes == 0 {
			t.Errorf("%s: nothing came in, drops %v", name, b.drops())
		}
	}
}

func TestDropsAllocateNothing(t *testing.T) {
	b := newBench(t)
	b.queue.keep = true
	b.queue.in = []tun.Frame{{Packet: packetBetween("10.5.1.2", "10.5.9.9")}}
	if n := testing.AllocsPerRun(50, b.round); n != 0 {
		t.Errorf("%v allocations a round of unreachable packets", n)
	}
}

func TestParseNames(t *testing.T) {
	for _, c := range []SourceCheck{CheckKnown, CheckStrict, CheckOff} {
		if got, err := ParseSourceCheck(c.String()); err != nil || got != c {
			t.Errorf("%v: %v %v", c, got, err)
		}
	}
	for _, m := range []Mode{ModeAuto, ModeOffload, ModePortable} {
		if got, err := ParseMode(m.String()); err != nil || got != m {
			t.Errorf("%v: %v %v", m, got, err)
		}
	}
	if _, err := ParseSourceCheck("lax"); err == nil {
		t.Error("lax is a source check")
	}
	if _, err := ParseMode(""); err == nil {
		t.Error("nothing is a mode")
	}
}

func TestConfigIsChecked(t *testing.T) {
	bind := netip.MustParseAddrPort("127.0.0.1:8285")
	for name, c := range map[string]Config{
		"no device":       {Bind: bind},
		"no address":      {Device: "x"},
		"few workers":     {Device: "x", Bind: bind, Workers: -1},
		"many workers":    {Device: "x", Bind: bind, Workers: MaxWorkers + 1},
		"its own port":    {Device: "x", Bind: bind, Workers: 2, SourcePort: bind.Port() - 1},
		"unknown feature": {Device: "x", Bind: bind, DisabledFeatures: []feature.Name{"warp"}},
	} {
		if _, err := Open(c); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

func BenchmarkOutbound(b *testing.B) {
	for name, frame := range map[string]tun.Frame{
		"udp64":   {Packet: udp4("10.5.1.2", "10.5.2.2", 0, 64, 0)},
		"tcp64KB": superTCP("10.5.1.2", "10.5.2.2", 62_000, 1348),
	} {
		b.Run(name, func(b *testing.B) {
			w := newBench(b)
			w.queue.keep, w.socket.keep = true, true
			w.queue.in = []tun.Frame{frame}
			w.socket.buf = make([]byte, 65536)
			b.SetBytes(int64(quantumFrames * len(frame.Packet)))
			b.ReportAllocs()
			for b.Loop() {
				w.round()
			}
		})
	}
}

// BenchmarkSourceCheck has each packet come from another node than the one before, as in the worst case.
func BenchmarkSourceCheck(b *testing.B) {
	for _, nodes := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprint(nodes), func(b *testing.B) {
			w := newBench(b)
			others := make([]fib.Node, nodes)
			packets := make([][]byte, nodes)
			for i := range others {
				others[i] = fib.Node{
					Name:     fmt.Sprint(i),
					Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 1, byte(i >> 8), byte(i)}), 8285),
					Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0}), 24)},
				}
				packets[i] = packetBetween(fmt.Sprintf("11.%d.%d.2", i>>8, i&255), "10.5.1.2")
			}
			w.engine.SetNodes(selfNode, others)
			w.view = w.engine.view.Load()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				from := others[i%nodes].Endpoint.Addr()
				if w.sender(from) == nil || w.admit(packets[i%nodes], from, CheckKnown) != dropNone {
					b.Fatal("refused")
				}
			}
		})
	}
}
