package encap

import (
	"bytes"
	"testing"
)

// TestDecapTOS checks every cell of figure 4 of RFC 6040.
func TestDecapTOS(t *testing.T) {
	const notECT, ect1, ect0, ce, drop = 0, 1, 2, 3, 9
	figure := map[uint8]map[uint8]uint8{ // inner -> outer -> outgoing
		notECT: {notECT: notECT, ect0: notECT, ect1: notECT, ce: drop},
		ect0:   {notECT: ect0, ect0: ect0, ect1: ect1, ce: ce},
		ect1:   {notECT: ect1, ect0: ect1, ect1: ect1, ce: ce},
		ce:     {notECT: ce, ect0: ce, ect1: ce, ce: ce},
	}
	const dscp = 46 << 2
	for inner, row := range figure {
		for outer, want := range row {
			got, ok := DecapTOS(dscp|inner, 8<<2|outer)
			if ok != (want != drop) || ok && got != dscp|want {
				t.Errorf("inner %d, outer %d: %#x %v, want %d", inner, outer, got, ok, want)
			}
		}
	}
}

func TestSetTOS(t *testing.T) {
	for id := range 1 << 16 { // covers every checksum
		v4 := packet4("10.5.1.2", "10.5.2.3", ProtoUDP, flagDF, nil, nil)
		v4[4], v4[5], v4[10], v4[11] = byte(id>>8), byte(id), 0, 0
		sum := ^slowSum(v4[:20])
		v4[10], v4[11] = byte(sum>>8), byte(sum)
		SetTOS(v4, 3)
		if slowSum(v4[:20]) != 0xffff {
			t.Fatalf("identification %#x: %x", id, v4)
		}
	}
	for tos := range 256 {
		for was := range 256 {
			v4 := packet4("10.5.1.2", "10.5.2.3", ProtoUDP, flagDF, nil, nil)
			SetTOS(v4, uint8(was))
			SetTOS(v4, uint8(tos))
			if slowSum(v4[:20]) != 0xffff || v4[1] != uint8(tos) || TOS(v4) != uint8(tos) {
				t.Fatalf("%#x to %#x: %x", was, tos, v4)
			}
		}
		v6 := packet6("fd00::1", "fd00::2", ProtoUDP, nil)
		v6[1] |= 5 // first bits of the flow label
		want := bytes.Clone(v6)
		SetTOS(v6, uint8(tos))
		if in := mustParse(t, v6); in.TOS != uint8(tos) || TOS(v6) != uint8(tos) || v6[1]&0x0f != 5 {
			t.Fatalf("%#x: %x", tos, v6[:4])
		}
		SetTOS(v6, 0)
		if !bytes.Equal(v6, want) {
			t.Fatalf("other bits changed: %x, now %x", v6, want)
		}
	}
}
