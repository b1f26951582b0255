package etcd

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

// crash ends a daemon as a loss of power does: its owner key is not revoked.
func crash(s *Store) { s.client.Close() }

// TestClaimFormerLease starts a node with another address than before.
func TestClaimFormerLease(t *testing.T) {
	stop := func(t *testing.T, c cluster, s *Store, l lease.Lease) {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	kill := func(t *testing.T, c cluster, s *Store, l lease.Lease) { crash(s) }
	expire := func(t *testing.T, c cluster, s *Store, l lease.Lease) {
		crash(s)
		if _, err := c.Revoke(t.Context(), c.leaseIDOf(t, "/weft/owners/"+formatKey(l))); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name string
		end  func(t *testing.T, c cluster, s *Store, l lease.Lease)
		node int // of the instance string
		host string
		want bool // the lease is the node's
	}{
		{"same daemon after a stop", stop, 0, "renamed", true},
		{"same daemon after a crash", kill, 0, "renamed", true},
		{"same daemon long after a crash", expire, 0, "renamed", true},
		{"same host name after a stop and a boot", stop, 7, "node0", true},
		{"same host name long after a crash and a boot", expire, 7, "node0", true},
		{"another host", expire, 7, "node7", false},
		{"ambiguous host name", expire, 7, "localhost", false},
		{"lease written by flannel since", func(t *testing.T, c cluster, s *Store, l lease.Lease) {
			stop(t, c, s, l)
			c.putLease(t, l)
		}, 0, "node0", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t, onlyV4)
			s, err := Open(c.config(0))
			if err != nil {
				t.Fatal(err)
			}
			r := request(c.network, 0)
			if test.host == "localhost" {
				r.Node = test.host
			}
			first := mustClaim(t, s, r)
			test.end(t, c, s, first)
			r.Node, r.Attrs.PublicIP = test.host, netip.MustParseAddr("192.0.2.99")
			l := mustClaim(t, open(t, c.config(test.node)), r)
			keys := c.all(t, "/subnets/")
			if l.SameSubnets(first) != test.want || (len(keys) == 1) != test.want {
				t.Errorf("had %s, got %s, keys %v; want the same: %t", first.Subnet, l.Subnet, keys, test.want)
			}
		})
	}
}

// TestClaimSameHostName starts nodes that all have one host name.
func TestClaimSameHostName(t *testing.T) {
	c := newCluster(t, onlyV4)
	claimAs := func(n int, previous netip.Prefix) (*Store, lease.Lease, error) {
		s, err := Open(c.config(n))
		if err != nil {
			t.Fatal(err)
		}
		r := request(c.network, n)
		r.Node, r.Previous = "ubuntu", previous
		l, err := s.Claim(t.Context(), r)
		return s, l, err
	}
	must := func(n int, previous netip.Prefix) (*Store, lease.Lease) {
		s, l, err := claimAs(n, previous)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s, l
	}
	first, a := must(0, netip.Prefix{})
	first.ownerTTL = time.Second // for early keep-alives
	discardWatch(t, first)

	// The first is alive: the second awaits a sign of it, then takes a subnet of its own.
	s, err := Open(c.config(1))
	if err != nil {
		t.Fatal(err)
	}
	r := request(c.network, 1)
	r.Node = "ubuntu"
	_, err = s.Claim(t.Context(), r)
	if err == nil || !strings.Contains(err.Error(), "host name of this node") || errors.Is(err, lease.ErrInUse) {
		t.Errorf("first claim with the host name of a running node: %v", err)
	}
	var b lease.Lease
	await(t, "a subnet for the second node", func() error {
		var err error
		b, err = s.Claim(t.Context(), r)
		return err
	})
	if b.SameSubnets(a) {
		t.Errorf("took over %s of a running node", a.Subnet)
	}

	// Both are down, as after a loss of power. A third cannot know which was it.
	if err := errors.Join(first.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	_, third := must(2, netip.Prefix{})
	if third.SameSubnets(a) || third.SameSubnets(b) {
		t.Errorf("third node took over %s", third.Subnet)
	}
	// It can by the subnet that it had.
	if _, l := must(3, b.Subnet); !l.SameSubnets(b) {
		t.Errorf("node with the previous subnet %s got %s", b.Subnet, l.Subnet)
	}
	// The first has its address, so it has its lease, and the only other keeps its own.
	c.delete(t, "/subnets/"+formatKey(third))
	if _, l := must(0, netip.Prefix{}); !l.SameSubnets(a) {
		t.Errorf("had %s, got %s", a.Subnet, l.Subnet)
	}
	if keys := c.all(t, "/subnets/"); len(keys) != 2 {
		t.Errorf("keys: %v", keys)
	}
}

// TestClaimAfterQuickBoot starts a node again before the owner key of its crashed daemon expires.
func TestClaimAfterQuickBoot(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	s.ownerTTL = 2 * time.Second
	a := mustClaim(t, s, request(c.network, 0))
	crash(s)
	again := open(t, c.config(7))
	r := request(c.network, 0)
	r.Attrs.PublicIP = netip.MustParseAddr("192.0.2.99")
	if _, err := again.Claim(t.Context(), r); err == nil {
		t.Error("took over the lease of a daemon that may run")
	}
	await(t, "the former subnet", func() error {
		l, err := again.Claim(t.Context(), r)
		if err == nil && !l.SameSubnets(a) {
			t.Errorf("had %s, got %s", a.Subnet, l.Subnet)
		}
		return err
	})
	if keys := c.all(t, "/subnets/"); len(keys) != 1 || !strings.Contains(keys[formatKey(a)], "192.0.2.99") {
		t.Errorf("keys: %v", keys)
	}
}

// TestNodeRecordLasts checks that the record has the etcd lease of the lease, whatever renews it.
func TestNodeRecordLasts(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	l := mustClaim(t, s, request(c.network, 0))
	same := func(when string) {
		t.Helper()
		lease, record := c.leaseIDOf(t, "/subnets/"+formatKey(l)), c.leaseIDOf(t, "/weft/nodes/"+formatKey(l))
		if lease == 0 || record != lease {
			t.Errorf("%s: etcd leases %x and %x", when, lease, record)
		}
	}
	same("claim")
	l.BackendType = "host-gw"
	if _, err := s.Renew(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	same("renewal")
	if _, err := c.Revoke(t.Context(), c.leaseIDOf(t, "/subnets/"+formatKey(l))); err != nil {
		t.Fatal(err)
	}
	if left := c.all(t, "/weft/nodes/"); len(left) != 0 {
		t.Errorf("records without a lease: %v", left)
	}
}

// TestReservationRecord expects no lasting record of a reservation, which an operator may delete.
func TestReservationRecord(t *testing.T) {
	c := newCluster(t, onlyV4)
	c.put(t, "/subnets/10.5.7.0-24", `{"PublicIP":"192.0.2.1","PublicIPv6":null}`)
	s, err := Open(c.config(0))
	if err != nil {
		t.Fatal(err)
	}
	mustClaim(t, s, request(c.network, 0))
	awaitHosts(t, startWatch(t, open(t, c.config(1))), "node0")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if left := c.all(t, "/weft/"); len(left) != 0 {
		t.Errorf("keys: %v", left)
	}
}

func TestUnreadableRecord(t *testing.T) {
	if got := parseRecord(&mvccpb.KeyValue{Value: []byte(`x`), Lease: 7}); got != (record{}) {
		t.Errorf("got %+v", got)
	}
	got := parseRecord(&mvccpb.KeyValue{Value: []byte(`{"id":"a","node":"b","more":1}`), Lease: 7})
	if want := (record{ID: "a", Node: "b", leaseID: clientv3.LeaseID(7)}); got != want {
		t.Errorf("got %+v", got)
	}
}

// TestFastPathOutlivesCrash expects the announcement until the lease ends: the kernel of a node
// whose daemon crashed still takes packets.
func TestFastPathOutlivesCrash(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	r := request(c.network, 0)
	r.Attrs.FastPath = true
	l := mustClaim(t, s, r)
	crash(s)
	c.delete(t, "/weft/owners/"+formatKey(l))
	w := startWatch(t, open(t, c.config(1)))
	if got := lease.List(w.next(t).Leases); len(got) != 1 || !got[0].FastPath || got[0].Host != "node0" {
		t.Errorf("leases: %+v", got)
	}
	c.putLease(t, l) // by flannel, with the address of the former node
	if got := lease.List(w.next(t).Leases); len(got) != 1 || got[0].FastPath {
		t.Errorf("announced for flannel: %+v", got)
	}
}
