package traffic

import (
	"testing"

	"weft/deploy/lab"
)

// LinkedEnds returns two linked nodes without a tunnel.
func LinkedEnds(t *testing.T) (from, to End) {
	t.Helper()
	l := lab.Start(t, lab.Options{Direct: true, PodsPerNode: -1})
	return End{l.Nodes[0].NS, l.Nodes[0].Addr}, End{l.Nodes[1].NS, l.Nodes[1].Addr}
}
