package agent

import (
	"net/netip"
	"testing"
	"time"

	"weft/ctrl"
	"weft/dataplane"
	"weft/lease"
	"weft/lease/ordered"
)

func TestPersistentSources(t *testing.T) {
	now := time.Now()
	source := func(addr string, sentFor, ago time.Duration) dataplane.UnknownSource {
		last := now.Add(-ago)
		return dataplane.UnknownSource{Addr: netip.MustParseAddr(addr), Packets: 3, First: last.Add(-sentFor), Last: last}
	}
	all := []dataplane.UnknownSource{
		source("203.0.113.1", time.Minute, 0),
		source("203.0.113.2", sourceGrace/2, 0),           // a new node, most likely
		source("203.0.113.3", time.Minute, 2*time.Minute), // logged before
		source("fd00::4", sourceGrace, time.Second),
	}
	const want = "203.0.113.1 (3 packets), fd00::4 (3 packets)"
	if got := persistentSources(all, now.Add(-time.Minute)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNodesConditionNotes(t *testing.T) {
	leases := lease.NewSet(testLease("n2", "10.5.2.0/24", "192.0.2.2"), testLease("n3", "10.5.3.0/24", "192.0.2.3"))
	parts := ordered.New([]*ctrl.Part{{Node: "n2"}, {Node: "n3"}})
	for _, test := range []struct {
		cut  reasons
		want string
	}{
		{nil, ""},
		{reasons{prefix("10.5.2.0/24"): "no"}, "1 of 2 other nodes unreachable, /status on this node has the reasons"},
	} {
		s := snapshot{view: (&peerView{}).next(peerView{leases: leases, cut: test.cut, plan: ctrl.Plan{Parts: parts}})}
		if c := s.nodesCondition(); !c.OK || c.Reason != test.want {
			t.Errorf("got %+v, want reason %q", c, test.want)
		}
	}
}
