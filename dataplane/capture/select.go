package capture

import (
	"fmt"
	"math"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// selection is the choice of packets that the kernel makes for a packet socket, before it copies
// anything.
type selection struct {
	fastPath uint16 // only what the fast path carries, to this UDP port; 0 means all packets
	lengths  string // only packets of these lengths; see lengthsOf
	sample   int    // one packet in so many, at random
	snapLen  int    // bytes to copy
}

// attach makes the kernel apply the selection to a packet socket without a link layer, instead of
// an earlier one.
func (s selection) attach(fd int) error {
	raw, err := bpf.Assemble(s.program())
	if err != nil {
		return fmt.Errorf("assemble the filter: %w", err)
	}
	filters := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filters[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]})
}

// program returns the filter: packets begin with the IP header.
func (s selection) program() []bpf.Instruction {
	var p []bpf.Instruction
	if s.fastPath != 0 {
		p = append(p, fastPathProgram(s.fastPath)...)
	}
	if len(s.lengths) > 0 {
		p = append(p, lengthProgram(s.lengths)...)
	}
	if s.sample > 1 {
		limit := uint32(math.MaxUint32 / uint32(s.sample))
		p = append(p, bpf.LoadExtension{Num: bpf.ExtRand},
			bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: limit, SkipTrue: 1},
			bpf.RetConstant{Val: 0})
	}
	return append(p, bpf.RetConstant{Val: uint32(s.snapLen)})
}

// lengthsOf encodes lengths so that a selection is comparable.
func lengthsOf(lengths []int) string {
	var runes []rune
	for _, n := range lengths {
		runes = append(runes, rune(n))
	}
	return string(runes)
}

// lengthProgram ends the filter for packets of other lengths, which are those of [lengthsOf].
func lengthProgram(lengths string) []bpf.Instruction {
	p := []bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtLen}}
	left := len([]rune(lengths))
	for _, n := range lengths {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(n), SkipTrue: uint8(left)})
		left--
	}
	return append(p, bpf.RetConstant{Val: 0})
}

// fastPathProgram ends the filter for packets that no BPF program of package fastpath has sent: the
// UDP checksum tells. It goes on for the others.
func fastPathProgram(port uint16) []bpf.Instruction {
	const fragment = 0x3fff // more fragments, or an offset
	drop := bpf.RetConstant{Val: 0}
	only := func(size int, offset, value uint32) []bpf.Instruction {
		return []bpf.Instruction{
			bpf.LoadAbsolute{Off: offset, Size: size},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: value, SkipTrue: 1},
			drop,
		}
	}
	v4 := only(1, 9, protoUDP)
	v4 = append(v4, bpf.LoadAbsolute{Off: 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: fragment, SkipTrue: 1}, drop,
		bpf.LoadMemShift{Off: 0})
	v6 := append(only(1, 6, protoUDP), bpf.LoadConstant{Dst: bpf.RegX, Val: ipv6HeaderLen})
	ports := []bpf.Instruction{
		bpf.LoadIndirect{Off: 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(port), SkipTrue: 1}, drop,
		bpf.LoadIndirect{Off: 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1}, drop,
	}
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 4, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipTrue: uint8(2 + len(v4))},
		drop,
	}
	p = append(p, v4...)
	p = append(p, bpf.Jump{Skip: uint32(len(v6))})
	p = append(p, v6...)
	return append(p, ports...)
}
