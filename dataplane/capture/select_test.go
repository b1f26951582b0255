package capture

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"golang.org/x/net/bpf"
)

// outerPacket returns a UDP packet with a payload.
func outerPacket(version int, port, sum, fragment uint16, payload []byte) []byte {
	header := ipv4HeaderLen
	if version == 6 {
		header = ipv6HeaderLen
	}
	b := make([]byte, header+udpHeaderLen)
	b[0] = byte(version) << 4
	if version == 6 {
		b[6] = protoUDP
	} else {
		b[0], b[9] = 0x45, protoUDP
		binary.BigEndian.PutUint16(b[6:], fragment)
	}
	binary.BigEndian.PutUint16(b[header+2:], port)
	binary.BigEndian.PutUint16(b[header+6:], sum)
	return append(b, payload...)
}

// TestSelectionFastPath runs the filter for what the fast path carries.
func TestSelectionFastPath(t *testing.T) {
	vm, err := bpf.NewVM(selection{fastPath: 8285, sample: 1, snapLen: 64}.program())
	if err != nil {
		t.Fatal(err)
	}
	options := append([]byte{0x46}, outerPacket(4, 8285, 0, 0, nil)[1:ipv4HeaderLen]...)
	options = append(append(options, 1, 1, 1, 1), outerPacket(4, 8285, 0, 0, make([]byte, 40))[ipv4HeaderLen:]...)
	tcp := outerPacket(4, 8285, 0, 0, make([]byte, 40))
	tcp[9] = 6
	for _, c := range []struct {
		name string
		pkt  []byte
		want bool
	}{
		{"IPv4", outerPacket(4, 8285, 0, 0, make([]byte, 40)), true},
		{"IPv4 that must not be fragmented", outerPacket(4, 8285, 0, 0x4000, make([]byte, 40)), true},
		{"IPv4 with options", options, true},
		{"IPv6", outerPacket(6, 8285, 0, 0, make([]byte, 40)), true},
		{"with a checksum", outerPacket(4, 8285, 7, 0, make([]byte, 40)), false},
		{"IPv6 with a checksum", outerPacket(6, 8285, 7, 0, make([]byte, 40)), false},
		{"another port", outerPacket(4, 8286, 0, 0, make([]byte, 40)), false},
		{"another port, IPv6", outerPacket(6, 53, 0, 0, make([]byte, 40)), false},
		{"first fragment", outerPacket(4, 8285, 0, 0x2000, make([]byte, 40)), false},
		{"later fragment", outerPacket(4, 8285, 0, 3, make([]byte, 40)), false},
		{"TCP", tcp, false},
		{"neither family", append([]byte{0x70}, make([]byte, 60)...), false},
		{"empty", nil, false},
		{"short", outerPacket(4, 8285, 0, 0, nil)[:ipv4HeaderLen+4], false},
	} {
		n, err := vm.Run(c.pkt)
		if err != nil || (n > 0) != c.want || n > 64 {
			t.Errorf("%s: %d bytes, %v", c.name, n, err)
		}
	}
}

// TestSelectionSample checks the share that the comparison with a random number keeps.
func TestSelectionSample(t *testing.T) {
	for _, sample := range []int{2, 3, 10, 1000} {
		program := selection{sample: sample, snapLen: 64}.program()
		if _, err := bpf.Assemble(program); err != nil {
			t.Fatal(err)
		}
		random, ok := program[0].(bpf.LoadExtension)
		limit, isJump := program[1].(bpf.JumpIf)
		if !ok || random.Num != bpf.ExtRand || !isJump || limit.Cond != bpf.JumpLessOrEqual {
			t.Fatalf("program %v", program)
		}
		kept := float64(limit.Val+1) / (math.MaxUint32 + 1)
		if want := 1 / float64(sample); math.Abs(kept-want)/want > 1e-6 {
			t.Errorf("one in %d: keeps %g", sample, kept)
		}
	}
	if len((selection{sample: 1, snapLen: 64}).program()) != 1 {
		t.Error("a sample of all packets is random")
	}
}

// TestSelectionLengths runs the filter for packets of some lengths, as many as a trace has.
func TestSelectionLengths(t *testing.T) {
	var lengths []int
	for i := range 28 {
		lengths = append(lengths, 101+3*i)
	}
	vm, err := bpf.NewVM(selection{lengths: lengthsOf(lengths), sample: 1, snapLen: 512}.program())
	if err != nil {
		t.Fatal(err)
	}
	for n := range 300 {
		got, err := vm.Run(make([]byte, n))
		if err != nil || (got > 0) != slices.Contains(lengths, n) {
			t.Errorf("%d bytes: %d, %v", n, got, err)
		}
	}
}

func TestIPLength(t *testing.T) {
	v4 := outerPacket(4, 1, 0, 0, nil)
	binary.BigEndian.PutUint16(v4[2:], 1400)
	v6 := outerPacket(6, 1, 0, 0, nil)
	binary.BigEndian.PutUint16(v6[4:], 1000)
	for _, c := range []struct {
		pkt  []byte
		want int
	}{{v4, 1400}, {v6, 1040}, {v4[:19], 0}, {v6[:39], 0}, {nil, 0}} {
		if got := ipLength(c.pkt); got != c.want {
			t.Errorf("% x: %d, want %d", c.pkt, got, c.want)
		}
	}
	if inner := inDatagram(append(v4, 1, 2, 3)); len(inner) != 3 || inner[0] != 1 {
		t.Errorf("payload % x", inner)
	}
	if inner := inDatagram(v4); inner != nil {
		t.Errorf("payload of an empty datagram % x", inner)
	}
}

// FuzzInDatagram checks that no packet makes the parsers read beyond its end.
func FuzzInDatagram(f *testing.F) {
	f.Add(outerPacket(4, 8285, 0, 0, make([]byte, 40)))
	f.Add(outerPacket(6, 8285, 0, 0, nil))
	f.Fuzz(func(t *testing.T, pkt []byte) {
		if inner := inDatagram(pkt); len(inner) > len(pkt) || ipLength(inner) < 0 {
			t.Errorf("% x: payload % x", pkt, inner)
		}
	})
}
