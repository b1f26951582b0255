package dataplane

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"weft/dataplane/fastpath"
	"weft/dataplane/fib"
	"weft/deploy/lab"
)

// TestNetnsFastPathCounts keeps a node's counts of the fast path while the node moves to another
// address and back, and after the path is closed.
func TestNetnsFastPathCounts(t *testing.T) {
	ov := startFast(t, lab.Options{}, fast, fast)
	e := ov.engines[0]
	must(t, lab.Await(t.Context(), 20*time.Second, "packets of the fast path", func() error {
		err := lab.CheckUDP(t.Context(), ov.pod(0).NS, ov.pod(1).NS, podAddr(1), 100, 100, 100)
		if n := e.Stats().Nodes[0]; err == nil && (n.FastSent.Packets < 3 || n.FastReceived.Packets < 3) {
			err = errors.New("none")
		}
		return err
	}))
	before := e.Stats()
	check := func(when string) {
		t.Helper()
		s := e.Stats()
		if len(s.Nodes) != 1 || s.Nodes[0] != before.Nodes[0] || s.FastPath.Sent != before.FastPath.Sent ||
			s.FastPath.Received != before.FastPath.Received {
			t.Errorf("%s: %+v, before %+v", when, s.Nodes, before.Nodes)
		}
	}
	if n := before.Nodes[0]; n.FastSent != before.FastPath.Sent || n.FastReceived != before.FastPath.Received {
		t.Errorf("the counts of the only node %+v differ from the total %+v", n, before.FastPath)
	}
	self, home := e.asNode(), ov.engines[1].asNode()
	home.Fast = true
	away := home
	away.Endpoint = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.9"), home.Endpoint.Port())
	e.ChangeNodes([]fib.Node{home}, []fib.Node{away})
	check("moved by a change")
	e.SetNodes(self, []fib.Node{home})
	check("moved with all nodes")
	must(t, e.node.Do(func() error {
		e.mu.Lock()
		defer e.mu.Unlock()
		return errors.Join(e.closeFastPath(), fastpath.Remove(e.device))
	}))
	check("closed")
	e.SetNodes(self, nil)
	e.SetNodes(self, []fib.Node{home})
	if n := e.Stats().Nodes[0]; n.FastSent != (Traffic{}) || n.Sent != (Traffic{}) {
		t.Errorf("a node that left and came back: %+v", n)
	}
}
