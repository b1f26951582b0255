package offload

import (
	"fmt"
	"strings"
	"testing"
)

// benchCases are segments for an Ethernet MTU, for a jumbo MTU, and small datagrams.
var benchCases = []struct {
	name    string
	flow    int // index in newTraffic: 0 TCP and 1 UDP over IPv4, 2 TCP and 3 UDP over IPv6
	payload int // payload bytes of the frame
	size    int // payload bytes per segment
}{
	{"tcp4-1448", 0, 45 * 1448, 1448},
	{"tcp6-1428", 2, 45 * 1428, 1428},
	{"tcp4-8948", 0, 7 * 8948, 8948},
	{"udp4-1400", 1, 46 * 1400, 1400},
	{"udp4-64", 1, 64 * 64, 64},
}

func benchFrame(flow, payload, size int) (Header, []byte) {
	p := newTraffic(1, 4).flows[flow]
	if p.proto == 6 {
		p.tcp.options = strings.Repeat("\x01", 12)
	}
	p.payload = strings.Repeat("0123456789abcdef", payload/16+1)[:payload]
	return p.gsoFrame(size)
}

// cut writes all segments to dst and returns their total length.
func cut(s Splitter, dst []byte) int {
	n := 0
	for s.NextLen() > 0 {
		n += s.Next(dst[n:])
	}
	return n
}

func BenchmarkSplit(b *testing.B) {
	for _, c := range benchCases {
		b.Run(c.name, func(b *testing.B) {
			h, frame := benchFrame(c.flow, c.payload, c.size)
			dst := make([]byte, 2*len(frame)+4096)
			b.SetBytes(int64(c.payload))
			b.ReportAllocs()
			for b.Loop() {
				s, err := Split(h, frame)
				if err != nil {
					b.Fatal(err)
				}
				cut(s, dst)
			}
			perSegment(b, (c.payload+c.size-1)/c.size)
		})
	}
}

func perSegment(b *testing.B, segments int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(segments), "ns/segment")
}

// BenchmarkMerge merges the segments of one frame, contiguous in a buffer as the kernel delivers a
// train. The segments are copied to the buffer in every iteration, since merging moves them. The
// sub-benchmark "copy" measures the cost of that alone.
func BenchmarkMerge(b *testing.B) {
	for _, c := range benchCases {
		h, frame := benchFrame(c.flow, c.payload, c.size)
		s, err := Split(h, frame)
		if err != nil {
			b.Fatal(err)
		}
		wire := make([]byte, 2*len(frame)+4096)
		wire = wire[:cut(s, wire)]
		step := s.MaxLen()
		run := func(name string, op func(m *Merger, buf []byte, n int)) {
			b.Run(c.name+"/"+name, func(b *testing.B) {
				frames := 0
				m := NewMerger(mergeAll(), func(Header, []byte) { frames++ })
				buf := make([]byte, 3*65536)
				b.SetBytes(int64(c.payload))
				b.ReportAllocs()
				for b.Loop() {
					op(m, buf, copy(buf, wire))
				}
				perSegment(b, (c.payload+c.size-1)/c.size)
				b.ReportMetric(float64(frames)/float64(b.N), "frames/op")
			})
		}
		run("copy", func(*Merger, []byte, int) {})
		run("merge", func(m *Merger, buf []byte, n int) {
			m.NextBuffer(buf)
			for at := 0; at < n; at += step {
				m.Add(at, min(step, n-at))
			}
			m.Flush()
		})
	}
}

// BenchmarkMergeFlows merges 64-byte datagrams of many interleaved flows, eight per flow, so that
// no segment directly follows the one before it.
func BenchmarkMergeFlows(b *testing.B) {
	for _, flows := range []int{1, 16, 250} {
		b.Run(fmt.Sprint(flows), func(b *testing.B) {
			const rounds = 8
			var wire []byte
			p := newTraffic(1, 4).flows[1]
			p.payload = strings.Repeat("x", 64)
			for range rounds {
				for f := range flows {
					p.ports = uint32(40000+f)<<16 | 443
					wire = append(wire, p.encode()...)
				}
				p.id++
			}
			step := len(wire) / rounds / flows
			frames := 0
			m := NewMerger(mergeAll(), func(Header, []byte) { frames++ })
			buf := make([]byte, len(wire))
			b.ReportAllocs()
			for b.Loop() {
				copy(buf, wire)
				m.NextBuffer(buf)
				for at := 0; at < len(wire); at += step {
					m.Add(at, step)
				}
				m.Flush()
			}
			perSegment(b, rounds*flows)
			b.ReportMetric(float64(frames)/float64(b.N), "frames/op")
		})
	}
}

func TestAllocs(t *testing.T) {
	for _, c := range benchCases {
		h, frame := benchFrame(c.flow, c.payload, c.size)
		buf := make([]byte, 3*65536)
		frames := 0
		m := NewMerger(mergeAll(), func(Header, []byte) { frames++ })
		n := testing.AllocsPerRun(20, func() {
			s, err := Split(h, frame)
			if err != nil {
				t.Fatal(err)
			}
			step, wire := s.MaxLen(), cut(s, buf)
			m.NextBuffer(buf[:wire/2/step*step])
			for at := 0; at+step <= wire/2; at += step {
				m.Add(at, step)
			}
			m.NextBuffer(buf)
			for at := 0; at < wire; at += step {
				m.Add(at, min(step, wire-at))
			}
			m.Flush()
		})
		if n != 0 {
			t.Errorf("%s: %v allocations per frame split and merged, want 0", c.name, n)
		}
		if frames == 0 {
			t.Errorf("%s: no frames emitted", c.name)
		}
	}
}
