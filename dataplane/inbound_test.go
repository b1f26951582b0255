package dataplane

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"weft/dataplane/fib"
	"weft/dataplane/tun"
	"weft/dataplane/udp"
	"weft/encap"
	"weft/encap/offload"
)

func TestInbound(t *testing.T) {
	h := newHarness(t)
	first, second := udp4("10.5.2.2", "10.5.1.2", 0, 100, 1), ip6("fd00:5:2::9", "fd00:5:1::2", 59, make([]byte, 30))
	h.fromUDP("192.0.2.2", slices.Clone(first))
	h.fromUDP("192.0.2.2", slices.Clone(second))
	got := h.queue.packets(t)
	if len(got) != 2 || !bytes.Equal(got[0], first) || !bytes.Equal(got[1], second) {
		t.Fatalf("got %x; drops %v", got, h.drops())
	}
	s := h.engine.Stats()
	if want := (Traffic{2, uint64(len(first) + len(second))}); s.Received != want || s.Nodes[0].Received != want {
		t.Errorf("received %+v, from node %+v", s.Received, s.Nodes[0])
	}
}

func TestInboundTrainMerged(t *testing.T) {
	h := newHarness(t)
	var train []byte
	var segments [][]byte
	for i := range 40 {
		n := 1000
		if i == 39 {
			n = 300
		}
		segments = append(segments, tcp4("10.5.2.2", "10.5.1.2", uint32(i)*1000, n))
		setID(segments[i], uint16(i)) // consecutive, as a sender's are
		train = append(train, segments[i]...)
	}
	h.socket.in = [][]udp.Message{{message("192.0.2.2", 1040, train)}}
	h.round()
	if len(h.queue.out) != 1 || h.queue.out[0].Header.GSO != offload.GSOTCPv4 {
		t.Fatalf("%d frames, first %+v", len(h.queue.out), h.queue.out[0].Header)
	}
	got := h.queue.packets(t)
	if len(got) != len(segments) {
		t.Fatalf("%d packets", len(got))
	}
	for i := range got {
		if !bytes.Equal(got[i], segments[i]) {
			t.Fatalf("packet %d\n got %x\nwant %x", i, got[i], segments[i])
		}
	}
	if s := h.engine.Stats(); s.Received != (Traffic{40, uint64(len(train))}) {
		t.Errorf("received %+v for %d bytes", s.Received, len(train))
	}
}

func TestInboundGSOFrameRejected(t *testing.T) {
	h := newHarness(t)
	queue := &noGSOQueue{fakeQueue: h.queue}
	h.tunPort.queues[sparse] = queue
	one, two := tcp4("10.5.2.2", "10.5.1.2", 0, 1000), tcp4("10.5.2.2", "10.5.1.2", 1000, 500)
	setID(two, 1)
	h.socket.in = [][]udp.Message{{message("192.0.2.2", 1040, append(slices.Clone(one), two...))}}
	h.round()
	got := h.queue.packets(t)
	if len(got) != 2 || !bytes.Equal(got[0], one) || !bytes.Equal(got[1], two) {
		t.Fatalf("got %x", got)
	}
	if s := h.engine.Stats(); s.GSOFramesRejected != 1 || s.Received.Packets != 2 {
		t.Errorf("rejected %d, received %+v", s.GSOFramesRejected, s.Received)
	}
}

// noGSOQueue rejects GSO frames.
type noGSOQueue struct{ *fakeQueue }

func (q *noGSOQueue) Write(f tun.Frame) error {
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
		{"own lease", "192.0.2.2", "10.5.2.9", "10.5.1.2", 0, 0, 0},
		{"IPv6", "192.0.2.2", "fd00:5:2::9", "fd00:5:1::2", 0, 0, 0},
		{"unknown node", "192.0.2.66", "10.5.2.9", "10.5.1.2", DropUnknownOuterSource, DropUnknownOuterSource, 0},
		{"another's lease", "192.0.2.2", "10.5.3.9", "10.5.1.2", DropSpoofedInnerSource, DropSpoofedInnerSource, 0},
		{"local subnet", "192.0.2.2", "10.5.1.9", "10.5.1.2", DropSpoofedInnerSource, DropSpoofedInnerSource, 0},
		{"no lease", "192.0.2.2", "8.8.8.8", "10.5.1.2", 0, DropUnleasedInnerSource, 0},
		{"to another node", "192.0.2.2", "10.5.2.9", "10.5.3.2", DropNotForUs, DropNotForUs, 0},
		{"to the host", "192.0.2.2", "10.5.2.9", "192.0.2.1", DropNotForUs, DropNotForUs, 0},
		{"to a multicast group", "192.0.2.2", "10.5.2.9", "224.0.0.1", DropNotForUs, DropNotForUs, 0},
	} {
		for check, want := range map[SourceCheck]Drop{known: c.known, strict: c.strict, off: c.off} {
			h := newHarness(t)
			h.engine.config.SourceCheck = check
			pkt := packetBetween(c.src, c.dst)
			h.fromUDP(c.from, slices.Clone(pkt))
			if want != dropNone {
				if d := h.drops(); len(d) != 1 || d[want] != 1 || len(h.queue.out) != 0 {
					t.Errorf("%s, %v: drops %v, written %d; want %v", c.name, check, d, len(h.queue.out), want)
				}
			} else if len(h.queue.out) != 1 || !bytes.Equal(h.queue.out[0].Packet, pkt) {
				t.Errorf("%s, %v: written %d, drops %v", c.name, check, len(h.queue.out), h.drops())
			}
		}
	}
}

// TestSourceCheckPerPacket compares the packets of a train that pass with those that pass one by
// one.
func TestSourceCheckPerPacket(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 9))
	addrs := [][2]string{
		{"10.5.2.2", "10.5.1.2"}, {"10.5.2.2", "10.5.1.3"}, {"10.5.3.2", "10.5.1.2"}, {"10.5.2.2", "10.5.9.9"},
		{"0.0.0.0", "0.0.0.0"},
		{"fd00:5:2::2", "fd00:5:1::2"}, {"fd00:5:3::2", "fd00:5:1::2"}, {"::", "::"}, {"8.8.8.8", "10.5.1.2"},
	}
	for _, check := range []SourceCheck{CheckKnown, CheckStrict} {
		for range 300 {
			const size = 60
			var train []byte
			alone, together := newHarness(t), newHarness(t)
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
				alone.fromUDP("192.0.2.2", pkt)
			}
			together.socket.in = [][]udp.Message{{message("192.0.2.2", size, train)}}
			together.round()
			if !maps.Equal(alone.drops(), together.drops()) ||
				len(alone.queue.packets(t)) != len(together.queue.packets(t)) {
				t.Fatalf("%v: drops alone %v, together %v, train %x", check, alone.drops(), together.drops(), train)
			}
		}
	}
}

// TestSourceCheckSharedEndpoint has two nodes behind one NAT, which share an outer address.
func TestSourceCheckSharedEndpoint(t *testing.T) {
	h := newHarness(t)
	behind := node3
	behind.Endpoint = netip.MustParseAddrPort("192.0.2.2:9285")
	h.engine.SetNodes(selfNode, []fib.Node{node2, behind})
	h.fromUDP("192.0.2.2", packetBetween("10.5.3.9", "10.5.1.2"))
	if len(h.queue.out) != 1 {
		t.Errorf("drops %v", h.drops())
	}
}

// TestSenderCacheInvalidation changes the nodes: the cached sender must not outlive the snapshot.
func TestSenderCacheInvalidation(t *testing.T) {
	h := newHarness(t)
	pkt := packetBetween("10.5.2.9", "10.5.1.2")
	h.fromUDP("192.0.2.2", slices.Clone(pkt))
	h.engine.SetNodes(selfNode, []fib.Node{node3})
	h.fromUDP("192.0.2.2", slices.Clone(pkt))
	h.engine.SetNodes(selfNode, []fib.Node{node2})
	h.fromUDP("192.0.2.2", slices.Clone(pkt))
	if len(h.queue.out) != 2 || h.drops()[DropUnknownOuterSource] != 1 {
		t.Errorf("written %d, drops %v", len(h.queue.out), h.drops())
	}
}

func TestInboundCongestionMark(t *testing.T) {
	for _, addrs := range [][2]string{{"10.5.2.2", "10.5.1.2"}, {"fd00:5:2::2", "fd00:5:1::2"}} {
		h := newHarness(t)
		pkt := packetBetween(addrs[0], addrs[1])
		encap.SetTOS(pkt, 46<<2|2)
		m := message("192.0.2.2", len(pkt), pkt)
		m.TOS = 8<<2 | 3
		h.socket.in = [][]udp.Message{{m}}
		h.round()
		want := slices.Clone(pkt)
		encap.SetTOS(want, 46<<2|3)
		if got := h.queue.packets(t); len(got) != 1 || !bytes.Equal(got[0], want) {
			t.Errorf("got %x, want %x; drops %v", got, want, h.drops())
		}
	}
}

func TestInboundEmpty(t *testing.T) {
	h := newHarness(t)
	h.round()
	if h.inbound() {
		t.Error("inbound reports more without a message")
	}
}
