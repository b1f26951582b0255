package offload

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
)

// splitAll splits a frame into separately allocated segments.
func splitAll(t testing.TB, h Header, frame []byte) [][]byte {
	t.Helper()
	s, err := Split(h, frame)
	if err != nil {
		t.Fatalf("Split(%+v): %v", h, err)
	}
	var out [][]byte
	for s.NextLen() > 0 {
		want := s.NextLen()
		dst := make([]byte, want)
		if n := s.Next(dst); n != want {
			t.Fatalf("Next wrote %d bytes, NextLen returned %d", n, want)
		}
		out = append(out, dst)
	}
	return out
}

// gsoFrames returns n random packets of every kind that can be split, from a seed.
func gsoFrames(seed uint64, n int) []packet {
	traffic := newTraffic(seed, 8)
	rnd := traffic.rnd
	var out []packet
	for range n {
		p := traffic.flows[rnd.IntN(len(traffic.flows))]
		size := []int{1 + rnd.IntN(10), 1 + rnd.IntN(3000), 1 + rnd.IntN(65300)}[rnd.IntN(3)]
		p.payload = traffic.fill[:size]
		p.id, p.tcp.seq = uint16(rnd.Uint32()), rnd.Uint32()
		if p.proto == 6 {
			p.tcp.flags |= uint8(rnd.Uint32()) & 0xc9 // CWR, ECE, PSH, FIN
			p.tcp.reserved = uint8(rnd.IntN(2))
		}
		switch {
		case p.v6 && rnd.IntN(3) == 0:
			p.ext = string([]byte{60, 1}) + strings.Repeat("\x00", 14) + string([]byte{p.proto, 0, 1, 4, 0, 0, 0, 0})
			p.next = 0
		case !p.v6 && rnd.IntN(3) == 0:
			p.options = "\x94\x04\x00\x00"
		}
		out = append(out, p)
	}
	return out
}

func TestSplitReference(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for i, p := range gsoFrames(1, 600) {
		size := 1 + rnd.IntN(max(1, min(len(p.payload)*5/4, 3000)))
		if len(p.payload)/size > 500 {
			size = 1 + len(p.payload)/100
		}
		h, frame := p.gsoFrame(size)
		ecn := p.proto == 6 && i%2 == 0
		if ecn {
			h.GSO |= GSOECN
		}
		before := bytes.Clone(frame)
		got, want := splitAll(t, h, frame), p.slowSplit(size, ecn)
		if len(got) != len(want) {
			t.Fatalf("frame %d, %+v: %d segments, want %d", i, h, len(got), len(want))
		}
		for j := range want {
			if !bytes.Equal(got[j], want[j]) {
				t.Fatalf("frame %d, %+v, segment %d of %d:\n got % x\nwant % x",
					i, h, j, len(want), got[j][:80], want[j][:80])
			}
		}
		if !bytes.Equal(frame, before) {
			t.Fatalf("frame %d was modified", i)
		}
	}
}

// TestSplitResume splits each frame into a sequence of slots, each too small for all segments.
func TestSplitResume(t *testing.T) {
	for i, p := range gsoFrames(2, 100) {
		size := 1 + len(p.payload)/7
		h, frame := p.gsoFrame(size)
		s, err := Split(h, frame)
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		slot := make([]byte, s.MaxLen()*2+s.MaxLen()/2)
		longest := 0
		for s.NextLen() > 0 {
			used := 0
			for {
				free := slot[used:]
				want := s.NextLen()
				before := bytes.Clone(free)
				n := s.Next(free)
				if n == 0 {
					if want != 0 && want <= len(free) {
						t.Fatalf("frame %d: Next wrote nothing: %d bytes needed, %d free", i, want, len(free))
					}
					if !bytes.Equal(free, before) || s.NextLen() != want {
						t.Fatalf("frame %d: Next changed state or dst although the segment did not fit", i)
					}
					break
				}
				longest = max(longest, n)
				used += n
			}
			got = append(got, slot[:used]...)
		}
		if want := bytes.Join(p.slowSplit(size, false), nil); !bytes.Equal(got, want) {
			t.Fatalf("frame %d: resumed split returns different bytes", i)
		}
		if longest != s.MaxLen() {
			t.Errorf("frame %d: longest segment %d, MaxLen %d", i, longest, s.MaxLen())
		}
	}
}

// TestSplitZeroChecksum splits frames whose checksum is zero. In UDP, zero means "no checksum" and
// is replaced. In TCP it is a regular value, which the kernel replaces only in frames without GSO.
func TestSplitZeroChecksum(t *testing.T) {
	for _, tt := range []struct {
		flow, offset int
		cut, single  uint16
	}{{0, 36, 0, 0xffff}, {1, 26, 0xffff, 0xffff}} {
		p := newTraffic(1, 2).flows[tt.flow]
		p.payload = strings.Repeat("\x00", 20)
		check := p.encode()[tt.offset:][:2]
		p.payload = string(check) + p.payload[2:] // now the sum is 0xffff
		h, frame := p.gsoFrame(20)
		if got := binary.BigEndian.Uint16(splitAll(t, h, frame)[0][tt.offset:]); got != tt.cut {
			t.Errorf("protocol %d, cut: checksum %#04x, want %#04x", p.proto, got, tt.cut)
		}
		h.GSO = GSONone
		if got := binary.BigEndian.Uint16(splitAll(t, h, frame)[0][tt.offset:]); got != tt.single {
			t.Errorf("protocol %d, single: checksum %#04x, want %#04x", p.proto, got, tt.single)
		}
	}
}

// TestSplitNoGSO compares the result of Split for a frame without GSO with the complete packet.
func TestSplitNoGSO(t *testing.T) {
	empty := newTraffic(1, 2).flows[1] // UDP without payload: the checksum ends the frame
	for i, p := range append(gsoFrames(3, 200), empty) {
		want := p.encode()
		if got := splitAll(t, Header{}, want); len(got) != 1 || !bytes.Equal(got[0], want) {
			t.Fatalf("frame %d with zero header: changed", i)
		}
		h, frame := p.gsoFrame(1)
		h.GSO, h.SegmentSize = GSONone, 0
		if got := splitAll(t, h, frame); len(got) != 1 || !bytes.Equal(got[0], want) {
			t.Fatalf("frame %d with partial checksum: wrong bytes", i)
		}
	}
}

func TestSplitErrors(t *testing.T) {
	traffic := newTraffic(4, 4)
	tcp4, udp4, tcp6 := traffic.flows[0], traffic.flows[1], traffic.flows[2]
	for _, p := range []*packet{&tcp4, &udp4, &tcp6} {
		p.payload = traffic.fill[:3000]
	}
	fragment := tcp4
	fragment.fragment = 0x2000
	unknownExt := tcp6
	unknownExt.ext, unknownExt.next = "\x06\x00\x00\x00\x00\x00\x00\x00", 44
	empty := tcp4
	empty.payload = ""
	tests := []struct {
		name string
		p    packet
		edit func(h *Header, b []byte) []byte
		want error
	}{
		{"no bytes", tcp4, func(h *Header, b []byte) []byte { return nil }, ErrShortFrame},
		{"no bytes, no GSO", tcp4, func(h *Header, b []byte) []byte { *h = Header{}; return nil }, ErrShortFrame},
		{"UFO", udp4, func(h *Header, b []byte) []byte { h.GSO = 3; return b }, ErrGSOType},
		{"ECN alone", tcp4, func(h *Header, b []byte) []byte { h.GSO = GSOECN; return b }, ErrGSOType},
		{"ECN with UDP", udp4, func(h *Header, b []byte) []byte { h.GSO |= GSOECN; return b }, ErrGSOType},
		{"no NEEDS_CSUM", tcp4, func(h *Header, b []byte) []byte { h.Flags = DataValid; return b }, ErrNoChecksum},
		{"no size", tcp4, func(h *Header, b []byte) []byte { h.SegmentSize = 0; return b }, ErrSegmentSize},
		{"TSO6 on IPv4", tcp4, func(h *Header, b []byte) []byte { h.GSO = GSOTCPv6; return b }, ErrIPVersion},
		{"TSO4 on IPv6", tcp6, func(h *Header, b []byte) []byte { h.GSO = GSOTCPv4; return b }, ErrIPVersion},
		{"version 5", tcp4, func(h *Header, b []byte) []byte { b[0] = 0x55; return b }, ErrIPVersion},
		{"TSO4 on UDP", udp4, func(h *Header, b []byte) []byte { h.GSO = GSOTCPv4; return b }, ErrChecksumOffset},
		{"truncated", tcp4, func(h *Header, b []byte) []byte { return b[:len(b)-1] }, ErrLength},
		{"truncated, IPv6", tcp6, func(h *Header, b []byte) []byte { return b[:len(b)-1] }, ErrLength},
		{"truncated IPv6 header", tcp6, func(h *Header, b []byte) []byte { return b[:39] }, ErrShortFrame},
		{"fragment", fragment, nil, ErrFragment},
		{"fragment header", unknownExt, nil, ErrExtension},
		{"wrong start", tcp4, func(h *Header, b []byte) []byte { h.ChecksumStart += 4; return b }, ErrChecksumOffset},
		{
			"wrong start, IPv6", tcp6,
			func(h *Header, b []byte) []byte { h.ChecksumStart += 8; return b }, ErrChecksumOffset,
		},
		{"wrong offset", tcp4, func(h *Header, b []byte) []byte { h.ChecksumOffset = 6; return b }, ErrChecksumOffset},
		{"header length below 20", tcp4, func(h *Header, b []byte) []byte { b[32] = 0x40; return b }, ErrShortFrame},
		{"no payload", empty, nil, ErrShortFrame},
		{
			"TCP header past the end", empty,
			func(h *Header, b []byte) []byte { b[32] = 0xf0; return b }, ErrShortFrame,
		},
		{
			"extension header past the end", tcp6,
			func(h *Header, b []byte) []byte { b[6], b[5], b[4] = 60, 4, 0; return b[:44] }, ErrShortFrame,
		},
		{
			"partial checksum past the end", tcp4,
			func(h *Header, b []byte) []byte {
				h.GSO = GSONone
				return b[:h.ChecksumStart+h.ChecksumOffset+1]
			}, ErrChecksumOffset,
		},
		{
			"partial checksum without offset", tcp4,
			func(h *Header, b []byte) []byte { *h = Header{Flags: NeedsChecksum}; return b }, ErrChecksumOffset,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, b := tt.p.gsoFrame(1000)
			if tt.edit != nil {
				b = tt.edit(&h, b)
			}
			if _, err := Split(h, b); !errors.Is(err, tt.want) {
				t.Errorf("Split: %v, want %v", err, tt.want)
			}
		})
	}
}

func TestHeaderCodec(t *testing.T) {
	h := Header{
		Flags: 1, GSO: GSOTCPv6 | GSOECN, HeaderLen: 72, SegmentSize: 1428,
		ChecksumStart: 40, ChecksumOffset: 16,
	}
	b := make([]byte, HeaderLen+1)
	b[HeaderLen] = 0x77
	h.Encode(b)
	want := []byte{1, 0x84}
	for _, v := range []uint16{72, 1428, 40, 16} {
		want = binary.NativeEndian.AppendUint16(want, v)
	}
	if !bytes.Equal(b, append(want, 0x77)) {
		t.Errorf("encoded % x, want % x", b, want)
	}
	got, err := DecodeHeader(b)
	if err != nil || got != h {
		t.Errorf("decoded %+v, %v; want %+v", got, err, h)
	}
	if _, err := DecodeHeader(b[:HeaderLen-1]); !errors.Is(err, ErrShortHeader) {
		t.Errorf("9 bytes: %v, want %v", err, ErrShortHeader)
	}
}
