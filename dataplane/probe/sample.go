package probe

import (
	"cmp"
	"hash/maphash"
	"iter"
	"slices"
)

// sample returns the n targets with the lowest hashes. A target that comes or goes changes at most
// one other member of the sample.
func sample(all iter.Seq[Target], n int, seed maphash.Seed) []Target {
	type ranked struct {
		rank uint64
		Target
	}
	lowest := make([]ranked, 0, n+1)
	for t := range all {
		r := ranked{maphash.Comparable(seed, t.ID), t}
		i, _ := slices.BinarySearchFunc(lowest, r, func(a, b ranked) int {
			return cmp.Compare(a.rank, b.rank)
		})
		if i < n {
			lowest = slices.Insert(lowest, i, r)
			lowest = lowest[:min(len(lowest), n)]
		}
	}
	targets := make([]Target, len(lowest))
	for i, r := range lowest {
		targets[i] = r.Target
	}
	return targets
}
