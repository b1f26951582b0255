package encap

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"golang.org/x/net/bpf"
)

func flowVM(t testing.TB, n int) *bpf.VM {
	t.Helper()
	raw, err := FlowProgram(n)
	if err != nil {
		t.Fatal(err)
	}
	program, all := bpf.Disassemble(raw)
	if !all {
		t.Fatal("program has unknown instructions")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// flowSocket returns the socket, out of n, that FlowProgram(n) must select for the payload pkt.
func flowSocket(pkt []byte, n int) int {
	hash, ok := FlowHash(pkt)
	if !ok {
		return 0
	}
	return int(hash % uint32(n))
}

// checkFlow compares the program with flowSocket on one packet.
func checkFlow(t testing.TB, vm *bpf.VM, pkt []byte, n int) {
	t.Helper()
	got, err := vm.Run(pkt)
	if err != nil {
		t.Fatal(err)
	}
	if want := flowSocket(pkt, n); got != want {
		t.Fatalf("% x: program selects socket %d of %d, flowSocket %d", pkt, got, n, want)
	}
}

// flowPacket builds a packet of proto with both ports after the IP header.
func flowPacket(src, dst []byte, proto uint8, sport, dport uint16) []byte {
	var b []byte
	if len(src) == 4 {
		b = make([]byte, ipv4HeaderLen, 64)
		b[0], b[9] = 0x45, proto
		copy(b[12:], src)
		copy(b[16:], dst)
	} else {
		b = make([]byte, ipv6HeaderLen, 64)
		b[0], b[6] = 0x60, proto
		copy(b[8:], src)
		copy(b[24:], dst)
	}
	b = binary.BigEndian.AppendUint16(b, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	return append(b, make([]byte, 16)...)
}

// TestFlowProgram compares the program, run in a BPF virtual machine, with FlowHash on random
// packets: valid, truncated, and noise.
func TestFlowProgram(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{1, 2, 3, 7, 16, MaxSockets} {
		vm := flowVM(t, n)
		checkFlow(t, vm, nil, n)
		for range 20000 {
			pkt := make([]byte, rnd.IntN(100))
			for i := range pkt {
				pkt[i] = byte(rnd.Uint32())
			}
			if len(pkt) > 9 && rnd.IntN(8) > 0 {
				pkt[0] = []byte{0x45, 0x46, 0x4f, 0x40, 0x60, 0x6f}[rnd.IntN(6)]
				pkt[6], pkt[9] = []byte{6, 17, 132, 1}[rnd.IntN(4)], []byte{6, 17, 132, 1}[rnd.IntN(4)]
				if pkt[0]>>4 == 4 {
					pkt[6], pkt[7] = []byte{0x40, 0, 0, 0x20, 0x80}[rnd.IntN(5)], byte(rnd.IntN(2)*rnd.IntN(2))
				}
			}
			checkFlow(t, vm, pkt, n)
		}
	}
	for _, n := range []int{-1, 0, MaxSockets + 1} {
		if _, err := FlowProgram(n); err == nil {
			t.Errorf("no error for %d sockets", n)
		}
	}
}

// TestFlowHashFields checks the header fields that are part of a flow.
func TestFlowHashFields(t *testing.T) {
	v4 := func(proto uint8, sport, dport uint16) []byte {
		return flowPacket([]byte{10, 1, 2, 3}, []byte{10, 1, 9, 8}, proto, sport, dport)
	}
	v6a := []byte{0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3}
	v6b := []byte{0xfd, 1, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 8}
	fragment := func(b []byte, field uint16) []byte {
		binary.BigEndian.PutUint16(b[6:], field)
		return b
	}
	options := append([]byte{0x46}, v4(6, 1000, 80)[1:20]...)
	options = append(append(options, 1, 1, 1, 1), v4(6, 1000, 80)[20:]...)
	tests := []struct {
		name string
		a, b []byte
		same bool
	}{
		{"tcp, both directions", v4(6, 1000, 80),
			flowPacket([]byte{10, 1, 9, 8}, []byte{10, 1, 2, 3}, 6, 80, 1000), true},
		{"udp over ipv6, both directions", flowPacket(v6a, v6b, 17, 1000, 53),
			flowPacket(v6b, v6a, 17, 53, 1000), true},
		{"another port", v4(6, 1000, 80), v4(6, 1001, 80), false},
		{"another port, sctp", v4(132, 1000, 80), v4(132, 1001, 80), false},
		{"another port, ipv6", flowPacket(v6a, v6b, 17, 1000, 53), flowPacket(v6a, v6b, 17, 1000, 54), false},
		{"another address", v4(6, 1000, 80), flowPacket([]byte{10, 1, 2, 4}, []byte{10, 1, 9, 8}, 6, 1000, 80), false},
		{"another address, ipv6", flowPacket(v6a, v6b, 58, 0, 0), flowPacket(v6a, v6a, 58, 0, 0), false},
		{"swapped parts of addresses", v4(6, 1000, 80),
			flowPacket([]byte{10, 1, 2, 8}, []byte{10, 1, 9, 3}, 6, 1000, 80), false},
		{"icmp ignores what is not a port", v4(1, 1000, 80), v4(1, 7, 8), true},
		{"first and later fragment", fragment(v4(17, 1000, 80), 0x2000), fragment(v4(17, 7, 8), 185), true},
		{"fragment and whole packet", fragment(v4(17, 1000, 80), 0x2000), v4(17, 1000, 80), false},
		{"DF is no fragment", fragment(v4(17, 1000, 80), 0x4000), v4(17, 1000, 80), true},
		{"ports behind options", options, v4(6, 1000, 80), true},
		{"ipv6 fragment header", flowPacket(v6a, v6b, 44, 1000, 53), flowPacket(v6a, v6b, 44, 7, 8), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, okA := FlowHash(tt.a)
			b, okB := FlowHash(tt.b)
			if !okA || !okB || (a == b) != tt.same {
				t.Errorf("hashes %#08x (%v) and %#08x (%v), want the same: %v", a, okA, b, okB, tt.same)
			}
		})
	}
	for _, b := range [][]byte{
		nil, {0x45}, v4(6, 1, 2)[:19], v4(6, 1, 2)[:23], flowPacket(v6a, v6b, 17, 1, 2)[:43], {0x50, 19: 0},
	} {
		if _, ok := FlowHash(b); ok {
			t.Errorf("FlowHash(% x) is ok, want not", b)
		}
	}
}

// TestFlowHashDistribution checks that typical flows of a cluster are spread evenly over the
// sockets. The limit is five standard deviations of a uniform distribution; a hash that keeps
// structure of its input exceeds it by far.
func TestFlowHashDistribution(t *testing.T) {
	pod := func(v6 bool, node, pod int) []byte {
		if v6 {
			return []byte{0xfd, 0x42, 0, 0, 0, 0, 0, byte(node), 0, 0, 0, 0, 0, 0, 0, byte(pod)}
		}
		return []byte{10, 42, byte(node), byte(pod)}
	}
	kinds := []struct {
		name string
		make func(i int, v6 bool) []byte
	}{
		{"one pair, client ports in a row", func(i int, v6 bool) []byte {
			return flowPacket(pod(v6, 1, 2), pod(v6, 2, 2), 6, uint16(32768+i), 80)
		}},
		{"one pair, even client ports", func(i int, v6 bool) []byte {
			return flowPacket(pod(v6, 1, 2), pod(v6, 2, 2), 6, uint16(32768+2*i), 80)
		}},
		{"one pair, equal ports at both ends", func(i int, v6 bool) []byte {
			return flowPacket(pod(v6, 1, 2), pod(v6, 2, 2), 17, uint16(1000+i), uint16(1000+i))
		}},
		{"pods of two nodes, one port", func(i int, v6 bool) []byte {
			return flowPacket(pod(v6, 1, 2+i%100), pod(v6, 2, 2+i/100), 17, 4789, 4789)
		}},
		{"pings between nodes", func(i int, v6 bool) []byte {
			return flowPacket(pod(v6, i%100, 1), pod(v6, 100+i/100, 1), 1, 0, 0)
		}},
	}
	const flows = 8000
	for _, kind := range kinds {
		for _, v6 := range []bool{false, true} {
			for n := 2; n <= 16; n++ {
				hits := make([]int, n)
				for i := range flows {
					hits[flowSocket(kind.make(i, v6), n)]++
				}
				mean := float64(flows) / float64(n)
				limit := 5 * math.Sqrt(mean*(1-1/float64(n)))
				for s, h := range hits {
					if math.Abs(float64(h)-mean) > limit {
						t.Errorf("%s, ipv6 %v: socket %d of %d got %d of %d flows, want %.0f +- %.0f",
							kind.name, v6, s, n, h, flows, mean, limit)
					}
				}
			}
		}
	}
}

func FuzzFlowProgram(f *testing.F) {
	f.Add(flowPacket([]byte{10, 1, 2, 3}, []byte{10, 1, 9, 8}, 6, 1, 2), uint16(4))
	f.Add(flowPacket(make([]byte, 16), make([]byte, 16), 17, 1, 2), uint16(7))
	f.Add([]byte{0x4f}, uint16(2))
	f.Fuzz(func(t *testing.T, pkt []byte, n uint16) {
		if n == 0 {
			return
		}
		checkFlow(t, flowVM(t, int(n)), pkt, int(n))
	})
}

func BenchmarkFlowHash(b *testing.B) {
	for _, c := range []struct {
		name string
		pkt  []byte
	}{
		{"ipv4", flowPacket([]byte{10, 1, 2, 3}, []byte{10, 1, 9, 8}, 6, 1000, 80)},
		{"ipv6", flowPacket(make([]byte, 16), make([]byte, 16), 17, 1000, 80)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				FlowHash(c.pkt)
			}
		})
	}
}
