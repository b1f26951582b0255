package offload

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"
)

// traffic generates a random mix of packets from a seed: runs of mergeable segments, with packets
// that must not be merged in between.
type traffic struct {
	rnd   *rand.Rand
	flows []packet
	fill  string // payload bytes to take from
}

func newTraffic(seed uint64, flows int) *traffic {
	t := &traffic{rnd: rand.New(rand.NewPCG(seed, 1))}
	var fill strings.Builder
	for range 70000 {
		fill.WriteByte(byte(t.rnd.Uint32()))
	}
	t.fill = fill.String()
	for i := range flows {
		t.flows = append(t.flows, t.newFlow(i))
	}
	return t
}

func (t *traffic) newFlow(i int) packet {
	p := packet{
		v6: i%4 > 1, proto: []uint8{6, 17}[i%2], ttl: 64, tos: uint8(t.rnd.IntN(3)),
		ports: uint32(40000+i)<<16 | 443, id: uint16(t.rnd.Uint32()),
	}
	if i%3 > 0 && !p.v6 {
		p.fragment = 0x4000
	}
	if p.v6 {
		p.label, p.id = uint32(i), 0
		p.addrs = "\xfd" + strings.Repeat("\x10", 14) + string(rune('a'+i%3)) +
			"\xfd" + strings.Repeat("\x20", 14) + "\x02"
	} else {
		p.addrs = "\x0a\x01\x00" + string(rune('a'+i%3)) + "\x0a\x02\x00\x07"
	}
	if p.proto == 6 {
		p.tcp = tcpFields{seq: t.rnd.Uint32(), ack: t.rnd.Uint32(), flags: 0x10, window: 502}
		p.tcp.options = []string{"", "\x01\x01\x08\x0a\x00\x00\x12\x34\x00\x00\x56\x78"}[i/2%2]
	}
	return p
}

// run returns the next n segments of flow f with payloads of the given size; the last may be
// shorter.
func (t *traffic) run(f *packet, n, size int) []packet {
	var out []packet
	fixed := f.fragment == 0x4000 && t.rnd.IntN(4) == 0
	for i := range n {
		if i == n-1 && t.rnd.IntN(3) == 0 {
			size = 1 + t.rnd.IntN(size)
		}
		q := *f
		at := t.rnd.IntN(len(t.fill) - size)
		q.payload = t.fill[at : at+size]
		if f.proto == 6 && i == n-1 && t.rnd.IntN(3) == 0 {
			q.tcp.flags |= 8
		}
		out = append(out, q)
		if f.proto == 6 {
			f.tcp.seq += uint32(size)
		}
		if !f.v6 && !fixed {
			f.id++
		}
	}
	return out
}

// mutate changes one property of p that must prevent or affect merging, and returns the packet's
// bytes.
func (t *traffic) mutate(p packet) []byte {
	switch t.rnd.IntN(18) {
	case 0:
		p.ttl--
	case 1:
		p.tos ^= 3 // ECN
	case 2:
		p.id += 7
	case 3:
		p.fragment ^= 0x4000
	case 4:
		p.tcp.ack++
	case 5:
		p.tcp.window++
	case 6:
		p.tcp.seq += 1000
	case 7:
		p.tcp.flags ^= []uint8{1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80}[t.rnd.IntN(8)]
	case 8:
		p.tcp.options = "\x01\x01\x08\x0a\x00\x00\x12\x34\x00\x00\x56\x79"
	case 9:
		p.payload = ""
	case 10:
		p.options = "\x94\x04\x00\x00"
	case 11:
		p.ext, p.next = string(rune(p.proto))+"\x00\x01\x04\x00\x00\x00\x00", 60
	case 12:
		p.zeroSum = true
	case 13:
		p.fragment = 0x2000
	case 14:
		p.tcp.reserved = 1
	case 15:
		p.label ^= 5
	}
	b := p.encode()
	switch t.rnd.IntN(12) {
	case 0:
		b[t.rnd.IntN(len(b))] ^= 1 << t.rnd.IntN(8) // corruption, mostly detected by a checksum
	case 1:
		b = b[:t.rnd.IntN(len(b))+1]
	case 2:
		b = append(b, 0, 0) // trailing bytes
	case 3:
		b[len(b)-1] ^= 0x10 // corruption of the payload or header checksum
	}
	return b
}

// packets returns about n packets.
func (t *traffic) packets(n int) [][]byte {
	var out [][]byte
	for len(out) < n {
		f := &t.flows[t.rnd.IntN(len(t.flows))]
		size := []int{1, 5, 64, 300, 1000, 1400}[t.rnd.IntN(6)]
		for _, p := range t.run(f, 1+t.rnd.IntN([]int{10, 60, 200}[t.rnd.IntN(3)]), size) {
			switch {
			case t.rnd.IntN(40) == 0:
				out = append(out, t.mutate(p))
			case t.rnd.IntN(100) == 0:
				out = append(out, t.otherPacket())
				fallthrough
			default:
				out = append(out, p.encode())
			}
			if t.rnd.IntN(30) == 0 { // another flow in between
				g := &t.flows[t.rnd.IntN(len(t.flows))]
				out = append(out, t.run(g, 1, 1+t.rnd.IntN(100))[0].encode())
			}
		}
	}
	return out
}

// otherPacket returns a packet that is neither TCP nor UDP.
func (t *traffic) otherPacket() []byte {
	p := t.flows[t.rnd.IntN(len(t.flows))]
	p.proto = 17
	p.payload = t.fill[:10]
	b := p.encode()
	switch t.rnd.IntN(4) {
	case 0:
		b[0] = 0x30 // unknown IP version
	case 1:
		b = b[:10]
	default:
		if p.v6 {
			b[6] = 58
		} else {
			b[9] = 1
			b[10], b[11] = 0, 0
			binary.BigEndian.PutUint16(b[10:], ^slowSum(b[:20]))
		}
	}
	return b
}

// span is the position of a packet in its buffer.
type span struct{ from, n int }

// layOut writes packets one after the other to buf, with occasional gaps as for dropped packets,
// and returns their spans and the remaining packets.
func layOut(rnd *rand.Rand, buf []byte, packets [][]byte) ([]span, [][]byte) {
	var out []span
	at := 0
	for n := 1 + rnd.IntN(80); n > 0 && len(packets) > 0 && at+len(packets[0])+9 <= 65536; n-- {
		if rnd.IntN(20) == 0 {
			at += rnd.IntN(9)
		}
		out = append(out, span{at, copy(buf[at:], packets[0])})
		at += len(packets[0])
		packets = packets[1:]
	}
	return out, packets
}

// mergeBoth adds packets to a Merger and to the reference implementation, flushes both after a few
// buffers, and returns the frames emitted by each. Half of the buffers have free space at the end.
// All buffers are overwritten after each flush.
func mergeBoth(t testing.TB, rnd *rand.Rand, l Limits, packets [][]byte) (got, want []emitted) {
	t.Helper()
	m := NewMerger(l, func(h Header, frame []byte) {
		got = append(got, emitted{h, bytes.Clone(frame)})
	})
	reference := newSlowMerger(l.withDefaults())
	buffers := make([][]byte, 16)
	for i := range buffers {
		buffers[i] = make([]byte, 65536*(1+i%2))
	}
	for len(packets) > 0 {
		for _, buf := range buffers[:1+rnd.IntN(len(buffers))] {
			var spans []span
			before := packets
			spans, packets = layOut(rnd, buf, packets)
			m.NextBuffer(buf)
			for i, p := range spans {
				reference.add(before[i])
				m.Add(p.from, p.n)
			}
		}
		m.Flush()
		reference.flush()
		for _, buf := range buffers {
			copy(buf, bytes.Repeat([]byte{0xaa}, len(buf)))
		}
	}
	n := len(got)
	m.Flush()
	if len(got) != n {
		t.Error("second Flush emitted frames")
	}
	return got, reference.out
}
