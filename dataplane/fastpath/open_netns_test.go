//go:build amd64 || arm64

package fastpath

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"weft/dataplane/fib"
	"weft/deploy/lab"
)

// TestNetnsOpen attaches the programs, or gets the reason why this kernel cannot have them.
func TestNetnsOpen(t *testing.T) {
	l := lab.Start(t, lab.Options{PodsPerNode: -1})
	node := l.Nodes[0]
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(node.Do(func() error {
		at := Place{Device: "lo", Underlay: "eth0", Local: netip.AddrPortFrom(node.Addr, 8285)}
		p, err := Open(Config{Place: at})
		if errors.Is(err, ErrUnsupported) {
			t.Log("not supported:", err)
			if !strings.Contains(err.Error(), "no TCX (Linux 6.6)") &&
				!strings.Contains(err.Error(), "operation not permitted") {
				t.Errorf("unclear reason: %v", err)
			}
			return nil
		}
		if err != nil {
			return err
		}
		_, err = p.SetNodes(fib.Node{}, nil)
		if err == nil {
			err = p.Watch(false)
		}
		if err == nil && !p.Persistent() {
			err = errors.New("the programs would end with the process")
		}
		removed, removeErr := RemoveAll()
		if err == nil && len(removed) != 1 {
			t.Errorf("removed %q, want the programs of one device", removed)
		}
		return errors.Join(err, p.Close(), removeErr)
	}))
}
