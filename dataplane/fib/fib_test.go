package fib

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
)

// slowTable is the reference implementation of Table: a linear scan over all prefixes of all nodes.
// The longest match wins, and of equal ones the first.
type slowTable []Node

func (s slowTable) lookup(a netip.Addr) (int, bool) {
	best, bits := -1, -1
	for i, n := range s {
		for _, p := range n.Prefixes {
			if p.Contains(a) && p.Bits() > bits {
				best, bits = i, p.Bits()
			}
		}
	}
	return best, best >= 0
}

func (s slowTable) byEndpoint(a netip.Addr) (int, bool) {
	for i, n := range s {
		if n.Endpoint.Addr() == a {
			return i, true
		}
	}
	return 0, false
}

func entries(nodes []Node) []Entry[int] {
	all := make([]Entry[int], len(nodes))
	for i, n := range nodes {
		all[i] = Entry[int]{n, i}
	}
	return all
}

func addr4(rng *rand.Rand) netip.Addr {
	v := rng.Uint32() & 0x000fffff // small enough that prefixes overlap
	return netip.AddrFrom4([4]byte{10, byte(v >> 16), byte(v >> 8), byte(v)})
}

func addr6(rng *rand.Rand) netip.Addr {
	v := rng.Uint32() & 0x000fffff
	return netip.AddrFrom16([16]byte{
		0: 0xfd, 5: byte(v >> 16), 6: byte(v >> 8), 7: byte(v), 15: byte(rng.Uint32()),
	})
}

func randomNodes(rng *rand.Rand, n int) []Node {
	nodes := make([]Node, n)
	for i := range nodes {
		nodes[i].Name = fmt.Sprint("node", i)
		nodes[i].Endpoint = netip.AddrPortFrom(addr4(rng), 8285)
		for range rng.IntN(3) {
			nodes[i].Prefixes = append(nodes[i].Prefixes, netip.PrefixFrom(addr4(rng), 8+rng.IntN(25)))
		}
		for range rng.IntN(3) {
			nodes[i].Prefixes = append(nodes[i].Prefixes, netip.PrefixFrom(addr6(rng), 40+rng.IntN(89)))
		}
	}
	return nodes
}

func TestTableReference(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		nodes := randomNodes(rng, 1+rng.IntN(200))
		slices.SortFunc(nodes, Compare)
		table, slow := New(nodes), slowTable(nodes)
		for range 500 {
			for _, a := range []netip.Addr{addr4(rng), addr6(rng)} {
				got, ok := table.Lookup(a)
				if want, wantOK := slow.lookup(a); ok != wantOK || ok && got != want {
					t.Fatalf("Lookup(%v) = %d %v, want %d %v", a, got, ok, want, wantOK)
				}
			}
		}
		for _, n := range append(nodes, randomNodes(rng, 20)...) {
			got, ok := table.ByEndpoint(n.Endpoint.Addr())
			if want, wantOK := slow.byEndpoint(n.Endpoint.Addr()); ok != wantOK || got != want {
				t.Fatalf("ByEndpoint(%v) = %d %v, want %d %v", n.Endpoint.Addr(), got, ok, want, wantOK)
			}
		}
	}
}

// TestBuilderChurn compares the tables of random changes with the slow twin, and checks that a
// change leaves the tables before it as they were.
func TestBuilderChurn(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 9))
	for range 20 {
		var b Builder[string]
		var nodes, slowBefore []Node
		var before *Table[string]
		for range 30 {
			var remove []Node
			nodes = slices.DeleteFunc(slices.Clone(nodes), func(n Node) bool {
				gone := rng.IntN(10) == 0
				if gone {
					remove = append(remove, n)
				}
				return gone
			})
			var add []Entry[string]
			for i, n := range randomNodes(rng, rng.IntN(50)) {
				n.Name = fmt.Sprint(rng.Uint64(), i)
				nodes, add = append(nodes, n), append(add, Entry[string]{n, n.Name})
			}
			slices.SortFunc(nodes, Compare)
			table := b.Change(remove, add).Table
			if got := b.Nodes(); len(got) != len(nodes) || slices.CompareFunc(got, nodes, Compare) != 0 {
				t.Fatalf("%d nodes, want %d", len(got), len(nodes))
			}
			compareTable(t, rng, table, nodes)
			if before != nil {
				compareTable(t, rng, before, slowBefore)
			}
			before, slowBefore = table, nodes
		}
	}
}

func compareTable(t *testing.T, rng *rand.Rand, table *Table[string], nodes []Node) {
	t.Helper()
	slow := slowTable(nodes)
	check := func(what string, a netip.Addr, got string, ok bool, want int, wantOK bool) {
		t.Helper()
		if ok != wantOK || ok && got != nodes[want].Name {
			t.Fatalf("%s(%v) = %q %v, want %d %v", what, a, got, ok, want, wantOK)
		}
	}
	for range 50 {
		for _, a := range []netip.Addr{addr4(rng), addr6(rng)} {
			got, ok := table.Lookup(a)
			want, wantOK := slow.lookup(a)
			check("Lookup", a, got, ok, want, wantOK)
		}
	}
	for _, n := range nodes {
		a := n.Endpoint.Addr()
		got, ok := table.ByEndpoint(a)
		want, wantOK := slow.byEndpoint(a)
		check("ByEndpoint", a, got, ok, want, wantOK)
	}
}

func TestTableSpecialCases(t *testing.T) {
	nodes := []Node{
		{
			Name:     "first",
			Prefixes: []netip.Prefix{netip.MustParsePrefix("10.5.1.7/24")},
			Endpoint: netip.MustParseAddrPort("192.0.2.1:8285"),
		},
		{
			Name:     "same prefix and endpoint",
			Prefixes: []netip.Prefix{netip.MustParsePrefix("10.5.1.0/24")},
			Endpoint: netip.MustParseAddrPort("192.0.2.1:9000"),
		},
		{Name: "longer", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.5.1.128/25"), {}}},
		{Name: "mapped endpoint", Endpoint: netip.MustParseAddrPort("[::ffff:192.0.2.9]:8285")},
	}
	table := New(nodes)
	for _, c := range []struct {
		addr string
		want int // -1: none
	}{
		{"10.5.1.0", 0}, {"10.5.1.127", 0}, {"10.5.1.128", 2}, {"10.5.1.255", 2}, {"10.5.2.0", -1}, {"10.5.0.255", -1},
		{"fd00::1", -1}, {"0.0.0.0", -1},
	} {
		got, ok := table.Lookup(netip.MustParseAddr(c.addr))
		if !ok {
			got = -1
		}
		if got != c.want {
			t.Errorf("Lookup(%s) = %d, want %d", c.addr, got, c.want)
		}
	}
	if i, ok := table.ByEndpoint(netip.MustParseAddr("192.0.2.1")); !ok || i != 0 {
		t.Errorf("shared endpoint: %d %v", i, ok)
	}
	if i, ok := table.ByEndpoint(netip.MustParseAddr("192.0.2.9")); !ok || i != 3 {
		t.Errorf("IPv4-mapped endpoint: %d %v", i, ok)
	}
	if _, ok := table.ByEndpoint(netip.Addr{}); ok {
		t.Error("ByEndpoint of the zero address found a node")
	}
}

func TestZeroTable(t *testing.T) {
	var table Table[int]
	if _, ok := table.Lookup(netip.MustParseAddr("10.5.1.1")); ok {
		t.Error("Lookup found a node")
	}
	if _, ok := table.ByEndpoint(netip.MustParseAddr("10.5.1.1")); ok {
		t.Error("ByEndpoint found a node")
	}
}

// TestConcurrentSwap replaces a table while it is read. Under the race detector it also checks that
// readers need no lock.
func TestConcurrentSwap(t *testing.T) {
	build := func(n int) *Table[int] { return New(clusterNodes(n)) }
	var current atomic.Pointer[Table[int]]
	current.Store(build(1))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 50 {
			current.Store(build(1 + i))
		}
	}()
	for {
		if i, ok := current.Load().Lookup(netip.MustParseAddr("10.0.0.9")); !ok || i != 0 {
			t.Errorf("node %d %v", i, ok)
		}
		select {
		case <-done:
			return
		default:
		}
	}
}

// clusterNodes returns n nodes with one /24 each, flannel's default.
func clusterNodes(n int) []Node {
	nodes := make([]Node, n)
	for i := range nodes {
		nodes[i] = Node{
			Name:     fmt.Sprint("node", i),
			Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)},
			Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), 8285),
		}
	}
	return nodes
}

func TestLookupAllocs(t *testing.T) {
	table := New(clusterNodes(10_000))
	inner, outer := netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("172.16.9.9")
	if n := testing.AllocsPerRun(1000, func() {
		table.Lookup(inner)
		table.ByEndpoint(outer)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

var sizes = []int{1, 100, 10_000}

func BenchmarkLookup(b *testing.B) {
	for _, n := range sizes {
		table := New(clusterNodes(n))
		addrs := make([]netip.Addr, 1024)
		rng := rand.New(rand.NewPCG(5, 6))
		for i := range addrs {
			node := rng.IntN(n)
			addrs[i] = netip.AddrFrom4([4]byte{10, byte(node >> 8), byte(node), 9})
		}
		b.Run(fmt.Sprint("nodes=", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, ok := table.Lookup(addrs[i%len(addrs)]); !ok {
					b.Fatal("not found")
				}
			}
		})
	}
}

func BenchmarkByEndpoint(b *testing.B) {
	for _, n := range sizes {
		nodes := clusterNodes(n)
		table := New(nodes)
		b.Run(fmt.Sprint("nodes=", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, ok := table.ByEndpoint(nodes[i%n].Endpoint.Addr()); !ok {
					b.Fatal("not found")
				}
			}
		})
	}
}

// BenchmarkChange moves one node of many.
func BenchmarkChange(b *testing.B) {
	for _, n := range sizes {
		nodes := clusterNodes(n)
		var builder Builder[int]
		builder.Change(nil, entries(nodes))
		b.Run(fmt.Sprint("nodes=", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				old := nodes[i%n]
				nodes[i%n].Endpoint = netip.AddrPortFrom(old.Endpoint.Addr(), uint16(i))
				builder.Change([]Node{old}, []Entry[int]{{nodes[i%n], i % n}})
			}
		})
	}
}

func BenchmarkNew(b *testing.B) {
	for _, n := range sizes {
		nodes := clusterNodes(n)
		b.Run(fmt.Sprint("nodes=", n), func(b *testing.B) {
			for b.Loop() {
				New(nodes)
			}
		})
	}
}
