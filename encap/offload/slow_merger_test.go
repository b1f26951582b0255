package offload

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// slowMerger is the reference implementation of Merger. It keeps the packets of each flow and
// builds a frame when the flow is flushed. The order of frames is defined within each flow, not
// across flows.
type slowMerger struct {
	limits Limits
	open   map[string][]packet
	first  map[string][]byte // original bytes of the first packet of each open flow
	out    []emitted
}

type emitted struct {
	h     Header
	frame []byte
}

func (e emitted) String() string {
	return fmt.Sprintf("%+v, %d bytes % x...", e.h, len(e.frame), e.frame[:min(len(e.frame), 80)])
}

func newSlowMerger(l Limits) *slowMerger {
	return &slowMerger{limits: l, open: map[string][]packet{}, first: map[string][]byte{}}
}

// flowOf returns keys for the address pair and the flow of a packet. flow is empty if it is
// unknown, and both are empty if the packet cannot be parsed.
func flowOf(b []byte) (pair, flow string) {
	if len(b) < 20 {
		return "", ""
	}
	switch b[0] >> 4 {
	case 4:
		header := int(b[0]&15) * 4
		if header < 20 || int(binary.BigEndian.Uint16(b[2:])) != len(b) {
			return "", ""
		}
		pair = "4" + string(b[12:20])
		if (b[9] == 6 || b[9] == 17) && len(b) >= header+8 && binary.BigEndian.Uint16(b[6:])&0x3fff == 0 {
			flow = pair + string(b[9:10]) + string(b[header:header+4])
		}
	case 6:
		if len(b) < 40 || int(binary.BigEndian.Uint16(b[4:])) != len(b)-40 {
			return "", ""
		}
		pair = "6" + string(b[8:40])
		if (b[6] == 6 || b[6] == 17) && len(b) >= 48 {
			flow = pair + string(b[6:7]) + string(b[40:44])
		}
	}
	return pair, flow
}

func (m *slowMerger) add(b []byte) {
	pair, flow := flowOf(b)
	if flow == "" {
		for k := range m.open {
			if strings.HasPrefix(k, pair) {
				m.flushFlow(k)
			}
		}
		m.out = append(m.out, emitted{frame: b})
		return
	}
	p, ok := decode(b)
	ok = ok && m.mergeable(p)
	if ok && m.follows(m.open[flow], p) {
		m.open[flow] = append(m.open[flow], p)
		if p.tcp.flags&0x09 != 0 || len(p.payload) < len(m.open[flow][0].payload) {
			m.flushFlow(flow)
		}
		return
	}
	m.flushFlow(flow)
	if !ok || p.tcp.flags&0x09 != 0 {
		m.out = append(m.out, emitted{frame: b})
		return
	}
	m.open[flow], m.first[flow] = []packet{p}, b
}

func (m *slowMerger) mergeable(p packet) bool {
	if p.options != "" || p.ext != "" || p.fragment&0x8000 != 0 || p.zeroSum || p.payload == "" {
		return false
	}
	if p.proto == 6 {
		return m.limits.TCP && p.tcp.flags|0x49 == 0x59
	}
	return m.limits.UDP
}

func (m *slowMerger) follows(open []packet, p packet) bool {
	if len(open) == 0 || p.proto == 17 && len(open) >= m.limits.UDPSegments {
		return false
	}
	first, total := open[0], len(open[0].encode())
	want := first
	want.payload = p.payload
	for _, q := range open[1:] {
		total += len(q.payload)
	}
	if p.proto == 6 {
		want.tcp.flags |= p.tcp.flags & 0x09
		want.tcp.seq += uint32(total - len(first.encode()) + len(first.payload))
	}
	fixed := p.fragment == 0x4000 && p.id == first.id
	if len(open) > 1 {
		fixed = open[1].id == first.id
	}
	if !fixed && !p.v6 {
		want.id += uint16(len(open))
	}
	return p == want && len(p.payload) <= len(first.payload) && total+len(p.payload) <= 65535
}

func (m *slowMerger) flushFlow(flow string) {
	open := m.open[flow]
	delete(m.open, flow)
	switch len(open) {
	case 0:
	case 1:
		m.out = append(m.out, emitted{frame: m.first[flow]})
	default:
		p := open[0]
		for _, q := range open[1:] {
			p.payload += q.payload
			p.tcp.flags |= q.tcp.flags
		}
		h, frame := p.gsoFrame(len(open[0].payload))
		m.out = append(m.out, emitted{h, frame})
	}
}

func (m *slowMerger) flush() {
	for k := range m.open {
		m.flushFlow(k)
	}
}
