package etcd

import (
	"context"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"weft/lease"
)

// countLists replaces the client of a store by one that counts the lists of all leases.
func countLists(t *testing.T, s *Store) (count func() int) {
	t.Helper()
	lists := make(chan struct{}, 1000)
	client, err := newClient(s.config, func(
		ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker,
		opts ...grpc.CallOption,
	) error {
		if r, ok := req.(*etcdserverpb.TxnRequest); ok {
			for _, op := range r.Success {
				if get := op.GetRequestRange(); get != nil && string(get.Key) == s.subnets() && get.MinModRevision == 0 {
					lists <- struct{}{}
				}
			}
		}
		return next(ctx, method, req, reply, cc, opts...)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.client.Close(); err != nil {
		t.Fatal(err)
	}
	s.client = client
	return func() int {
		n := len(lists)
		for range n {
			<-lists
		}
		return n
	}
}

// TestOneListPerStart expects one list of all leases for a claim, with lost races, and the watch
// that follows.
func TestOneListPerStart(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	s.random = func(int) int { return 0 } // the subnet that another node takes
	lists := countLists(t, s)
	duringClaim(s, func() {
		c.putLease(t, lease.Lease{Subnet: prefix("10.5.1.0/24"), Attrs: request(c.network, 5).Attrs})
	})
	l := mustClaim(t, s, request(c.network, 0))
	w := startWatch(t, s)
	if got := w.next(t).Leases; got.Len() != 2 || !lease.List(got)[1].SameSubnets(l) || lease.List(got)[1].Host != "node0" {
		t.Errorf("first list: %+v", lease.List(got))
	}
	c.putLease(t, lease.Lease{Subnet: prefix("10.5.9.0/24"), Attrs: request(c.network, 6).Attrs})
	for w.next(t).Leases.Len() != 3 {
	}
	if n := lists(); n != 1 {
		t.Errorf("%d lists", n)
	}
}

// TestResumeAfterOutage expects no list after an outage, unless the data is other data.
func TestResumeAfterOutage(t *testing.T) {
	server := serve(t)
	op := newOperator(t, server, "/net")
	op.put(t, "/config", onlyV4)
	network := parseNetwork(t, onlyV4)
	s := open(t, testConfig(server, "/net", 0))
	s.random = func(int) int { return 0 } // not a subnet used below
	lists := countLists(t, s)
	l := mustClaim(t, s, request(network, 0))
	s.callTimeout = 500 * time.Millisecond
	w := startWatch(t, s)
	w.next(t)
	node := 7
	again := func(change func()) lease.Snapshot {
		t.Helper()
		op.putLease(t, lease.Lease{Subnet: prefix("10.5.10.0/24"), Attrs: request(network, node).Attrs})
		node++
		w.next(t) // the stream is open
		server.Close()
		t.Logf("watch: %v", w.end(t))
		change()
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		op = newOperator(t, server, "/net")
		lists()
		for {
			w = startWatch(t, s)
			select {
			case got := <-w.lists:
				return got
			case err := <-w.ended:
				t.Logf("watch: %v", err)
			}
		}
	}
	if got := again(func() {}); got.Leases.Len() != 2 || lists() != 0 {
		t.Errorf("after an outage: %+v and a list", got)
	}
	op.putLease(t, lease.Lease{Subnet: prefix("10.5.9.0/24"), Attrs: request(network, 6).Attrs})
	if got := w.next(t); got.Leases.Len() != 3 {
		t.Errorf("missed a change after an outage: %+v", got)
	}
	if _, err := s.Renew(t.Context(), l); err != nil {
		t.Errorf("renewal after an outage: %v", err)
	}
	got := again(func() {
		if err := server.Wipe(); err != nil {
			t.Fatal(err)
		}
	})
	if got.Leases.Len() != 0 || lists() != 1 {
		t.Errorf("after a wipe: %+v and no list", got)
	}
}

// TestResumeMissedChanges expects the changes since the list, or a new list if they are compacted.
func TestResumeMissedChanges(t *testing.T) {
	for _, compacted := range []bool{false, true} {
		server := serve(t)
		op := newOperator(t, server, "/net")
		network := parseNetwork(t, onlyV4)
		s := open(t, testConfig(server, "/net", 0))
		s.random = func(int) int { return 0 } // not a subnet used below
		mustClaim(t, s, request(network, 0))
		op.putLease(t, lease.Lease{Subnet: prefix("10.5.9.0/24"), Attrs: request(network, 6).Attrs})
		if compacted {
			op.put(t, "/other", "x")
			compact(t, server)
		}
		lists := countLists(t, s)
		w := startWatch(t, s)
		first := w.next(t)
		if compacted {
			t.Logf("watch: %v", w.end(t))
			w = startWatch(t, s)
			first = w.next(t)
		}
		for first.Leases.Len() != 2 {
			first = w.next(t)
		}
		if n := lists(); (n == 1) != compacted {
			t.Errorf("compacted %t: %d lists", compacted, n)
		}
	}
}

// TestResumeForeignData expects a list if the own key was written by another client.
func TestResumeForeignData(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	l := mustClaim(t, s, request(c.network, 0))
	c.putLease(t, l) // as after a restore of other data, at a later revision
	lists := countLists(t, s)
	startWatch(t, s).next(t)
	if lists() != 1 {
		t.Error("resumed from other data")
	}
}

// TestClaimCurrentLease expects that a restart writes neither the key nor the node record, so that
// no other node has a change to handle.
func TestClaimCurrentLease(t *testing.T) {
	c := newCluster(t, onlyV4)
	first, err := Open(c.config(0))
	if err != nil {
		t.Fatal(err)
	}
	l := mustClaim(t, first, request(c.network, 0))
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	written := func() (mods []int64) {
		for _, key := range []string{"/subnets/", "/weft/nodes/"} {
			got, err := c.Get(t.Context(), c.prefix+key+formatKey(l))
			if err != nil || len(got.Kvs) != 1 {
				t.Fatalf("%v, %v", got, err)
			}
			mods = append(mods, got.Kvs[0].ModRevision)
		}
		return mods
	}
	before := written()
	s := open(t, c.config(0))
	again := mustClaim(t, s, request(c.network, 0))
	if !again.SameSubnets(l) || !again.Expires.After(l.Expires) || !slices.Equal(written(), before) {
		t.Errorf("had %s, claimed %s; written at %v, now at %v", l.Subnet, again.Subnet, before, written())
	}
	if left := c.all(t, "/weft/owners/"); len(left) != 1 {
		t.Errorf("owner keys: %v", left)
	}
	again.BackendType = "host-gw"
	if _, err := s.Renew(t.Context(), again); err != nil || startWatch(t, s).next(t).Leases.Len() != 1 {
		t.Error(err)
	}
	// Other attributes, another host name or an etcd lease of another length are written.
	r := request(c.network, 0)
	for _, change := range []func(){
		func() { r.Node = "renamed" },
		func() { r.Attrs.FastPath = true },
		func() { r.Attrs.BackendType = "vxlan" },
	} {
		before := written()
		change()
		mustClaim(t, open(t, c.config(0)), r)
		if slices.Equal(written(), before) {
			t.Errorf("not written: %+v", r)
		}
	}
}
