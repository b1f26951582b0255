package encap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/net/bpf"
)

// MaxSockets is the largest number of sockets that FlowProgram supports.
const MaxSockets = 1 << 16

// protoSCTP is SCTP, which has its ports at the same offset as TCP and UDP (RFC 9260 section 3.1).
const protoSCTP = 132

// Factors of the flow hash: odd and without structure (digits of the golden ratio, of pi and of e).
const (
	mixWord     = 0x9e3779b1
	mixEndpoint = 0x243f6a89
	mixFinal    = 0xb7e15163
)

// FlowHash returns a symmetric hash of the inner packet's flow: it is equal in both directions. The
// flow is the two addresses and, in unfragmented TCP, UDP and SCTP packets, the two ports. All
// other packets (ICMP, fragments, IPv6 with extension headers) are hashed by address only, so that
// all fragments of a packet have the same hash. ok is false if pkt is not IP or is too short.
//
// FlowHash is the Go equivalent of the classic BPF program returned by FlowProgram, and is limited
// to operations that such a program has.
func FlowHash(pkt []byte) (hash uint32, ok bool) {
	if len(pkt) == 0 {
		return 0, false
	}
	var src, dst uint32 // one word per endpoint
	var proto uint8
	var ports int // offset of the ports
	switch pkt[0] >> 4 {
	case 4:
		if len(pkt) < ipv4HeaderLen {
			return 0, false
		}
		src, dst = foldWords(pkt[12:16]), foldWords(pkt[16:20])
		if binary.BigEndian.Uint16(pkt[6:])&(flagMF|maskOffset) == 0 {
			proto, ports = pkt[9], int(pkt[0]&0x0f)*4
		}
	case 6:
		if len(pkt) < ipv6HeaderLen {
			return 0, false
		}
		src, dst = foldWords(pkt[8:24]), foldWords(pkt[24:40])
		proto, ports = pkt[6], ipv6HeaderLen
	default:
		return 0, false
	}
	if proto == ProtoTCP || proto == ProtoUDP || proto == protoSCTP {
		if len(pkt) < ports+4 {
			return 0, false
		}
		src += uint32(binary.BigEndian.Uint16(pkt[ports:]))
		dst += uint32(binary.BigEndian.Uint16(pkt[ports+2:]))
	}
	// Mix each endpoint before adding the two. A sum or XOR of plain addresses would give 10.0.1.2
	// and 10.0.3.4 the same value as 10.0.1.4 and 10.0.3.2, which is common in clusters.
	hash = mix(mix(src, mixEndpoint)+mix(dst, mixEndpoint), mixFinal)
	return hash, true
}

// foldWords hashes an address into one word.
func foldWords(addr []byte) (h uint32) {
	for i := 0; i < len(addr); i += 4 {
		h = (h + binary.BigEndian.Uint32(addr[i:])) * mixWord
	}
	return h
}

func mix(h, factor uint32) uint32 {
	h = (h ^ h>>16) * factor
	return h ^ h>>15
}

var errSockets = errors.New("number of sockets out of range")

// FlowProgram returns a classic BPF program for SO_ATTACH_REUSEPORT_CBPF on a group of n sockets, 1
// to MaxSockets. The program returns the index of a socket in the group: FlowHash modulo n, or 0 if
// FlowHash is not ok. The kernel runs it on the UDP payload, which is the inner packet. For a train
// joined by GRO, that is the first packet.
func FlowProgram(n int) ([]bpf.RawInstruction, error) {
	if n < 1 || n > MaxSockets {
		return nil, fmt.Errorf("flow program for %d sockets: %w", n, errSockets)
	}
	raw, err := bpf.Assemble(flowProgram(uint32(n)))
	if err != nil {
		return nil, fmt.Errorf("flow program for %d sockets: %w", n, err)
	}
	return raw, nil
}

// Scratch words of the flow program.
const (
	wordSrc   = iota // source endpoint, as in FlowHash
	wordDst          // destination endpoint
	wordProto        // upper-layer protocol; 0 if ports are not hashed
	wordPorts        // offset of the ports
)

// flowProgram returns the instructions of FlowProgram. A load beyond the end of the packet makes a
// BPF program return 0.
func flowProgram(n uint32) []bpf.Instruction {
	addrs6 := addrs6Program()
	addrs4 := append(addrs4Program(), bpf.Jump{Skip: uint32(len(addrs6))})
	ports := append(portProgram(0, wordSrc), portProgram(2, wordDst)...)
	return slices.Concat(
		[]bpf.Instruction{
			bpf.LoadAbsolute{Off: 0, Size: 1},
			bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 4, SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipTrue: uint8(1 + len(addrs4))},
			bpf.RetConstant{Val: 0},
		},
		addrs4,
		addrs6,
		[]bpf.Instruction{
			bpf.LoadScratch{Dst: bpf.RegA, N: wordProto},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: ProtoTCP, SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: ProtoUDP, SkipTrue: 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoSCTP, SkipFalse: uint8(len(ports))},
		},
		ports,
		[]bpf.Instruction{bpf.LoadScratch{Dst: bpf.RegA, N: wordSrc}},
		mixProgram(mixEndpoint),
		[]bpf.Instruction{
			bpf.StoreScratch{Src: bpf.RegA, N: wordSrc},
			bpf.LoadScratch{Dst: bpf.RegA, N: wordDst},
		},
		mixProgram(mixEndpoint),
		[]bpf.Instruction{
			bpf.LoadScratch{Dst: bpf.RegX, N: wordSrc},
			bpf.ALUOpX{Op: bpf.ALUOpAdd},
		},
		mixProgram(mixFinal),
		[]bpf.Instruction{
			bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: n},
			bpf.RetA{},
		},
	)
}

// addrs4Program stores the hashed addresses, the protocol and the offset of the ports of an IPv4
// packet.
func addrs4Program() []bpf.Instruction {
	return slices.Concat(
		foldProgram(12, 1, wordSrc),
		foldProgram(16, 1, wordDst),
		[]bpf.Instruction{
			bpf.LoadMemShift{Off: 0}, // header length
			bpf.StoreScratch{Src: bpf.RegX, N: wordPorts},
			bpf.LoadAbsolute{Off: 6, Size: 2},
			bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: flagMF | maskOffset, SkipTrue: 2},
			bpf.LoadAbsolute{Off: 9, Size: 1},
			bpf.Jump{Skip: 1},
			bpf.LoadConstant{Dst: bpf.RegA, Val: 0},
			bpf.StoreScratch{Src: bpf.RegA, N: wordProto},
		},
	)
}

// addrs6Program is addrs4Program for IPv6.
func addrs6Program() []bpf.Instruction {
	return slices.Concat(
		foldProgram(8, 4, wordSrc),
		foldProgram(24, 4, wordDst),
		[]bpf.Instruction{
			bpf.LoadConstant{Dst: bpf.RegA, Val: ipv6HeaderLen},
			bpf.StoreScratch{Src: bpf.RegA, N: wordPorts},
			bpf.LoadAbsolute{Off: 6, Size: 1},
			bpf.StoreScratch{Src: bpf.RegA, N: wordProto},
		},
	)
}

// foldProgram is foldWords for the address at offset off, of the given number of words. It stores
// the result in a scratch word.
func foldProgram(off uint32, words, scratch int) []bpf.Instruction {
	p := []bpf.Instruction{bpf.LoadConstant{Dst: bpf.RegA, Val: 0}}
	for range words {
		p = append(p,
			bpf.TAX{},
			bpf.LoadAbsolute{Off: off, Size: 4},
			bpf.ALUOpX{Op: bpf.ALUOpAdd},
			bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: mixWord},
		)
		off += 4
	}
	return append(p, bpf.StoreScratch{Src: bpf.RegA, N: scratch})
}

// portProgram adds the port at offset off after the IP header to a scratch word.
func portProgram(off uint32, scratch int) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadScratch{Dst: bpf.RegX, N: wordPorts},
		bpf.LoadIndirect{Off: off, Size: 2},
		bpf.LoadScratch{Dst: bpf.RegX, N: scratch},
		bpf.ALUOpX{Op: bpf.ALUOpAdd},
		bpf.StoreScratch{Src: bpf.RegA, N: scratch},
	}
}

// mixProgram is mix for the accumulator.
func mixProgram(factor uint32) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.TAX{},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16},
		bpf.ALUOpX{Op: bpf.ALUOpXor},
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: factor},
		bpf.TAX{},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 15},
		bpf.ALUOpX{Op: bpf.ALUOpXor},
	}
}
