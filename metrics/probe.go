package metrics

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Probe holds the results of the mesh probe.
type Probe struct {
	Answered, Lost uint64      // echoes
	Paths          []ProbePath // one per probed node, in any order
}

// ProbePath is the path to a node. If both families are probed, it is the worse of the two.
type ProbePath struct {
	Node string
	Loss float64       // share of the last echoes that were lost, 0 to 1
	RTT  time.Duration // median of the last echoes; 0 if none was answered
	MTU  int           // largest packet that gets through, in bytes; 0 while unknown
	// MaxMTU is the largest packet that this node's device takes.
	MaxMTU int
}

// probeRoom is the part of the page for series of the mesh probe, in bytes: it keeps the page below
// 100 kB beside those of the traffic.
const probeRoom = 18_000

// maxProbeNodes is the number of nodes with series of the mesh probe if their names are short.
const maxProbeNodes = 100

// pathRoom returns the bytes of the page that the three series of a path take: about 45 for each
// beside the name.
func pathRoom(name string) int { return 3 * (len(name) + 45) }

func probeMetrics() []metric {
	node := []string{"node"}
	return []metric{
		{Info{"weft_probe_nodes",
			"Other nodes that are probed: all, or a sample of a large cluster.",
			gauge, nil},
			probed(func(p *Probe) []sample { return []sample{{value: float64(len(p.Paths))}} })},
		{Info{"weft_probe_echoes_total",
			"Echoes of the mesh probe to all nodes, by outcome.",
			counter, []string{"outcome"}},
			probed(func(p *Probe) []sample {
				return []sample{
					{float64(p.Answered), []string{"answered"}},
					{float64(p.Lost), []string{"lost"}},
				}
			})},
		{Info{"weft_probe_loss_ratio",
			"Share of the last echoes to a node that were lost; only the worst nodes of a large cluster.",
			gauge, node},
			perPath(func(p ProbePath) (float64, bool) { return p.Loss, true })},
		{Info{"weft_probe_rtt_seconds",
			"Median round-trip time of the last echoes to a node; absent if all were lost.",
			gauge, node},
			perPath(func(p ProbePath) (float64, bool) { return p.RTT.Seconds(), p.RTT > 0 })},
		{Info{"weft_probe_small_mtu_nodes",
			"Probed nodes whose path loses packets that this node's device takes.",
			gauge, nil},
			probed(func(p *Probe) []sample { return []sample{{value: float64(smallMTU(p.Paths))}} })},
		{Info{"weft_probe_path_mtu_bytes",
			"Largest packet that reaches a node through the overlay; absent while unknown.",
			gauge, node},
			perPath(func(p ProbePath) (float64, bool) { return float64(p.MTU), p.MTU > 0 })},
	}
}

// probed returns no samples while there is no mesh probe.
func probed(read func(*Probe) []sample) func(*scrape) []sample {
	return func(s *scrape) []sample {
		if s.Probe == nil {
			return nil
		}
		return read(s.Probe)
	}
}

func perPath(value func(ProbePath) (float64, bool)) func(*scrape) []sample {
	return probed(func(p *Probe) []sample {
		var samples []sample
		for _, path := range worst(p.Paths) {
			if v, ok := value(path); ok {
				samples = append(samples, sample{v, []string{path.Node}})
			}
		}
		return samples
	})
}

// smallMTU counts the paths that carry less than this node's device.
func smallMTU(paths []ProbePath) (count int) {
	for _, p := range paths {
		if p.MTU > 0 && p.MTU < p.MaxMTU {
			count++
		}
	}
	return count
}

// worst returns the nodes that get series: with the most loss, then the smallest MTU, then the
// longest round-trip time. The worst path stands for entries of the same name.
func worst(paths []ProbePath) []ProbePath {
	paths = slices.Clone(paths)
	for i := range paths {
		paths[i].Node = strings.ToValidUTF8(paths[i].Node, "\uFFFD")
	}
	slices.SortFunc(paths, func(a, b ProbePath) int {
		return cmp.Or(cmp.Compare(b.Loss, a.Loss), cmp.Compare(a.MTU, b.MTU),
			cmp.Compare(b.RTT, a.RTT), strings.Compare(a.Node, b.Node))
	})
	seen := map[string]bool{}
	paths = slices.DeleteFunc(paths, func(p ProbePath) bool {
		again := seen[p.Node]
		seen[p.Node] = true
		return again
	})
	paths = paths[:min(len(paths), maxProbeNodes)]
	room := probeRoom
	for i, p := range paths {
		if room -= pathRoom(p.Node); room < 0 {
			return paths[:i]
		}
	}
	return paths
}
