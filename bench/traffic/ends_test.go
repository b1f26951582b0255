package traffic

import (
	"testing"

	"weft/deploy/lab"
)

// LinkedEnds are two nodes without a tunnel in between; the tests of both packages here begin with
// them.
func LinkedEnds(t *testing.T) (from, to End) {
	t.Helper()
	l := lab.Start(t, lab.Options{Direct: true, PodsPerNode: -1})
	return End{l.Nodes[0].NS, l.Nodes[0].Addr}, End{l.Nodes[1].NS, l.Nodes[1].Addr}
}
