//go:build amd64 || arm64

package fastpath

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"weft/dataplane/fib"
)

// kernelMap reads a map of the kernel.
func kernelMap[K comparable, V any](t *testing.T, m *ebpf.Map, value func() V) map[K]V {
	t.Helper()
	all := make(map[K]V)
	var k K
	v := value()
	entries := m.Iterate()
	for entries.Next(&k, &v) {
		all[k] = v
		v = value()
	}
	if err := entries.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// randomNode returns a node of few names, endpoints and subnets, so that some are those of other
// nodes, or of this node.
func randomNode(rng *rand.Rand) fib.Node {
	n := fib.Node{
		Name:     fmt.Sprint("n", rng.IntN(100)),
		Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(rng.IntN(64))}), 8285),
		Fast:     rng.IntN(2) == 0,
	}
	if rng.IntN(10) == 0 {
		n.Endpoint = netip.MustParseAddrPort("[fd00::1]:8285")
	}
	for range 1 + rng.IntN(2) {
		a := netip.AddrFrom4([4]byte{10, 5, byte(rng.IntN(40)), 0})
		n.Prefixes = append(n.Prefixes, netip.PrefixFrom(a, 23+rng.IntN(2)))
	}
	return n
}

// TestNetnsChangeNodesEqualsSetNodes compares the maps of a path that is told of changes with those
// of one that is given all nodes each time.
func TestNetnsChangeNodesEqualsSetNodes(t *testing.T) {
	changed, set := newTestPath(t, onIPv4, settingsValue{}), newTestPath(t, onIPv4, settingsValue{})
	for _, p := range []*Path{changed, set} {
		if _, err := p.SetNodes(localNode, nil); err != nil {
			t.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(7, 8))
	var b fib.Builder[int]
	for step := range 200 {
		var remove []fib.Node
		for _, n := range b.Nodes() {
			if rng.IntN(6) == 0 {
				remove = append(remove, n)
			}
		}
		var add []fib.Entry[int]
		for range rng.IntN(15) {
			add = append(add, fib.Entry[int]{Node: randomNode(rng)})
		}
		r := b.Change(remove, add)
		gone, err := changed.ChangeNodes(r.Inner, r.Outer)
		if err != nil {
			t.Fatal(err)
		}
		want, err := set.SetNodes(localNode, b.Nodes())
		if err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(gone, want) {
			t.Fatalf("step %d: counts of removed addresses %v, want %v", step, gone, want)
		}
		compareMaps(t, changed, set)
		mtus := make(map[netip.Addr]int) // the same routes for both
		for _, e := range add {
			mtus[e.Endpoint.Addr()] = 1300 + step
		}
		for _, p := range []*Path{changed, set} {
			if err := p.SetPathMTUs(mtus); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestNetnsStatsInBatches compares the counts that are read in batches with those that are read one
// by one, for numbers of addresses around the size of a batch.
func TestNetnsStatsInBatches(t *testing.T) {
	cpus := ebpf.MustPossibleCPU()
	for _, count := range []int{0, 1, batch - 1, batch, batch + 1, 4*batch + 7} {
		p := newTestPath(t, onIPv4, settingsValue{})
		var nodes []fib.Node
		for i := range count {
			a := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
			nodes = append(nodes, fib.Node{Endpoint: netip.AddrPortFrom(a, 8285)})
		}
		if _, err := p.SetNodes(localNode, nodes); err != nil {
			t.Fatal(err)
		}
		for i, n := range nodes {
			perCPU := make([]Traffic, cpus)
			for c := range perCPU {
				perCPU[c] = Traffic{Sent: uint64(i + c), Received: uint64(2 * i), SentBytes: 1}
			}
			if err := p.objects.Endpoints.Put(n.Endpoint.Addr().As16(), perCPU); err != nil {
				t.Fatal(err)
			}
		}
		batched, single := map[netip.Addr]Traffic{}, map[netip.Addr]Traffic{}
		if !p.readBatches(cpus, batched) {
			t.Skip("NOT TESTED: the kernel cannot read maps in batches")
		}
		for _, n := range nodes {
			single[n.Endpoint.Addr()] = p.traffic(n.Endpoint.Addr())
		}
		if !maps.Equal(batched, single) {
			t.Errorf("%d addresses: read %d, want %v, got %v", count, len(batched), single, batched)
		}
	}
}

func compareMaps(t *testing.T, changed, set *Path) {
	t.Helper()
	nodes := func(p *Path) map[prefixKey]nodeValue {
		return kernelMap[prefixKey](t, p.objects.Nodes, func() (v nodeValue) { return v })
	}
	if got, want := nodes(changed), nodes(set); !maps.Equal(got, want) {
		t.Fatalf("subnets %v, want %v", got, want)
	}
	cpus := ebpf.MustPossibleCPU()
	endpoints := func(p *Path) []string {
		all := kernelMap[address](t, p.objects.Endpoints, func() []Traffic { return make([]Traffic, cpus) })
		var lines []string
		for a, perCPU := range all {
			lines = append(lines, fmt.Sprint(a, perCPU))
		}
		return slices.Sorted(slices.Values(lines))
	}
	if got, want := endpoints(changed), endpoints(set); !slices.Equal(got, want) {
		t.Fatalf("endpoints %v, want %v", got, want)
	}
}
