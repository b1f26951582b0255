package offload

import (
	"encoding/binary"
	"strings"
	"testing"
)

// fill returns p with a payload of n bytes.
func fill(p packet, n int) packet {
	p.payload = strings.Repeat("\x5a", n)
	return p
}

// TestMergeRules checks each merge rule on two consecutive segments, after one change to the second
// or to both. Checksums are correct unless raw changes bytes.
func TestMergeRules(t *testing.T) {
	type change struct {
		name   string
		flow   int             // 0 TCP, 1 UDP over IPv4; 2, 3 over IPv6
		first  func(p *packet) // changes the first segment
		second func(p *packet) // changes the second
		raw    func(b []byte)  // changes the bytes of both
		merged bool
	}
	both := func(name string, flow int, f func(p *packet), merged bool) change {
		return change{name: name, flow: flow, first: f, second: f, merged: merged}
	}
	second := func(name string, flow int, f func(p *packet), merged bool) change {
		return change{name: name, flow: flow, second: f, merged: merged}
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
		second("shorter segment", 0, func(p *packet) { *p = fill(*p, 99) }, true),
		second("longer segment", 0, func(p *packet) { *p = fill(*p, 101) }, false),
		second("shorter datagram", 1, func(p *packet) { *p = fill(*p, 1) }, true),
		second("longer datagram", 3, func(p *packet) { *p = fill(*p, 101) }, false),
		both("no payload", 1, func(p *packet) { p.payload = "" }, false),
		both("IPv4 options", 0, func(p *packet) { p.options = "\x94\x04\x00\x00" }, false),
		both("IPv4 reserved bit", 0, func(p *packet) { p.fragment |= 0x8000 }, false),
		both("fragment", 1, func(p *packet) { p.fragment = 0x2000 }, false),
		both("constant ID with DF", 0, func(p *packet) { p.fragment, p.id = 0x4000, 7 }, true),
		both("constant ID without DF", 0, func(p *packet) { p.fragment, p.id = 0, 7 }, false),
		both("constant ID without DF, udp", 1, func(p *packet) { p.fragment, p.id = 0, 7 }, false),
		second("ID jumps", 0, func(p *packet) { p.id++ }, false),
		second("ID decreases", 0, func(p *packet) { p.id -= 2 }, false),
		both("extension header", 2, func(p *packet) {
			p.ext, p.next = "\x06\x00\x01\x04\x00\x00\x00\x00", 60
		}, false),
		second("traffic class", 2, func(p *packet) { p.tos ^= 2 }, false),
		second("flow label", 3, func(p *packet) { p.label++ }, false),
		second("hop limit", 3, func(p *packet) { p.ttl-- }, false),
		{name: "UDP length below packet length", flow: 1, raw: func(b []byte) {
			b[25]--
			putUDPChecksum(b)
		}},
		{name: "no UDP checksum", flow: 1, raw: func(b []byte) { b[26], b[27] = 0, 0 }},
		{name: "no UDP checksum, computed one is zero", flow: 1, raw: func(b []byte) {
			b[28], b[29] = 0, 0
			putUDPChecksum(b)
			copy(b[28:30], b[26:28])
			b[26], b[27] = 0, 0
		}},
		{name: "trailing bytes", flow: 0, raw: func(b []byte) { b[3]--; b[10], b[11] = 0, 0 }},
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
			out := merge(mergeAll(), packets...)
			if (len(out) == 1) != tt.merged {
				t.Errorf("%d frames, want merged: %v", len(out), tt.merged)
			}
		})
	}
}

// putUDPChecksum sets the checksum of a UDP packet over IPv4.
func putUDPChecksum(b []byte) {
	b[26], b[27] = 0, 0
	pseudo := append(append([]byte{}, b[12:20]...), 0, 17, 0, byte(len(b)-20))
	binary.BigEndian.PutUint16(b[26:], ^slowSum(append(pseudo, b[20:]...)))
}
