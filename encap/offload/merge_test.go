package offload

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func mergeAll() Limits { return Limits{TCP: true, UDP: true} }

// perFlow groups emitted frames by flow. A packet of an unknown flow is added to every flow that it
// must not overtake, so that comparing per flow checks exactly the guaranteed order.
func perFlow(out []emitted) map[string][]emitted {
	flows := map[string][]emitted{}
	for _, e := range out {
		if _, flow := flowOf(e.frame); flow != "" {
			flows[flow] = nil
		}
	}
	flows["unknown flows"] = nil
	for _, e := range out {
		pair, flow := flowOf(e.frame)
		for k := range flows {
			if k == flow || flow == "" && (strings.HasPrefix(k, pair) || k == "unknown flows") {
				flows[k] = append(flows[k], e)
			}
		}
	}
	return flows
}

// compare compares frames and their order per flow.
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

// TestMergeReference compares Merger with the reference implementation on random mixed traffic.
func TestMergeReference(t *testing.T) {
	for _, tt := range []struct {
		name   string
		flows  int
		limits Limits
	}{
		{"one flow", 1, mergeAll()},
		{"two flows", 2, mergeAll()},
		{"40 flows", 40, mergeAll()},
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
				got, want := mergeBoth(t, rand.New(rand.NewPCG(seed, 2)), tt.limits, traffic.packets(1500))
				compare(t, got, want)
				for _, e := range got {
					if e.h.GSO != GSONone {
						merged++
					}
				}
			}
			if (merged == 0) != (tt.limits == Limits{}) {
				t.Errorf("%d GSO frames", merged)
			}
		})
	}
}

// merge adds packets in one buffer, flushes, and returns the emitted frames.
func merge(l Limits, packets ...[]byte) []emitted {
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

// TestMergeAfterSplit checks that merging the segments of a frame restores the frame.
func TestMergeAfterSplit(t *testing.T) {
	merged := 0
	for i, p := range gsoFrames(5, 300) {
		if p.ext != "" || p.options != "" {
			continue // not mergeable
		}
		if p.proto == 6 {
			p.tcp.flags &^= 0x80 // CWR: not mergeable
		}
		size := 1 + len(p.payload)/40
		h, frame := p.gsoFrame(size)
		segments := splitAll(t, h, frame)
		if len(segments) < 2 {
			continue
		}
		merged++
		got := merge(mergeAll(), segments...)
		if len(got) != 1 || got[0].h != h || !bytes.Equal(got[0].frame, frame) {
			t.Fatalf("frame %d of %d segments: %d frames, first %v\nwant %v",
				i, len(segments), len(got), got[0], emitted{h, frame})
		}
		if n := got[0].h.Segments(len(frame)); n != len(segments) {
			t.Errorf("frame %d: Segments = %d, want %d", i, n, len(segments))
		}
	}
	if merged < 100 {
		t.Errorf("only %d frames were merged, want at least 100", merged)
	}
}

// TestSplitAfterMerge checks that splitting merged frames restores the packets and their order per
// flow. Only a constant ID counts up afterwards, which DF allows.
func TestSplitAfterMerge(t *testing.T) {
	for seed := range uint64(4) {
		traffic := newTraffic(seed, 10)
		packets := traffic.packets(1500)
		var want []emitted
		for _, p := range packets {
			want = append(want, emitted{frame: p})
		}
		emittedFrames, _ := mergeBoth(t, rand.New(rand.NewPCG(seed, 3)), mergeAll(), packets)
		var got []emitted
		for _, e := range emittedFrames {
			segments := splitAll(t, e.h, e.frame)
			if e.h.GSO != GSONone && len(segments) != e.h.Segments(len(e.frame)) {
				t.Fatalf("%d segments, Segments = %d", len(segments), e.h.Segments(len(e.frame)))
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

// withoutDFID returns a copy of b with ID 0 if b is a valid packet with DF, else b.
func withoutDFID(b []byte) []byte {
	p, ok := decode(b)
	if !ok || p.fragment != 0x4000 {
		return b
	}
	p.id = 0
	return p.encode()
}

// TestMergeOrder checks which flows a packet that is not mergeable flushes.
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
	mergedA, mergedB := len(a[0].encode())+500, len(b[0].encode())+400
	for _, tt := range []struct {
		name  string
		third []byte
		want  []int // lengths of emitted frames
	}{
		{"pure ACK: its flow", ack.encode(), []int{mergedA, len(ack.encode()), mergedB}},
		{"IPv4 options: their flow", options.encode(), []int{mergedA, len(options.encode()), mergedB}},
		{"no ports: both flows between the addresses", icmpBytes, []int{mergedA, mergedB, len(icmpBytes)}},
		{"unparsed: all flows", garbage, []int{mergedA, mergedB, len(garbage)}},
		{"other addresses: no flow", elsewhere, []int{len(elsewhere), mergedA, mergedB}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := merge(mergeAll(), a[0].encode(), b[0].encode(), a[1].encode(), b[1].encode(), tt.third)
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

// TestMergeBadChecksums corrupts one segment of a run, at each position. It must be emitted alone
// and unchanged, and the other segments must still be merged.
func TestMergeBadChecksums(t *testing.T) {
	traffic := newTraffic(7, 4)
	for kind := range traffic.flows {
		for index := range 5 {
			p := traffic.flows[kind]
			p.payload = traffic.fill[:5*700]
			h, frame := p.gsoFrame(700)
			packets := splitAll(t, h, frame)
			bad := packets[index]
			bad[len(bad)-3] ^= 0x40
			var alone int
			for _, e := range merge(mergeAll(), packets...) {
				if e.h.GSO == GSONone && bytes.Equal(e.frame, bad) {
					alone++
				}
				if e.h.GSO != GSONone && bytes.Contains(e.frame, bad[len(bad)-100:]) {
					t.Errorf("flow %d, index %d: corrupted segment was merged", kind, index)
				}
			}
			if alone != 1 {
				t.Errorf("flow %d, index %d: corrupted packet emitted %d times, want once", kind, index, alone)
			}
			if out := len(merge(mergeAll(), packets...)); out > 3 {
				t.Errorf("flow %d, index %d: %d frames, want at most 3", kind, index, out)
			}
		}
	}
}

// TestMergeMaxPacket merges frames of exactly maxPacket bytes.
func TestMergeMaxPacket(t *testing.T) {
	for i, p := range newTraffic(1, 4).flows {
		payload := 65535 - len(p.encode())
		p.payload = strings.Repeat("\xff", payload)
		h, frame := p.gsoFrame((payload + 59) / 60)
		out := merge(mergeAll(), splitAll(t, h, frame)...)
		if len(out) != 1 || !bytes.Equal(out[0].frame, frame) {
			t.Errorf("flow %d: %d frames, want one of %d bytes", i, len(out), len(frame))
		}
	}
}

// TestMergeTinyLimits exceeds every limit. No packet may be lost, duplicated or reordered.
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
		emittedFrames, _ := mergeBoth(t, rand.New(rand.NewPCG(8, 8)), l, packets)
		for _, e := range emittedFrames {
			for _, s := range splitAll(t, e.h, e.frame) {
				got = append(got, emitted{frame: withoutDFID(s)})
			}
		}
		compare(t, got, want)
	}
}

// TestMergeAcrossBuffers merges a frame whose segments are in three buffers, with and without free
// space at the end of the first. With enough space, the frame must be extended in place.
func TestMergeAcrossBuffers(t *testing.T) {
	p := newTraffic(9, 1).flows[0]
	p.payload = strings.Repeat("0123456789", 4000)
	h, frame := p.gsoFrame(1000)
	segments := splitAll(t, h, frame)
	for _, space := range []int{0, 500, 65536} {
		var out []emitted
		var bufs [][]byte
		inPlace := false
		m := NewMerger(mergeAll(), func(h Header, frame []byte) {
			inPlace = &frame[0] == &bufs[0][0]
			out = append(out, emitted{h, bytes.Clone(frame)})
		})
		for i := 0; i < len(segments); i += 15 {
			chunk := segments[i:min(i+15, len(segments))]
			buf := append(bytes.Join(chunk, nil), make([]byte, space)...)
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
			t.Errorf("space %d: %d frames, want the original frame", space, len(out))
		}
		if inPlace != (space == 65536) {
			t.Errorf("space %d: extended in place: %v", space, inPlace)
		}
	}
}

// TestMergeOtherFlow checks that a packet is not merged if any part of the flow key differs.
func TestMergeOtherFlow(t *testing.T) {
	for _, flow := range []int{0, 1, 2, 3} {
		a := fill(newTraffic(9, 4).flows[flow], 100)
		b := a
		b.tcp.seq += 100
		if !b.v6 {
			b.id++
		}
		if out := merge(mergeAll(), a.encode(), b.encode()); len(out) != 1 {
			t.Fatalf("flow %d: %d frames, want the two merged", flow, len(out))
		}
		var others []packet
		for i := 1; i < len(b.addrs); i += 4 { // increment a word and decrement the next: same checksum
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
			if out := merge(mergeAll(), a.encode(), o.encode()); len(out) != 2 {
				t.Errorf("flow %d was merged with addresses %x, ports %x, protocol %d", flow, o.addrs, o.ports, o.proto)
			}
		}
	}
}

// TestMergeBufferLimit checks that a buffer beyond the limit flushes the earlier ones.
func TestMergeBufferLimit(t *testing.T) {
	traffic := newTraffic(9, 1)
	frames := 0
	m := NewMerger(Limits{TCP: true, Buffers: 2}, func(Header, []byte) { frames++ })
	for i, p := range traffic.run(&traffic.flows[0], 3, 100) {
		if m.NextBuffer(p.encode()); frames != i/2 {
			t.Errorf("%d frames at buffer %d", frames, i)
		}
		m.Add(0, len(p.encode()))
	}
}

// TestMergeLongerHeader adds a segment whose header is longer than the entire first segment, which
// ends its buffer.
func TestMergeLongerHeader(t *testing.T) {
	p := fill(newTraffic(9, 1).flows[0], 1)
	p.tcp.options = ""
	frames := 0
	m := NewMerger(mergeAll(), func(Header, []byte) { frames++ })
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
	m := NewMerger(mergeAll(), func(Header, []byte) {})
	m.NextBuffer(buf)
	m.Add(n, len(buf)-n)
	defer func() {
		if recover() == nil {
			t.Error("no panic for a segment before the last one")
		}
	}()
	m.Add(0, n)
}
