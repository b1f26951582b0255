package kube

import (
	"log/slog"
	"net/netip"
	"testing"

	"weft/lease"
)

// TestNodeCacheSetNetwork checks that a wider network adds nodes outside the old one.
func TestNodeCacheSetNetwork(t *testing.T) {
	c := newNodeCache(defaultNames(t), slog.New(slog.DiscardHandler), nil)
	c.setNetwork(network(t, netConf))
	inside := annotatedNode(map[string]string{"kube-subnet-manager": "true", "public-ip": "192.0.2.1"}, "10.244.1.0/24")
	outside := annotatedNode(map[string]string{"kube-subnet-manager": "true", "public-ip": "192.0.2.2"},
		"10.245.1.0/24")
	inside.Name, outside.Name = "inside", "outside"
	if err := c.Replace([]any{inside, outside}, "7"); err != nil {
		t.Fatal(err)
	}
	if got := lease.List(c.current().leases.Leases); len(got) != 1 || got[0].Node != "inside" {
		t.Errorf("got %+v", got)
	}
	c.setNetwork(network(t, `{"Network": "10.244.0.0/15"}`))
	if got := lease.List(c.current().leases.Leases); len(got) != 2 || got[1].Subnet != netip.MustParsePrefix("10.245.1.0/24") {
		t.Errorf("got %+v", got)
	}
}

// TestNodeCacheReplace checks that nodes missing from a new list are removed.
func TestNodeCacheReplace(t *testing.T) {
	c := newNodeCache(defaultNames(t), slog.New(slog.DiscardHandler), nil)
	c.setNetwork(network(t, netConf))
	a := annotatedNode(map[string]string{"kube-subnet-manager": "true", "public-ip": "192.0.2.1"}, "10.244.1.0/24")
	b := annotatedNode(map[string]string{"kube-subnet-manager": "true", "public-ip": "192.0.2.2"}, "10.244.2.0/24")
	a.Name, b.Name = "a", "b"
	for _, list := range [][]any{{a, b}, {b}, {}, {a}} {
		if err := c.Replace(list, "7"); err != nil {
			t.Fatal(err)
		}
		got := c.current()
		if !got.synced || got.leases.Leases.Len() != len(list) || got.leases.Revision != 7 {
			t.Errorf("after a list of %d: %+v", len(list), got.leases)
		}
	}
	if err := c.Replace([]any{"not a node"}, "8"); err == nil {
		t.Error("list of another type accepted")
	}
}
