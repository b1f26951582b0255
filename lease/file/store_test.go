package file

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"weft/lease"
	"weft/lease/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// leaseFile is a lease file that a test edits.
type leaseFile struct {
	path  string
	nodes []lease.Lease
}

// write replaces the file atomically, as an editor does.
func (f *leaseFile) write(t *testing.T) {
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

// nodeLease returns the lease of node n.
func nodeLease(n int) lease.Lease {
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
		f := &leaseFile{path: filepath.Join(t.TempDir(), "leases.yaml")}
		for n := range nodes {
			f.nodes = append(f.nodes, nodeLease(n))
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
				l := nodeLease(n)
				return lease.Request{Network: network, Attrs: l.Attrs, Node: l.Node}
			},
			Open: func(t *testing.T, n int) lease.Store { return open(t, f.path) },
			Add: func(t *testing.T) lease.Lease {
				next++
				f.nodes = append(f.nodes, nodeLease(next))
				f.write(t)
				return nodeLease(next)
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

func TestInvalidVersionIgnored(t *testing.T) {
	f := &leaseFile{path: filepath.Join(t.TempDir(), "leases.yaml"), nodes: []lease.Lease{nodeLease(0), nodeLease(1)}}
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(f.path, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Network(t.Context()); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), f.path) {
			t.Errorf("without a file: %v", err)
		}
		if err := os.WriteFile(f.path, []byte("nodes: 5"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Network(t.Context()); err == nil || !strings.Contains(err.Error(), f.path) {
			t.Errorf("invalid first version: %v", err)
		}
		f.write(t)
		lists := make(chan lease.Snapshot, 10)
		var errs []string // of Watch, which is called again at once
		go func() {
			for t.Context().Err() == nil {
				if err := s.Watch(t.Context(), func(s lease.Snapshot) { lists <- s }); err != nil {
					errs = append(errs, err.Error())
				}
			}
		}()
		synctest.Wait()
		if got := <-lists; got.Leases.Len() != 2 {
			t.Errorf("first list: %+v", got)
		}
		if err := os.WriteFile(f.path, []byte(head+"nodes: [{name: x}]"), 0o644); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := os.Remove(f.path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(lists) != 0 || len(errs) != 2 || !strings.Contains(errs[0], "subnet is missing") ||
			!strings.Contains(errs[1], "no such file or directory; the previous version stays in force") {
			t.Errorf("%d lists, errors %q", len(lists), errs)
		}
		if l, err := s.Claim(t.Context(), lease.Request{Node: "node0"}); err != nil || !l.Equal(nodeLease(0)) {
			t.Errorf("claim from the version in force: %+v, %v", l, err)
		}
		f.nodes = append(f.nodes, nodeLease(2))
		f.write(t)
		// A version takes effect only after the second read. The first one shows that the file is
		// readable again.
		time.Sleep(pollInterval)
		synctest.Wait()
		if len(lists) != 1 || (<-lists).Leases.Len() != 2 {
			t.Error("after one read: want the previous version again")
		}
		time.Sleep(pollInterval)
		synctest.Wait()
		if len(lists) != 1 || (<-lists).Leases.Len() != 3 {
			t.Error("new version not in force")
		}
	})
}

func TestClaim(t *testing.T) {
	f := &leaseFile{path: filepath.Join(t.TempDir(), "leases.yaml"), nodes: []lease.Lease{nodeLease(0), nodeLease(1)}}
	f.write(t)
	var log bytes.Buffer
	s, err := Open(f.path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		node   string
		public netip.Addr
		want   int // node number; negative: none
	}{
		{"node0", nodeLease(0).PublicIP, 0},
		{"node0", nodeLease(1).PublicIP, 0},
		{"other", nodeLease(1).PublicIP, 1},
		{"other", nodeLease(5).PublicIP, -1},
	}
	for _, test := range tests {
		l, err := s.Claim(t.Context(), lease.Request{Node: test.node, Attrs: lease.Attrs{PublicIP: test.public}})
		switch {
		case test.want < 0 && (!errors.Is(err, lease.ErrNoSubnet) || !strings.Contains(err.Error(), f.path)):
			t.Errorf("%s %s: got %+v, %v", test.node, test.public, l, err)
		case test.want >= 0 && (err != nil || !l.Equal(nodeLease(test.want))):
			t.Errorf("%s %s: got %+v, %v", test.node, test.public, l, err)
		}
	}
	if n := strings.Count(log.String(), "public IP in lease file differs"); n != 1 {
		t.Errorf("log:\n%s", log.String())
	}
	if _, err := Open("", nil); err == nil {
		t.Error("Open without a path succeeded")
	}
}

func TestRenewMovedSubnet(t *testing.T) {
	f := &leaseFile{path: filepath.Join(t.TempDir(), "leases.yaml"), nodes: []lease.Lease{nodeLease(0)}}
	f.write(t)
	s := open(t, f.path)
	if l, err := s.Renew(t.Context(), nodeLease(0)); err != nil || !l.Equal(nodeLease(0)) {
		t.Errorf("got %+v, %v", l, err)
	}
	moved := nodeLease(0)
	moved.Subnet = nodeLease(7).Subnet
	if _, err := s.Renew(t.Context(), moved); !errors.Is(err, lease.ErrLost) {
		t.Errorf("got %v", err)
	}
}
