package file

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/lease"
	"weft/lease/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listing is a lease file that a test edits.
type listing struct {
	path  string
	nodes []lease.Lease
}

// write replaces the file at once, as an editor does.
func (f *listing) write(t *testing.T) {
	t.Helper()
	var b strings.Builder
	b.WriteString("network: {Network: 10.5.0.0/16}\nnodes:\n")
	for _, l := range f.nodes {
		fmt.Fprintf(&b, "- {name: %s, subnet: %s, publicIP: %s}\n", l.Node, l.Subnet, l.PublicIP)
	}
	if err := os.WriteFile(f.path+".new", []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(f.path+".new", f.path); err != nil {
		t.Fatal(err)
	}
}

func nodeNumber(n int) lease.Lease {
	return lease.Lease{
		Node:   fmt.Sprintf("node%d", n),
		Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(n + 1), 0}), 24),
		Attrs:  lease.Attrs{PublicIP: netip.AddrFrom4([4]byte{192, 0, 2, byte(n + 1)})},
	}
}

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.poll = 10 * time.Millisecond
	return s
}

func TestStore(t *testing.T) {
	const nodes = 20
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		f := &listing{path: filepath.Join(t.TempDir(), "leases.yaml")}
		for n := range nodes {
			f.nodes = append(f.nodes, nodeNumber(n))
		}
		f.write(t)
		network, err := lease.ParseNetwork([]byte(`{"Network":"10.5.0.0/16"}`))
		if err != nil {
			t.Fatal(err)
		}
		next := 100
		return storetest.Harness{
			Nodes:  nodes,
			Static: true,
			Request: func(n int) lease.Request {
				l := nodeNumber(n)
				return lease.Request{Network: network, Attrs: l.Attrs, Node: l.Node}
			},
			Open: func(t *testing.T, n int) lease.Store { return open(t, f.path) },
			Add: func(t *testing.T) lease.Lease {
				next++
				f.nodes = append(f.nodes, nodeNumber(next))
				f.write(t)
				return nodeNumber(next)
			},
			Change: func(t *testing.T, l lease.Lease) lease.Lease {
				i := slices.IndexFunc(f.nodes, l.SameSubnets)
				f.nodes[i].PublicIP = f.nodes[i].PublicIP.Next()
				f.write(t)
				return f.nodes[i]
			},
			Remove: func(t *testing.T, l lease.Lease) {
				f.nodes = slices.DeleteFunc(f.nodes, l.SameSubnets)
				f.write(t)
			},
		}
	})
}
