package dataplane

import (
	"bytes"
	"slices"
	"testing"

	"weft/dataplane/fib"
	"weft/dataplane/tun"
	"weft/encap"
)

func TestOutbound(t *testing.T) {
	h := newHarness(t)
	to2 := udp4("10.5.1.2", "10.5.2.2", 0, 100, 1)
	to3 := udp4("10.5.1.2", "10.5.3.2", 0, 50, 2)
	six := ip6("fd00:5:1::2", "fd00:5:2::2", 59, make([]byte, 30))
	h.fromTUN(slices.Clone(to2), slices.Clone(to3), slices.Clone(six), slices.Clone(to2))
	want := []struct {
		node fib.Node
		data []byte
	}{{node2, to2}, {node3, to3}, {node2, six}, {node2, to2}}
	if len(h.socket.sent) != len(want) {
		t.Fatalf("sent %d datagrams, want %d; drops %v", len(h.socket.sent), len(want), h.drops())
	}
	for i, w := range want {
		got := h.socket.sent[i]
		if got.key.To.Addr != w.node.Endpoint || !bytes.Equal(got.data, w.data) {
			t.Errorf("datagram %d: to %v: %x\nwant to %v: %x", i, got.key.To.Addr, got.data, w.node.Endpoint, w.data)
		}
	}
	if s := h.engine.Stats(); s.Sent != (Traffic{4, uint64(2*len(to2) + len(to3) + len(six))}) {
		t.Errorf("sent %+v", s.Sent)
	}
}

func TestOutboundGSOFrame(t *testing.T) {
	h := newHarness(t)
	frame := gsoTCP("10.5.1.2", "10.5.2.2", 3000, 1348)
	h.queue.in = []tun.Frame{frame}
	h.round()
	if len(h.socket.sent) != 3 {
		t.Fatalf("%d datagrams, want 3; drops %v", len(h.socket.sent), h.drops())
	}
	var payload []byte
	for i, d := range h.socket.sent {
		if i < 2 && len(d.data) != 1388 {
			t.Errorf("segment %d has %d bytes", i, len(d.data))
		}
		payload = append(payload, d.data[40:]...)
	}
	if !bytes.Equal(payload, frame.Packet[40:]) {
		t.Error("wrong payload")
	}
}

func TestOutboundTOS(t *testing.T) {
	const dscp, ect0 = 46 << 2, 2
	for _, c := range []struct {
		ecn, dscp bool
		want      uint8
	}{{false, false, 0}, {true, false, ect0}, {false, true, dscp}, {true, true, dscp | ect0}} {
		h := newHarnessWith(t, Config{ECN: c.ecn, DSCP: c.dscp})
		four, six := packetBetween("10.5.1.2", "10.5.2.2"), packetBetween("fd00:5:1::2", "fd00:5:2::2")
		encap.SetTOS(four, dscp|ect0)
		encap.SetTOS(six, dscp|ect0)
		h.fromTUN(four, six)
		for _, d := range h.socket.sent {
			if d.key.TOS != c.want {
				t.Errorf("ECN %v, DSCP %v: %#x", c.ecn, c.dscp, d.key.TOS)
			}
		}
		if len(h.socket.sent) != 2 {
			t.Errorf("drops %v", h.drops())
		}
	}
}

// TestSocketFull expects that the TUN is not read while the socket is full, that no packet is lost,
// and that the order is kept.
func TestSocketFull(t *testing.T) {
	h := newHarness(t)
	h.socket.full = 3
	var want [][]byte
	for i := range 200 {
		p := udp4("10.5.1.2", "10.5.2.2", 0, 20+i, byte(i))
		want = append(want, p)
		h.queue.in = append(h.queue.in, tun.Frame{Packet: slices.Clone(p)})
	}
	h.round()
	left := len(h.queue.in)
	if !h.blocked || h.more || left != 200-quantumFrames {
		t.Fatalf("blocked %v, more %v, %d frames left in the TUN", h.blocked, h.more, left)
	}
	h.fromUDP("192.0.2.2", packetBetween("10.5.2.2", "10.5.1.2"))
	if len(h.queue.in) != left || len(h.queue.out) != 1 {
		t.Errorf("read %d frames while blocked, wrote %d", left-len(h.queue.in), len(h.queue.out))
	}
	for range 10 {
		h.round()
	}
	if len(h.socket.sent) != len(want) {
		t.Fatalf("sent %d of %d datagrams", len(h.socket.sent), len(want))
	}
	for i := range want {
		if !bytes.Equal(h.socket.sent[i].data, want[i]) {
			t.Fatalf("datagram %d: got %x, want %x", i, h.socket.sent[i].data, want[i])
		}
	}
	if s := h.engine.Stats(); s.Sent.Packets != 200 {
		t.Errorf("sent %+v, drops %v", s.Sent, h.drops())
	}
}

// TestSocketFullMidFrame fills the socket in the middle of a GSO frame, of which some segments may
// exceed the path MTU. Each segment must be sent or counted as dropped.
func TestSocketFullMidFrame(t *testing.T) {
	for name, known := range map[string]int{"unknown path MTU": 0, "small path MTU": 1000} {
		h := newHarness(t)
		if known > 0 {
			h.engine.nodes.list[0].setPathMTU(known, h.clock)
		}
		h.socket.room, h.socket.full = 2, 6
		h.queue.in = []tun.Frame{
			{Packet: packetBetween("10.5.1.2", "10.5.2.2")},
			{Packet: packetBetween("10.5.1.2", "10.5.2.2")},
			gsoTCP("10.5.1.2", "10.5.2.2", 3000, 980),
		}
		for range 10 {
			h.round()
		}
		d := h.drops()
		n := len(h.socket.sent) + int(d[DropNoRoom]+d[DropPacketTooBig])
		if n != 2+4 || d[DropNoRoom] == 0 || len(d) > 2 {
			t.Errorf("%s: sent %d, drops %v", name, len(h.socket.sent), d)
		}
		if s := h.engine.Stats(); s.Sent.Packets != uint64(len(h.socket.sent)) {
			t.Errorf("%s: sent %d, counted %+v", name, len(h.socket.sent), s.Sent)
		}
	}
}

func TestSendQueueFull(t *testing.T) {
	h := newHarness(t)
	h.socket.room = 2
	h.queue.in = []tun.Frame{gsoTCP("10.5.1.2", "10.5.2.2", 10_000, 1000)}
	h.round()
	if len(h.socket.sent) != 10 {
		t.Errorf("sent %d of 10 segments, drops %v", len(h.socket.sent), h.drops())
	}
}
