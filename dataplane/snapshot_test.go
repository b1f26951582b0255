package dataplane

import (
	"net/netip"
	"testing"

	"weft/dataplane/fib"
)

func TestNodeCountersKept(t *testing.T) {
	h := newHarness(t)
	h.fromTUN(packetBetween("10.5.1.2", "10.5.2.2"))
	h.fromUDP("192.0.2.2", packetBetween("10.5.2.2", "10.5.1.2"))
	p := h.engine.nodes.list[0]
	p.dest.Packets.Add(5) // the fake socket does not count
	p.setPathMTU(900, h.clock)

	h.engine.SetNodes(selfNode, []fib.Node{node3, node2})
	if got := h.engine.nodes.list[1]; got != p {
		t.Error("an unchanged node has a new peer")
	}
	moved := node2
	moved.Endpoint = netip.MustParseAddrPort("192.0.2.77:8285")
	h.engine.SetNodes(selfNode, []fib.Node{moved})
	got := h.engine.Stats().Nodes[0]
	if got.Sent.Packets != 5 || got.Received.Packets != 1 {
		t.Errorf("traffic of a node with a new endpoint: %+v", got)
	}
	if h.engine.nodes.list[0].cachedPathMTU(h.now) != 0 {
		t.Error("a node with a new endpoint keeps the old path MTU")
	}
	h.engine.SetNodes(selfNode, nil)
	if n := len(h.engine.Stats().Nodes); n != 0 {
		t.Errorf("%d nodes, want 0", n)
	}
	h.engine.SetNodes(selfNode, []fib.Node{node2})
	if got := h.engine.Stats().Nodes[0]; got.Received.Packets != 0 {
		t.Errorf("traffic of a node that left and came back: %+v", got)
	}
	if s := h.engine.Stats(); s.Received.Packets != 1 {
		t.Errorf("the total decreased to %+v", s.Received)
	}
}

// TestNodeWithTwoLeases has a node with two subnets, each in an entry of its own. Its traffic is
// counted once.
func TestNodeWithTwoLeases(t *testing.T) {
	h := newHarness(t)
	one := fib.Node{Name: "new", Endpoint: netip.MustParseAddrPort("192.0.2.4:8285"), Prefixes: node2.Prefixes}
	two := one
	two.Prefixes = node3.Prefixes
	for range 2 {
		h.engine.SetNodes(selfNode, []fib.Node{one, two})
		h.fromUDP("192.0.2.4", packetBetween("10.5.2.9", "10.5.1.2"))
		h.fromUDP("192.0.2.4", packetBetween("10.5.3.9", "10.5.1.2"))
	}
	if n := h.engine.Stats().Nodes; len(n) != 1 || n[0].Received.Packets != 4 {
		t.Errorf("got %+v, want 4 packets from one node; drops %v", n, h.drops())
	}
}
