package dataplane

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"weft/dataplane/fib"
)

// churningNodes are the leases of nodes that come, go, move and change their subnets. A node has up
// to three leases, and subnets and endpoints of different nodes may be the same.
type churningNodes struct {
	rng    *rand.Rand
	byName map[string][]fib.Node
}

func (c *churningNodes) all() (nodes []fib.Node) {
	for _, leases := range c.byName {
		nodes = append(nodes, leases...)
	}
	slices.SortFunc(nodes, fib.Compare)
	return nodes
}

// subnet returns one of few subnets, so that some are leased twice or within another.
func (c *churningNodes) subnet() netip.Prefix {
	a, bits := [16]byte{10, 5, byte(c.rng.IntN(64)), byte(c.rng.IntN(4)) << 6}, 22+c.rng.IntN(5)
	if c.rng.IntN(3) == 0 {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 15: a[2]}), 120+c.rng.IntN(9))
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte(a[:4])), bits)
}

// change replaces, removes or adds the leases of some nodes.
func (c *churningNodes) change() (remove, add []fib.Node) {
	for range c.rng.IntN(40) {
		name := fmt.Sprint("n", c.rng.IntN(60))
		if slices.ContainsFunc(add, func(n fib.Node) bool { return n.Name == name }) {
			continue
		}
		remove = append(remove, c.byName[name]...)
		endpoint := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(c.rng.IntN(80))}), 8285)
		if old := c.byName[name]; len(old) > 0 && c.rng.IntN(2) == 0 {
			endpoint = old[0].Endpoint
		}
		delete(c.byName, name)
		for range c.rng.IntN(4) {
			n := fib.Node{Name: name, Endpoint: endpoint, Prefixes: []netip.Prefix{c.subnet()}}
			if slices.ContainsFunc(c.byName[name], func(o fib.Node) bool { return fib.Compare(n, o) == 0 }) {
				continue
			}
			c.byName[name] = append(c.byName[name], n)
			add = append(add, n)
		}
	}
	return remove, add
}

// TestChangeNodesEqualsSetNodes compares an engine that is told of changes with one that is given
// all nodes each time.
func TestChangeNodesEqualsSetNodes(t *testing.T) {
	changed, set := newHarness(t).engine, newHarness(t).engine
	for _, e := range []*Engine{changed, set} {
		e.SetNodes(selfNode, nil)
	}
	c := churningNodes{rand.New(rand.NewPCG(5, 6)), map[string][]fib.Node{}}
	for step := range 300 {
		remove, add := c.change()
		changed.ChangeNodes(remove, add)
		set.SetNodes(selfNode, c.all())
		a, b := changed.snapshot.Load(), set.snapshot.Load()
		if len(changed.nodes.list) != len(set.nodes.list) || !slices.Equal(a.local, b.local) {
			t.Fatalf("step %d: %d peers, want %d", step, len(changed.nodes.list), len(set.nodes.list))
		}
		for range 200 {
			inner := c.subnet().Addr()
			comparePeers(t, inner, a.table.Lookup, b.table.Lookup)
		}
		for i := range byte(80) {
			outer := netip.AddrFrom4([4]byte{192, 0, 2, i})
			comparePeers(t, outer, a.table.ByEndpoint, b.table.ByEndpoint)
		}
		if got, want := sortedTraffic(changed), sortedTraffic(set); !reflect.DeepEqual(got, want) {
			t.Fatalf("step %d: traffic\n%v, want\n%v", step, got, want)
		}
		for _, e := range []*Engine{changed, set} { // the same traffic in both
			for _, p := range e.nodes.list {
				p.received.Add(uint64(len(p.name) + step))
				p.dest.Packets.Add(uint64(p.dest.Addr.Addr().As4()[3]))
			}
		}
	}
}

func comparePeers(t *testing.T, a netip.Addr, got, want func(netip.Addr) (*peer, bool)) {
	t.Helper()
	g, found := got(a)
	w, exists := want(a)
	if found != exists || found && (g.name != w.name || g.dest.Addr != w.dest.Addr) {
		t.Fatalf("%v leads to %+v %v, want %+v %v", a, g, found, w, exists)
	}
}

func sortedTraffic(e *Engine) []NodeTraffic {
	nodes := e.Stats().Nodes
	slices.SortFunc(nodes, func(a, b NodeTraffic) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Sent.Packets, b.Sent.Packets))
	})
	return nodes
}
