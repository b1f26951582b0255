package offload

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// FuzzSplit splits arbitrary frames with arbitrary headers. Split must not panic, must terminate,
// and must not write beyond the length that Next returns.
func FuzzSplit(f *testing.F) {
	for _, p := range gsoFrames(11, 12) {
		h, frame := p.gsoFrame(1 + len(p.payload)/3)
		b := make([]byte, HeaderLen, HeaderLen+len(frame))
		h.Encode(b)
		f.Add(append(b, frame[:min(len(frame), 3000)]...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeHeader(b)
		if err != nil {
			return
		}
		frame := b[HeaderLen:]
		if len(frame) > maxPacket {
			return
		}
		before := bytes.Clone(frame)
		s, err := Split(h, frame)
		if err != nil {
			return
		}
		dst := make([]byte, s.MaxLen()+1)
		payload, segments := 0, 0
		for s.NextLen() > 0 {
			dst[s.NextLen()] = 0x5a
			n := s.Next(dst)
			if n <= s.header || n > s.MaxLen() || dst[n] != 0x5a {
				t.Fatalf("segment %d: %d bytes of at most %d, sentinel %#x", segments, n, s.MaxLen(), dst[n])
			}
			payload += n - s.header
			segments++
		}
		if payload != len(frame)-s.header || !bytes.Equal(frame, before) {
			t.Fatalf("%d of %d payload bytes; frame modified: %v",
				payload, len(frame)-s.header, !bytes.Equal(frame, before))
		}
		if s.Next(dst) != 0 {
			t.Fatal("segment after the last")
		}
	})
}

// FuzzSplitReference compares Split with the reference implementation. The input selects the
// packet's fields and the segment size.
func FuzzSplitReference(f *testing.F) {
	f.Add(uint8(0), []byte("payload to be split"), uint16(5), uint32(1), uint8(0x18), uint16(0xffff))
	f.Add(uint8(7), []byte("payload to be split"), uint16(1), uint32(1<<32-3), uint8(0xff), uint16(9))
	f.Fuzz(func(t *testing.T, kind uint8, payload []byte, size uint16, seq uint32, flags uint8, id uint16) {
		if len(payload) == 0 || len(payload) > 60000 || size == 0 || len(payload)/int(size) > 2000 {
			return
		}
		p := newTraffic(12, 8).flows[kind%8]
		p.payload, p.id, p.tcp.seq, p.tcp.flags = string(payload), id, seq, flags
		if p.v6 {
			p.id = 0
		}
		ecn := p.proto == 6 && kind&0x80 != 0
		h, frame := p.gsoFrame(int(size))
		if ecn {
			h.GSO |= GSOECN
		}
		got, want := splitAll(t, h, frame), p.slowSplit(int(size), ecn)
		if !bytes.Equal(bytes.Join(got, nil), bytes.Join(want, nil)) || len(got) != len(want) {
			t.Fatalf("%+v: %d segments, want %d:\n got % x\nwant % x", h, len(got), len(want), got, want)
		}
	})
}

// FuzzMerge compares Merger with the reference implementation. Each four bytes of input define a
// packet: its flow, a mutation, and its size. A mutation changes a field, with correct checksums,
// or flips a header bit.
func FuzzMerge(f *testing.F) {
	f.Add(uint64(1), bytes.Repeat([]byte{0, 255, 0, 9}, 40))
	f.Add(uint64(2), bytes.Repeat([]byte{0, 255, 0, 9, 1, 255, 0, 200, 3, 255, 0, 9}, 20))
	f.Add(uint64(3), bytes.Repeat([]byte{0, 255, 0, 9, 0, 255, 0, 9, 0, 64, 0, 9}, 20))
	f.Add(uint64(4), bytes.Repeat([]byte{0, 255, 0, 9, 0, 255, 0, 9, 0, 3, 0, 9}, 20))
	f.Fuzz(func(t *testing.T, seed uint64, ops []byte) {
		traffic := newTraffic(13, 12)
		var packets [][]byte
		for ; len(ops) >= 4 && len(packets) < 600; ops = ops[4:] {
			flow := &traffic.flows[ops[0]%12]
			p := *flow
			n := (int(ops[2])<<8 | int(ops[3])) % 1500
			p.payload = traffic.fill[:n]
			if p.proto == 6 {
				flow.tcp.seq += uint32(n)
			}
			if !p.v6 && ops[0]&0x80 == 0 {
				flow.id++
			}
			switch mutation := ops[1]; {
			case mutation < 54:
				traffic.rnd = rand.New(rand.NewPCG(uint64(mutation), 0))
				packets = append(packets, traffic.mutate(p))
			case mutation < 128:
				b := p.encode()
				b[int(mutation-54)%len(b)] ^= 1 << (ops[3] & 7)
				packets = append(packets, b)
			default:
				packets = append(packets, p.encode())
			}
		}
		got, want := mergeBoth(t, rand.New(rand.NewPCG(seed, 0)), mergeAll(), packets)
		compare(t, got, want)
	})
}

// FuzzMergeRaw merges arbitrary bytes as packets of one length. The Merger must not panic or lose
// packets.
func FuzzMergeRaw(f *testing.F) {
	for _, p := range gsoFrames(14, 6) {
		p.payload = p.payload[:min(len(p.payload), 100)]
		b := p.encode()
		f.Add(uint16(len(b)), bytes.Repeat(b, 3))
	}
	f.Fuzz(func(t *testing.T, size uint16, b []byte) {
		if size == 0 || len(b) > 60000 {
			return
		}
		segments, n := 0, 0
		m := NewMerger(mergeAll(), func(h Header, frame []byte) { n += h.Segments(len(frame)) })
		m.NextBuffer(bytes.Clone(b))
		for at := 0; at < len(b); at += int(size) {
			m.Add(at, min(int(size), len(b)-at))
			segments++
		}
		m.Flush()
		if n != segments {
			t.Fatalf("%d segments added, %d emitted", segments, n)
		}
	})
}
