package encap

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// fragment returns all fragments of pkt.
func fragment(t *testing.T, pkt []byte, mtu int) [][]byte {
	t.Helper()
	f, ok := NewFragmenter(pkt, mustParse(t, pkt), mtu)
	if !ok {
		t.Fatalf("NewFragmenter: packet of %d bytes, MTU %d: not ok", len(pkt), mtu)
	}
	var all [][]byte
	for piece := f.Next(nil); len(piece) > 0; piece = f.Next(nil) {
		all = append(all, piece)
	}
	return all
}

// reassemble joins fragments in any order (RFC 791 section 3.2).
func reassemble(t *testing.T, pieces [][]byte) (payload []byte, more bool) {
	t.Helper()
	base := -1
	for _, p := range pieces {
		field := binary.BigEndian.Uint16(p[6:])
		if at := int(field&maskOffset) * 8; base < 0 || at < base {
			base = at
		}
	}
	more = true
	for _, p := range pieces {
		field := binary.BigEndian.Uint16(p[6:])
		at := int(field&maskOffset)*8 - base
		data := p[int(p[0]&0x0f)*4:]
		if need := at + len(data); need > len(payload) {
			payload = append(payload, make([]byte, need-len(payload))...)
		}
		copy(payload[at:], data)
		if field&flagMF == 0 {
			more = false
		} else if len(data)%8 != 0 {
			t.Errorf("non-last fragment has %d payload bytes, want a multiple of 8", len(data))
		}
	}
	return payload, more
}

func TestFragmentReassembly(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		options := make([]byte, rng.IntN(11)*4)
		for i := range options {
			options[i] = byte(rng.Uint32())
		}
		payload := make([]byte, 1+rng.IntN(4000))
		for i := range payload {
			payload[i] = byte(rng.Uint32())
		}
		flags := uint16(0)
		if rng.IntN(3) == 0 { // a packet that is already a fragment
			flags = flagMF | uint16(rng.IntN(1000))
			payload = append(payload, make([]byte, -len(payload)&7)...)
		}
		pkt := packet4("10.5.1.2", "10.5.2.2", ProtoUDP, flags, options, payload)
		mtu := max(MinMTU4, len(options)+28) + rng.IntN(1500)
		pieces := fragment(t, pkt, mtu)
		for _, p := range pieces {
			if len(p) > mtu {
				t.Fatalf("fragment of %d bytes, MTU %d", len(p), mtu)
			}
			in := mustParse(t, p)
			if slowSum(p[:in.HeaderLen]) != 0xffff {
				t.Fatalf("wrong header checksum: %x", p[:in.HeaderLen])
			}
			same := append(append([]byte(nil), p[8:10]...), p[12:20]...)
			if !bytes.Equal(same, append(append([]byte(nil), pkt[8:10]...), pkt[12:20]...)) ||
				!bytes.Equal(p[4:6], pkt[4:6]) {
				t.Fatalf("header %x, original header %x", p[:20], pkt[:20])
			}
		}
		rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		got, more := reassemble(t, pieces)
		if !bytes.Equal(got, payload) || more != (flags&flagMF != 0) {
			t.Fatalf("reassembled %d of %d payload bytes, more fragments %v, flags %x",
				len(got), len(payload), more, flags)
		}
	}
}

func TestFragmentOptions(t *testing.T) {
	copied := []byte{0x94, 4, 0, 0} // router alert: copied
	local := []byte{7, 7, 4, 0, 0, 0, 0}
	nop := []byte{1}
	for _, c := range []struct {
		name    string
		options []byte
		want    []byte // in non-first fragments
	}{
		{"none", nil, nil},
		{"copied", copied, copied},
		{"not copied", append(append([]byte(nil), local...), nop...), nil},
		{"mixed", append(append(append([]byte(nil), local...), nop...), copied...), copied},
		{"end of list hides the rest", append([]byte{0, 0, 0, 0}, copied...), nil},
		{"copied and padded", append([]byte{0x82, 3, 1}, 0), []byte{0x82, 3, 1, 0}},
		{"length 0", []byte{0x82, 0, 1, 1}, nil},
		{"longer than the options", []byte{0x82, 9, 1, 1}, nil},
	} {
		pkt := packet4("10.5.1.2", "10.5.2.2", ProtoUDP, 0, c.options, make([]byte, 200))
		pieces := fragment(t, pkt, 100)
		if got := pieces[0][20 : int(pieces[0][0]&15)*4]; !bytes.Equal(got, c.options) {
			t.Errorf("%s: first fragment has options %x", c.name, got)
		}
		for _, p := range pieces[1:] {
			if got := p[20 : int(p[0]&15)*4]; !bytes.Equal(got, c.want) {
				t.Errorf("%s: non-first fragment has options %x, want %x", c.name, got, c.want)
			}
		}
	}
}

func TestNewFragmenterRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		pkt  []byte
		mtu  int
		want bool
	}{
		{"may be cut", packet4("10.5.1.2", "10.5.2.2", ProtoUDP, 0, nil, make([]byte, 200)), 68, true},
		{"DF", packet4("10.5.1.2", "10.5.2.2", ProtoUDP, flagDF, nil, make([]byte, 200)), 68, false},
		{"IPv6", packet6("fd00::1", "fd00::2", ProtoUDP, make([]byte, 2000)), 1280, false},
		{"no room for 8 bytes",
			packet4("10.5.1.2", "10.5.2.2", ProtoUDP, 0, make([]byte, 40), make([]byte, 200)), 67, false},
		{"room for 8 bytes",
			packet4("10.5.1.2", "10.5.2.2", ProtoUDP, 0, make([]byte, 40), make([]byte, 200)), 68, true},
		{"absurd MTU", packet4("10.5.1.2", "10.5.2.2", ProtoUDP, 0, nil, make([]byte, 200)), -28, false},
	} {
		if _, ok := NewFragmenter(c.pkt, mustParse(t, c.pkt), c.mtu); ok != c.want {
			t.Errorf("%s: %v", c.name, ok)
		}
	}
}

func FuzzFragments(f *testing.F) {
	f.Add(packet4("10.5.1.2", "10.5.2.2", ProtoUDP, 0, []byte{0x94, 4, 0, 0}, make([]byte, 2000)), 576)
	f.Fuzz(func(t *testing.T, pkt []byte, mtu int) {
		in, err := ParseInner(pkt)
		if err != nil {
			return
		}
		cutter, ok := NewFragmenter(pkt, &in, mtu)
		if !ok {
			return
		}
		var pieces [][]byte
		for piece := cutter.Next(nil); len(piece) > 0; piece = cutter.Next(nil) {
			if len(piece) > mtu {
				t.Fatalf("fragment of %d bytes, MTU %d", len(piece), mtu)
			}
			pieces = append(pieces, piece)
		}
		if len(pieces) == 0 {
			return // no payload
		}
		if int(binary.BigEndian.Uint16(pkt[6:])&maskOffset)*8+len(pkt) > 65535+ipv4HeaderLen {
			return // offset beyond 65,535 bytes
		}
		got, _ := reassemble(t, pieces)
		if !bytes.Equal(got, pkt[in.HeaderLen:]) {
			t.Fatalf("reassembled %d of %d payload bytes", len(got), len(pkt)-in.HeaderLen)
		}
	})
}
