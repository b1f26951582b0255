package offload

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
)

func everything() Limits { return Limits{TCP: true, UDP: true} }

// perFlow sorts what was written by flow. A packet whose flow cannot be told stands in every flow that it must not
// overtake, so that comparing flow by flow compares the order as far as it is promised.
func perFlow(out []emitted) map[string][]emitted {
	flows := map[string][]emitted{}
	for _, e := range out {
		if _, flow := flowOf(e.frame); flow != "" {
			flows[flow] = nil
		}
	}
	flows["all strangers"] = nil
	for _, e := range out {
		pair, flow := flowOf(e.frame)
		for k := range flows {
			if k == flow || flow == "" && (strings.HasPrefix(k, pair) || k == "all strangers") {
				flows[k] = append(flows[k], e)
			}
		}
	}
	return flows
}

func compare(t testing.TB, got, want []emitted) {
	t.Helper()
	g, w := perFlow(got), perFlow(want)
	for k := range w {
		for i := range w[k] {
			if i >= len(g[k]) {
				t.Fatalf("flow %x: %d frames, want %d; first missing: %v", k, len(g[k]), len(w[k]), w[k][i])
			}
			if a, b := g[k][i], w[k][i]; a.h != b.h || !bytes.Equal(a.frame, b.frame) {
				t.Fatalf("flow %x, frame %d:\n got %v\nwant %v", k, i, a, b)
			}
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d frames, want %d", len(got), len(want))
	}
}

// TestMergeMatchesSlowTwin is the main test: seeded mixed traffic, frame for frame and byte for byte.
func TestMergeMatchesSlowTwin(t *testing.T) {
	for _, tt := range []struct {
		name   string
		flows  int
		limits Limits
	}{
		{"one flow", 1, everything()},
		{"two flows", 2, everything()},
		{"40 flows", 40, everything()},
		{"tcp only", 8, Limits{TCP: true}},
		{"udp only", 8, Limits{UDP: true}},
		{"128 datagrams", 4, Limits{TCP: true, UDP: true, UDPSegments: 128}},
		{"nothing", 8, Limits{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			merged := 0
			for seed := range uint64(8) {
				traffic := newTraffic(seed, tt.flows)
				got, want := feed(t, rand.New(rand.NewPCG(seed, 2)), tt.limits, traffic.packets(1500))
				compare(t, got, want)
				for _, e := range got {
					if e.h.GSO != GSONone {
						merged++
					}
				}
			}
			if (merged == 0) != (tt.limits == Limits{}) {
				t.Errorf("%d frames of more than one segment", merged)
			}
		})
	}
}
