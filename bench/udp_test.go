package bench

import (
	"encoding/binary"
	"slices"
	"testing"
)

// TestRunsOfFlows looks at the order in which a socket's messages are of its flows.
func TestRunsOfFlows(t *testing.T) {
	for _, tt := range []struct {
		run, flows int
		turn       []uint32 // that repeats
	}{
		{0, 3, []uint32{10, 11, 12}},
		{1, 3, []uint32{10, 11, 12}},
		{2, 3, []uint32{10, 10, 11, 11, 12, 12}},
		{2, 1, []uint32{10}},
	} {
		s := &udpSender{load: UDPLoad{Size: 64, Run: tt.run}}
		b := s.addBatch(10, tt.flows)
		if len(b.messages) < udpBatch || len(b.messages)%(tt.flows*max(tt.run, 1)) != 0 {
			t.Errorf("%d messages for %d flows in runs of %d", len(b.messages), tt.flows, tt.run)
		}
		for turn := range slices.Chunk(b.payloads, len(tt.turn)) {
			for i, p := range turn {
				if got := binary.BigEndian.Uint32(p[flowOffset:]); got != tt.turn[i] {
					t.Fatalf("%d flows in runs of %d: flow %d, want %d", tt.flows, tt.run, got, tt.turn[i])
				}
			}
		}
	}
}
