package offload

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func everything() Limits { return Limits{TCP: true, UDP: true} }

// perFlow sorts what was written by flow. A packet whose flow cannot be told stands in every flow that it must not
// overtake, so that comparing flow by flow compares the order as far as it is promised.
func perFlow(out []emitted) map[string][]emitted {
	flows := map[string][]emitted{}
	for _, e := range out {
		if _, flow := flowOf(e.frame); flow != "" {
			flows[flow] = nil
		}
	}
	flows["all strangers"] = nil
	for _, e := range out {
		pair, flow := flowOf(e.frame)
		for k := range flows {
			if k == flow || flow == "" && (strings.HasPrefix(k, pair) || k == "all strangers") {
				flows[k] = append(flows[k], e)
			}
		}
	}
	return flows
}

func compare(t testing.TB, got, want []emitted) {
	t.Helper()
	g, w := perFlow(got), perFlow(want)
	for k := range w {
		for i := range w[k] {
			if i >= len(g[k]) {
				t.Fatalf("flow %x: %d frames, want %d; first missing: %v", k, len(g[k]), len(w[k]), w[k][i])
			}
			if a, b := g[k][i], w[k][i]; a.h != b.h || !bytes.Equal(a.frame, b.frame) {
				t.Fatalf("flow %x, frame %d:\n got %v\nwant %v", k, i, a, b)
			}
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d frames, want %d", len(got), len(want))
	}
}

// TestMergeMatchesSlowTwin is the main test: seeded mixed traffic, frame for frame and byte for byte.
func TestMergeMatchesSlowTwin(t *testing.T) {
	for _, tt := range []struct {
		name   string
		flows  int
		limits Limits
	}{
		{"one flow", 1, everything()},
		{"two flows", 2, everything()},
		{"40 flows", 40, everything()},
		{"tcp only", 8, Limits{TCP: true}},
		{"udp only", 8, Limits{UDP: true}},
		{"128 datagrams", 4, Limits{TCP: true, UDP: true, UDPSegments: 128}},
		{"3 datagrams", 4, Limits{TCP: true, UDP: true, UDPSegments: 3}},
		{"nothing", 8, Limits{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			merged := 0
			for seed := range uint64(4) {
				traffic := newTraffic(seed, tt.flows)
				got, want := feed(t, rand.New(rand.NewPCG(seed, 2)), tt.limits, traffic.packets(1500))
				compare(t, got, want)
				for _, e := range got {
					if e.h.GSO != GSONone {
						merged++
					}
				}
			}
			if (merged == 0) != (tt.limits == Limits{}) {
				t.Errorf("%d frames of more than one segment", merged)
			}
		})
	}
}

// write adds packets as one train and returns what the Merger wrote until the flush.
func write(l Limits, packets ...[]byte) []emitted {
	var out []emitted
	m := NewMerger(l, func(h Header, frame []byte) { out = append(out, emitted{h, bytes.Clone(frame)}) })
	buf := append(bytes.Join(packets, nil), make([]byte, 65536)...)
	m.NextBuffer(buf)
	at := 0
	for _, p := range packets {
		m.Add(at, len(p))
		at += len(p)
	}
	m.Flush()
	return out
}

// TestSplitThenMerge: what was cut from one frame becomes that frame again, byte for byte.
func TestSplitThenMerge(t *testing.T) {
	joined := 0
	for i, p := range superFrames(5, 300) {
		if p.ext != "" || p.options != "" {
			continue // passes through alone
		}
		if p.proto == 6 {
			p.tcp.flags &^= 0x80 // CWR: likewise
		}
		size := 1 + len(p.payload)/40
		h, frame := p.superFrame(size)
		segments := splitAll(t, h, frame)
		if len(segments) < 2 {
			continue
		}
		joined++
		got := write(everything(), segments...)
		if len(got) != 1 || got[0].h != h || !bytes.Equal(got[0].frame, frame) {
			t.Fatalf("frame %d of %d segments: %d frames back, the first %v\nwant %v", i, len(segments), len(got), got[0], emitted{h, frame})
		}
		if n := got[0].h.Segments(len(frame)); n != len(segments) {
			t.Errorf("frame %d: Segments says %d, want %d", i, n, len(segments))
		}
	}
	if joined < 100 {
		t.Errorf("only %d frames were joined", joined)
	}
}

// TestMergeThenSplit: what was joined gives the packets again that came in, byte for byte and in order per flow. Only
// an ID that stood still counts up afterwards, which DF allows.
func TestMergeThenSplit(t *testing.T) {
	for seed := range uint64(4) {
		traffic := newTraffic(seed, 10)
		packets := traffic.packets(1500)
		var want []emitted
		for _, p := range packets {
			want = append(want, emitted{frame: p})
		}
		written, _ := feed(t, rand.New(rand.NewPCG(seed, 3)), everything(), packets)
		var got []emitted
		for _, e := range written {
			segments := splitAll(t, e.h, e.frame)
			if e.h.GSO != GSONone && len(segments) != e.h.Segments(len(e.frame)) {
				t.Fatalf("%d segments, Segments says %d", len(segments), e.h.Segments(len(e.frame)))
			}
			for _, s := range segments {
				got = append(got, emitted{frame: s})
			}
		}
		for _, l := range [][]emitted{got, want} {
			for i := range l {
				l[i].frame = withoutDFID(l[i].frame)
			}
		}
		compare(t, got, want)
	}
}

// withoutDFID returns a copy of a good packet with DF whose ID is zero; other packets it returns as they are.
func withoutDFID(b []byte) []byte {
	p, ok := decode(b)
	if !ok || p.fragment != 0x4000 {
		return b
	}
	p.id = 0
	return p.encode()
}

// TestMergeOrder holds what must not be overtaken.
func TestMergeOrder(t *testing.T) {
	traffic := newTraffic(6, 12)
	flow := &traffic.flows[0]
	var other *packet // the same addresses, another port
	for i := range traffic.flows[1:] {
		if f := &traffic.flows[i+1]; f.addrs == flow.addrs {
			other = f
		}
	}
	if other == nil {
		t.Fatal("no second flow between the same addresses")
	}
	a := traffic.run(flow, 3, 500)
	b := traffic.run(other, 3, 400)
	ack := a[0]
	ack.payload = ""
	options := a[0]
	options.options = "\x94\x04\x00\x00"
	icmp := a[0]
	icmp.proto = 17
	icmpBytes := icmp.encode()
	icmpBytes[9] = 1
	garbage := []byte{0x45, 0, 0}
	elsewhere := bytes.Clone(icmpBytes)
	elsewhere[19]++
	for _, tt := range []struct {
		name  string
		third []byte
		want  []int // lengths of what is written, in order
	}{
		{"an ACK seals its flow only", ack.encode(), []int{len(a[0].encode()) + 500, len(ack.encode()), len(b[0].encode()) + 400}},
		{"options seal their flow only", options.encode(), []int{len(a[0].encode()) + 500, len(options.encode()), len(b[0].encode()) + 400}},
		{"no ports: both flows between the addresses", icmpBytes, []int{len(a[0].encode()) + 500, len(b[0].encode()) + 400, len(icmpBytes)}},
		{"garbage: everything", garbage, []int{len(a[0].encode()) + 500, len(b[0].encode()) + 400, len(garbage)}},
		{"other addresses: nothing", elsewhere, []int{len(elsewhere), len(a[0].encode()) + 500, len(b[0].encode()) + 400}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := write(everything(), a[0].encode(), b[0].encode(), a[1].encode(), b[1].encode(), tt.third)
			var got []int
			for _, e := range out {
				got = append(got, len(e.frame))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("lengths %v, want %v", got, tt.want)
			}
		})
	}
}

// TestMergeBadChecksums damages one segment in the middle of a run, at each place: it must come out alone and as
// it was, and what is around it must still be joined.
func TestMergeBadChecksums(t *testing.T) {
	traffic := newTraffic(7, 4)
	for kind := range traffic.flows {
		for place := range 5 {
			p := traffic.flows[kind]
			p.payload = traffic.fill[:5*700]
			h, frame := p.superFrame(700)
			packets := splitAll(t, h, frame)
			bad := packets[place]
			bad[len(bad)-3] ^= 0x40
			var alone int
			for _, e := range write(everything(), packets...) {
				if e.h.GSO == GSONone && bytes.Equal(e.frame, bad) {
					alone++
				}
				if e.h.GSO != GSONone && bytes.Contains(e.frame, bad[len(bad)-100:]) {
					t.Errorf("flow %d, place %d: damage was joined", kind, place)
				}
			}
			if alone != 1 {
				t.Errorf("flow %d, place %d: the damaged packet came out %d times, want once", kind, place, alone)
			}
			if out := len(write(everything(), packets...)); out > 3 {
				t.Errorf("flow %d, place %d: %d frames, want at most 3", kind, place, out)
			}
		}
	}
}

// TestMergeTinyLimits runs into every bound: nothing may be lost, doubled or put out of order.
// TestMergeLongest joins to the last byte that an IP length field can say.
func TestMergeLongest(t *testing.T) {
	for i, p := range newTraffic(1, 4).flows {
		payload := 65535 - len(p.encode())
		p.payload = strings.Repeat("\xff", payload)
		h, frame := p.superFrame((payload + 59) / 60)
		out := write(everything(), splitAll(t, h, frame)...)
		if len(out) != 1 || !bytes.Equal(out[0].frame, frame) {
			t.Errorf("flow %d: %d frames, want the one of %d bytes", i, len(out), len(frame))
		}
	}
}

func TestMergeTinyLimits(t *testing.T) {
	for _, l := range []Limits{
		{TCP: true, UDP: true, Flows: 1, Buffers: 1, Pieces: 1},
		{TCP: true, UDP: true, Flows: 3, Buffers: 2, Pieces: 4},
		{TCP: true, UDP: true, Flows: 40, Buffers: 16, Pieces: 3},
		{TCP: true, UDP: true, UDPSegments: 2},
	} {
		traffic := newTraffic(8, 20)
		packets := traffic.packets(2000)
		var want, got []emitted
		for _, p := range packets {
			want = append(want, emitted{frame: withoutDFID(p)})
		}
		written, _ := feed(t, rand.New(rand.NewPCG(8, 8)), l, packets)
		for _, e := range written {
			for _, s := range splitAll(t, e.h, e.frame) {
				got = append(got, emitted{frame: withoutDFID(s)})
			}
		}
		compare(t, got, want)
	}
}

// TestMergeAcrossTrains joins a frame whose segments came in three trains, with and without room behind the
// first. With room, the frame must have grown where it lies.
func TestMergeAcrossTrains(t *testing.T) {
	p := newTraffic(9, 1).flows[0]
	p.payload = strings.Repeat("0123456789", 4000)
	h, frame := p.superFrame(1000)
	segments := splitAll(t, h, frame)
	for _, room := range []int{0, 500, 65536} {
		var out []emitted
		var bufs [][]byte
		inPlace := false
		m := NewMerger(everything(), func(h Header, frame []byte) {
			inPlace = &frame[0] == &bufs[0][0]
			out = append(out, emitted{h, bytes.Clone(frame)})
		})
		for i := 0; i < len(segments); i += 15 {
			chunk := segments[i:min(i+15, len(segments))]
			buf := append(bytes.Join(chunk, nil), make([]byte, room)...)
			bufs = append(bufs, buf)
			m.NextBuffer(buf)
			at := 0
			for _, s := range chunk {
				m.Add(at, len(s))
				at += len(s)
			}
		}
		m.Flush()
		if len(out) != 1 || out[0].h != h || !bytes.Equal(out[0].frame, frame) {
			t.Errorf("room %d: %d frames, want the one that was cut", room, len(out))
		}
		if inPlace != (room == 65536) {
			t.Errorf("room %d: grown in place: %v", room, inPlace)
		}
	}
}

// TestMergeOtherFlow: a packet that continues a segment in everything but a part of what names the flow.
func TestMergeOtherFlow(t *testing.T) {
	for _, flow := range []int{0, 1, 2, 3} {
		a := fill(newTraffic(9, 4).flows[flow], 100)
		b := a
		b.tcp.seq += 100
		if !b.v6 {
			b.id++
		}
		if out := write(everything(), a.encode(), b.encode()); len(out) != 1 {
			t.Fatalf("flow %d: %d frames, want the two joined", flow, len(out))
		}
		var others []packet
		for i := 1; i < len(b.addrs); i += 4 { // one word more and its neighbour less: the checksum does not see that
			o := b
			addrs := []byte(o.addrs)
			addrs[i]++
			addrs[i+2]--
			o.addrs = string(addrs)
			others = append(others, o)
		}
		for i := range 4 {
			o := b
			o.ports ^= 1 << (8 * i)
			others = append(others, o)
		}
		o := b
		o.proto ^= 6 ^ 17
		others = append(others, o)
		for _, o := range others {
			if out := write(everything(), a.encode(), o.encode()); len(out) != 2 {
				t.Errorf("flow %d and one to %x, ports %x, protocol %d were joined", flow, o.addrs, o.ports, o.proto)
			}
		}
	}
}

// TestMergeTrainLimit: one train too many flushes the ones before.
func TestMergeTrainLimit(t *testing.T) {
	traffic := newTraffic(9, 1)
	frames := 0
	m := NewMerger(Limits{TCP: true, Buffers: 2}, func(Header, []byte) { frames++ })
	for i, p := range traffic.run(&traffic.flows[0], 3, 100) {
		if m.NextBuffer(p.encode()); frames != i/2 {
			t.Errorf("%d frames at train %d", frames, i)
		}
		m.Add(0, len(p.encode()))
	}
}

// fill gives p a payload of n bytes.
func fill(p packet, n int) packet {
	p.payload = strings.Repeat("\x5a", n)
	return p
}

// TestMergeRules holds each rule on two segments, the second following the first, after one change to the second
// or to both. Checksums are right unless the change is made to bytes.
func TestMergeRules(t *testing.T) {
	type change struct {
		name   string
		flow   int             // 0 TCP, 1 UDP over IPv4; 2, 3 over IPv6
		first  func(p *packet) // changes the first segment
		second func(p *packet) // changes the second
		raw    func(b []byte)  // changes the bytes of both
		joined bool
	}
	both := func(name string, flow int, f func(p *packet), joined bool) change {
		return change{name: name, flow: flow, first: f, second: f, joined: joined}
	}
	second := func(name string, flow int, f func(p *packet), joined bool) change {
		return change{name: name, flow: flow, second: f, joined: joined}
	}
	flags := func(v uint8) func(p *packet) { return func(p *packet) { p.tcp.flags = v } }
	tests := []change{
		second("tcp", 0, func(p *packet) {}, true),
		second("udp", 1, func(p *packet) {}, true),
		second("tcp6", 2, func(p *packet) {}, true),
		second("udp6", 3, func(p *packet) {}, true),
		both("no flags", 0, flags(0), false),
		both("SYN", 0, flags(0x12), false),
		both("RST", 0, flags(0x14), false),
		both("URG", 0, flags(0x30), false),
		both("ECE", 0, flags(0x50), true),
		second("ECE on one", 0, flags(0x50), false),
		both("CWR", 0, flags(0x90), false),
		both("PSH on both", 0, flags(0x18), false),
		second("PSH on the last", 0, flags(0x18), true),
		second("FIN on the last", 2, flags(0x11), true),
		second("window", 0, func(p *packet) { p.tcp.window++ }, false),
		second("urgent pointer", 0, func(p *packet) { p.tcp.urgent++ }, false),
		second("reserved bits", 0, func(p *packet) { p.tcp.reserved = 1 }, false),
		second("a shorter one", 0, func(p *packet) { *p = fill(*p, 99) }, true),
		second("a longer one", 0, func(p *packet) { *p = fill(*p, 101) }, false),
		second("a shorter datagram", 1, func(p *packet) { *p = fill(*p, 1) }, true),
		second("a longer datagram", 3, func(p *packet) { *p = fill(*p, 101) }, false),
		both("nothing in them", 1, func(p *packet) { p.payload = "" }, false),
		both("IPv4 options", 0, func(p *packet) { p.options = "\x94\x04\x00\x00" }, false),
		both("IPv4 reserved bit", 0, func(p *packet) { p.fragment |= 0x8000 }, false),
		both("fragment", 1, func(p *packet) { p.fragment = 0x2000 }, false),
		both("ID stands still with DF", 0, func(p *packet) { p.fragment, p.id = 0x4000, 7 }, true),
		both("ID stands still without DF", 0, func(p *packet) { p.fragment, p.id = 0, 7 }, false),
		both("ID stands still without DF, udp", 1, func(p *packet) { p.fragment, p.id = 0, 7 }, false),
		second("ID jumps", 0, func(p *packet) { p.id++ }, false),
		second("ID goes back", 0, func(p *packet) { p.id -= 2 }, false),
		both("extension header", 2, func(p *packet) { p.ext, p.next = "\x06\x00\x01\x04\x00\x00\x00\x00", 60 }, false),
		second("traffic class", 2, func(p *packet) { p.tos ^= 2 }, false),
		second("flow label", 3, func(p *packet) { p.label++ }, false),
		second("hop limit", 3, func(p *packet) { p.ttl-- }, false),
		{name: "UDP length below the packet's", flow: 1, raw: func(b []byte) {
			b[25]--
			putUDPChecksum(b)
		}},
		{name: "no UDP checksum", flow: 1, raw: func(b []byte) { b[26], b[27] = 0, 0 }},
		{name: "no UDP checksum, where it would be zero", flow: 1, raw: func(b []byte) {
			b[28], b[29] = 0, 0
			putUDPChecksum(b)
			copy(b[28:30], b[26:28])
			b[26], b[27] = 0, 0
		}},
		{name: "bytes behind the packet", flow: 0, raw: func(b []byte) { b[3]--; b[10], b[11] = 0, 0 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := fill(newTraffic(9, 4).flows[tt.flow], 100)
			b := a
			b.tcp.seq += 100
			if !b.v6 {
				b.id++
			}
			if tt.first != nil {
				tt.first(&a)
			}
			if tt.second != nil {
				tt.second(&b)
			}
			packets := [][]byte{a.encode(), b.encode()}
			for _, p := range packets {
				if tt.raw != nil {
					tt.raw(p)
				}
			}
			out := write(everything(), packets...)
			if (len(out) == 1) != tt.joined {
				t.Errorf("%d frames, want them joined: %v", len(out), tt.joined)
			}
		})
	}
}

// putUDPChecksum makes the checksum of a UDP packet over IPv4 right for its bytes.
func putUDPChecksum(b []byte) {
	b[26], b[27] = 0, 0
	pseudo := append(append([]byte{}, b[12:20]...), 0, 17, 0, byte(len(b)-20))
	binary.BigEndian.PutUint16(b[26:], ^slowSum(append(pseudo, b[20:]...)))
}

// TestMergeLongerHeader: the second segment's header is longer than the whole first one, which ends its buffer.
func TestMergeLongerHeader(t *testing.T) {
	p := fill(newTraffic(9, 1).flows[0], 1)
	p.tcp.options = ""
	frames := 0
	m := NewMerger(everything(), func(Header, []byte) { frames++ })
	m.NextBuffer(p.encode())
	m.Add(0, len(p.encode()))
	p.tcp.seq++
	p.id++
	p.tcp.options = strings.Repeat("\x01", 40)
	m.NextBuffer(p.encode())
	m.Add(0, len(p.encode()))
	if m.Flush(); frames != 2 {
		t.Errorf("%d frames, want 2", frames)
	}
}

func TestMergeAddOutOfOrder(t *testing.T) {
	traffic := newTraffic(10, 1)
	packets := traffic.run(&traffic.flows[0], 2, 100)
	buf := slices.Concat(packets[0].encode(), packets[1].encode())
	n := len(packets[0].encode())
	m := NewMerger(everything(), func(Header, []byte) {})
	m.NextBuffer(buf)
	m.Add(n, len(buf)-n)
	defer func() {
		if recover() == nil {
			t.Error("no panic for a segment that lies before the last one")
		}
	}()
	m.Add(0, n)
}
