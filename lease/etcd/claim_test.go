package etcd

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

// cluster is a server with a network config, and an operator's client for it.
type cluster struct {
	operator
	config  func(n int) Config
	network lease.Network
}

func newCluster(t *testing.T, network string) cluster {
	t.Helper()
	server := serve(t)
	op := newOperator(t, server, "/coreos.com/network")
	op.put(t, "/config", network)
	return cluster{op, func(n int) Config { return testConfig(server, "/coreos.com/network", n) },
		parseNetwork(t, network)}
}

const (
	onlyV4 = `{"Network":"10.5.0.0/20"}`
	dual   = `{"Network":"10.5.0.0/20","EnableIPv6":true,"IPv6Network":"fd10:5::/48"}`
)

func mustClaim(t *testing.T, s *Store, r lease.Request) lease.Lease {
	t.Helper()
	l, err := s.Claim(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestClaimFlannelFormat(t *testing.T) {
	c := newCluster(t, dual)
	s := open(t, c.config(0))
	s.random = func(int) int { return 4 }
	r := request(c.network, 0)
	r.Network.EnableIPv6 = false
	mustClaim(t, s, r)
	r = request(c.network, 1)
	r.Attrs.PublicIPv6 = netip.MustParseAddr("fd31::1")
	r.Attrs.BackendType, r.Attrs.BackendData = "vxlan", []byte(`{"VNI":1,"VtepMAC":"9a:71:00:00:00:01"}`)
	s = open(t, c.config(1))
	s.random = func(int) int { return 7 }
	mustClaim(t, s, r)
	want := map[string]string{
		"10.5.5.0-24": `{"PublicIP":"192.0.2.1","PublicIPv6":null}`,
		"10.5.9.0-24&fd10:5:0:8::-64": `{"PublicIP":"192.0.2.2","PublicIPv6":"fd31::1",` +
			`"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"9a:71:00:00:00:01"}}`,
	}
	if got := c.all(t, "/subnets"); !maps.Equal(trimSlash(got), want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	owners := c.all(t, "/weft/owners/")
	if len(owners) != 2 || !strings.Contains(owners["10.5.5.0-24"], `"node":"node0"`) {
		t.Errorf("owner keys: %v", owners)
	}
	ttl, err := c.TimeToLive(t.Context(), c.leaseIDOf(t, "/subnets/10.5.5.0-24"))
	if err != nil || ttl.GrantedTTL != 86400 {
		t.Errorf("etcd lease of %d s, %v", ttl.GrantedTTL, err)
	}
}

func trimSlash(m map[string]string) map[string]string {
	trimmed := make(map[string]string)
	for k, v := range m {
		trimmed[strings.TrimPrefix(k, "/")] = v
	}
	return trimmed
}

func TestClaimFullPool(t *testing.T) {
	c := newCluster(t, onlyV4)
	subnets := make([]netip.Prefix, 15)
	var all sync.WaitGroup
	for n := range subnets {
		s := open(t, c.config(n))
		all.Go(func() {
			if l, err := s.Claim(t.Context(), request(c.network, n)); err != nil {
				t.Error(err)
			} else {
				subnets[n] = l.Subnet
			}
		})
	}
	all.Wait()
	slices.SortFunc(subnets, netip.Prefix.Compare)
	if distinct := slices.Compact(slices.Clone(subnets)); len(distinct) != 15 {
		t.Errorf("got %v", subnets)
	}
	_, err := open(t, c.config(15)).Claim(t.Context(), request(c.network, 15))
	if !errors.Is(err, lease.ErrNoSubnet) || !strings.Contains(err.Error(), "10.5.1.0/24 to 10.5.15.0/24") {
		t.Errorf("claim from a full pool: got %v", err)
	}
	if got := c.all(t, "/weft/owners/"); len(got) != 15 {
		t.Errorf("%d owner keys", len(got))
	}
}

func TestClaimFlannelLease(t *testing.T) {
	c := newCluster(t, onlyV4)
	c.putLease(t, lease.Lease{Subnet: prefix("10.5.7.0/24"), Attrs: request(c.network, 0).Attrs})
	old := c.leaseIDOf(t, "/subnets/10.5.7.0-24")
	r := request(c.network, 0)
	r.Previous = prefix("10.5.3.0/24")
	l := mustClaim(t, open(t, c.config(0)), r)
	if l.Subnet != prefix("10.5.7.0/24") || time.Until(l.Expires) < 23*time.Hour {
		t.Errorf("got %s until %s", l.Subnet, l.Expires)
	}
	if now := c.leaseIDOf(t, "/subnets/10.5.7.0-24"); now == old || now == 0 {
		t.Errorf("key has etcd lease %x, before the claim %x", now, old)
	}
	if ttl, err := c.TimeToLive(t.Context(), old); err != nil || ttl.TTL > 0 {
		t.Errorf("replaced etcd lease not revoked: %+v, %v", ttl, err)
	}
}

func TestSharedEtcdLeaseNotRevoked(t *testing.T) {
	c := newCluster(t, onlyV4)
	grant, err := c.Grant(t.Context(), 86400)
	if err != nil {
		t.Fatal(err)
	}
	value := `{"PublicIP":"192.0.2.1","PublicIPv6":null}`
	c.put(t, "/subnets/10.5.7.0-24", value, clientv3.WithLease(grant.ID))
	c.put(t, "/subnets/10.5.8.0-24", `{"PublicIP":"192.0.2.9","PublicIPv6":null}`, clientv3.WithLease(grant.ID))
	mustClaim(t, open(t, c.config(0)), request(c.network, 0))
	if got := c.all(t, "/subnets/"); len(got) != 2 {
		t.Errorf("keys: %v", got)
	}
}

func TestReservationKept(t *testing.T) {
	c := newCluster(t, onlyV4)
	c.put(t, "/subnets/10.5.7.0-24", `{"PublicIP":"192.0.2.1","PublicIPv6":null}`)
	s := open(t, c.config(0))
	l := mustClaim(t, s, request(c.network, 0))
	if l.Subnet != prefix("10.5.7.0/24") || !l.Expires.IsZero() {
		t.Errorf("got %s until %s", l.Subnet, l.Expires)
	}
	l.BackendType = "host-gw"
	if l, err := s.Renew(t.Context(), l); err != nil || !l.Expires.IsZero() {
		t.Errorf("renewed until %s, %v", l.Expires, err)
	}
	if grant := c.leaseIDOf(t, "/subnets/10.5.7.0-24"); grant != 0 {
		t.Errorf("reservation has etcd lease %x", grant)
	}
	if got := c.all(t, "/subnets/")["10.5.7.0-24"]; !strings.Contains(got, "host-gw") {
		t.Errorf("attributes not published: %s", got)
	}
	// Conversely, an operator's put without an etcd lease turns a live lease into a reservation.
	s = open(t, c.config(1))
	l = mustClaim(t, s, request(c.network, 1))
	key := "/subnets/" + formatKey(l)
	c.put(t, key, `{"PublicIP":"192.0.2.2","PublicIPv6":null}`)
	if l, err := s.Renew(t.Context(), l); err != nil || !l.Expires.IsZero() || c.leaseIDOf(t, key) != 0 {
		t.Errorf("renewed until %s on etcd lease %x, %v", l.Expires, c.leaseIDOf(t, key), err)
	}
}

func TestReservationKeptEnablingIPv6(t *testing.T) {
	c := newCluster(t, dual)
	c.put(t, "/subnets/10.5.7.0-24", `{"PublicIP":"192.0.2.1","PublicIPv6":null}`)
	// outside the network: left to the operator
	c.put(t, "/subnets/10.99.0.0-24", `{"PublicIP":"192.0.2.1","PublicIPv6":null}`)
	l := mustClaim(t, open(t, c.config(0)), request(c.network, 0))
	if l.Subnet != prefix("10.5.7.0/24") || !l.Subnet6.IsValid() {
		t.Errorf("got %s %s", l.Subnet, l.Subnet6)
	}
	got := c.all(t, "/subnets/")
	if len(got) != 2 || got["10.99.0.0-24"] == "" || got[formatKey(l)] == "" {
		t.Errorf("keys: %v", got)
	}
	if grant := c.leaseIDOf(t, "/subnets/"+formatKey(l)); grant != 0 {
		t.Errorf("reservation has etcd lease %x", grant)
	}
}

func TestClaimEnablingIPv6(t *testing.T) {
	c := newCluster(t, dual)
	c.putLease(t, lease.Lease{Subnet: prefix("10.5.2.0/24"), Attrs: request(c.network, 1).Attrs})
	c.putLease(t, lease.Lease{Subnet: prefix("10.5.3.0/24"), Attrs: request(c.network, 0).Attrs})
	old := c.leaseIDOf(t, "/subnets/10.5.3.0-24")
	l := mustClaim(t, open(t, c.config(0)), request(c.network, 0))
	if l.Subnet != prefix("10.5.3.0/24") || !l.Subnet6.IsValid() {
		t.Errorf("got %s %s", l.Subnet, l.Subnet6)
	}
	if got := c.all(t, "/subnets/"); len(got) != 2 || got[formatKey(l)] == "" || got["10.5.2.0-24"] == "" {
		t.Errorf("keys: %v", got)
	}
	if ttl, err := c.TimeToLive(t.Context(), old); err != nil || ttl.TTL > 0 {
		t.Errorf("etcd lease of deleted key not revoked: %+v, %v", ttl, err)
	}
}

// duringClaim runs f once, when the store next chooses a random subnet: between list and claim.
func duringClaim(s *Store, f func()) {
	var once sync.Once
	s.random = func(int) int {
		once.Do(f)
		return 0
	}
}

func TestClaimLostRace(t *testing.T) {
	c := newCluster(t, dual)
	rival := func(l lease.Lease) func() {
		l.PublicIP = netip.MustParseAddr("192.0.2.200")
		return func() { c.putLease(t, l) }
	}
	tests := []struct {
		name        string
		network     string
		rival       lease.Lease
		want, want6 string
		previous    string
	}{
		{"the same key", onlyV4, lease.Lease{Subnet: prefix("10.5.1.0/24")}, "10.5.2.0/24", "", ""},
		{"a wider key", onlyV4, lease.Lease{Subnet: prefix("10.5.0.0/22")}, "10.5.4.0/24", "", ""},
		{"a narrower key", onlyV4, lease.Lease{Subnet: prefix("10.5.1.128/25")}, "10.5.2.0/24", "", ""},
		{"a narrower key in a subnet of 16", `{"Network":"10.0.0.0/8","SubnetLen":20}`,
			lease.Lease{Subnet: prefix("10.0.31.0/24")}, "10.0.32.0/20", "", ""},
		{"IPv4 in a key of both families", onlyV4,
			lease.Lease{Subnet: prefix("10.5.1.0/24"), Subnet6: prefix("fd10:5:0:1::/64")}, "10.5.2.0/24", "", ""},
		{"IPv6 beside another IPv4", dual,
			lease.Lease{Subnet: prefix("10.5.9.0/24"), Subnet6: prefix("fd10:5:0:1::/64")}, "10.5.3.0/24",
			"fd10:5:0:2::/64", "10.5.3.0/24"},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, err := c.Delete(t.Context(), c.prefix+"/subnets/", clientv3.WithPrefix()); err != nil {
				t.Fatal(err)
			}
			s := open(t, c.config(i))
			duringClaim(s, rival(test.rival))
			r := request(parseNetwork(t, test.network), i)
			r.Previous = prefix(test.previous)
			l := mustClaim(t, s, r)
			if l.Subnet != prefix(test.want) || l.Subnet6 != prefix(test.want6) {
				t.Errorf("got %s %s", l.Subnet, l.Subnet6)
			}
			if got := c.all(t, "/subnets/"); len(got) != 2 || got[formatKey(test.rival)] == "" ||
				got[formatKey(l)] == "" {
				t.Errorf("keys: %v", got)
			}
			if got := c.all(t, "/weft/owners/"); got[formatKey(l)] == "" {
				t.Errorf("owner keys: %v", got)
			}
		})
	}
}

func TestClaimLostRaceOneFamily(t *testing.T) {
	c := newCluster(t, dual)
	c.putLease(t, lease.Lease{Subnet: prefix("10.5.3.0/24"), Attrs: request(c.network, 0).Attrs})
	s := open(t, c.config(0))
	duringClaim(s, func() {
		c.putLease(t, lease.Lease{Subnet: prefix("10.5.9.0/24"), Subnet6: prefix("fd10:5:0:1::/64"),
			Attrs: request(c.network, 1).Attrs})
	})
	// The first attempt replaces the node's IPv4-only key, then loses the race.
	l := mustClaim(t, s, request(c.network, 0))
	if l.Subnet != prefix("10.5.3.0/24") || l.Subnet6 != prefix("fd10:5:0:2::/64") {
		t.Errorf("got %s %s", l.Subnet, l.Subnet6)
	}
}

func TestClaimConcurrentChange(t *testing.T) {
	c := newCluster(t, dual)
	c.putLease(t, lease.Lease{Subnet: prefix("10.5.3.0/24"), Attrs: request(c.network, 0).Attrs})
	s := open(t, c.config(0))
	// The IPv4 lease becomes another node's while the IPv6 subnet is chosen.
	duringClaim(s, func() {
		c.putLease(t,
			lease.Lease{Subnet: prefix("10.5.3.0/24"), Attrs: request(c.network, 1).Attrs})
	})
	l := mustClaim(t, s, request(c.network, 0))
	if l.Subnet == prefix("10.5.3.0/24") {
		t.Error("claimed the subnet of another node")
	}
	if got := c.all(t, "/subnets/")["10.5.3.0-24"]; !strings.Contains(got, "192.0.2.2") {
		t.Errorf("other node's key: %q", got)
	}
}

func TestClaimAfterCrash(t *testing.T) {
	c := newCluster(t, onlyV4)
	s := open(t, c.config(0))
	s.ownerTTL = time.Second
	first := mustClaim(t, s, request(c.network, 0))
	s.client.Close() // crash: the owner key is not revoked
	again := open(t, c.config(0))
	again.ownerTTL = time.Second
	if l := mustClaim(t, again, request(c.network, 0)); !l.SameSubnets(first) {
		t.Errorf("had %s, reclaimed %s", first.Subnet, l.Subnet)
	}
	again.client.Close()
	other := open(t, c.config(1))
	for deadline := time.Now().Add(20 * time.Second); ; {
		l, err := other.Claim(t.Context(), request(c.network, 0))
		if err == nil {
			if !l.SameSubnets(first) {
				t.Errorf("new node with the address got %s, want %s", l.Subnet, first.Subnet)
			}
			return
		}
		if !errors.Is(err, lease.ErrInUse) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestClaimAddressChanged(t *testing.T) {
	c := newCluster(t, onlyV4)
	first := mustClaim(t, open(t, c.config(0)), request(c.network, 0))
	r := request(c.network, 0)
	r.Attrs.PublicIP = netip.MustParseAddr("192.0.2.99")
	l := mustClaim(t, open(t, c.config(0)), r)
	if !l.SameSubnets(first) || l.PublicIP != r.Attrs.PublicIP {
		t.Errorf("had %s, got %s for %s", first.Subnet, l.Subnet, l.PublicIP)
	}
	if got := c.all(t, "/subnets/"); len(got) != 1 || !strings.Contains(got[formatKey(l)], "192.0.2.99") {
		t.Errorf("keys: %v", got)
	}
}

// TestStoppedLeaseTakenByAddress starts another machine with the address of a stopped one.
func TestStoppedLeaseTakenByAddress(t *testing.T) {
	c := newCluster(t, onlyV4)
	s, err := Open(c.config(0))
	if err != nil {
		t.Fatal(err)
	}
	first := mustClaim(t, s, request(c.network, 0))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r := request(c.network, 0)
	r.Node = "another"
	other := open(t, c.config(1))
	l := mustClaim(t, other, r)
	if !l.SameSubnets(first) {
		t.Errorf("had %s, got %s", first.Subnet, l.Subnet)
	}
	if _, err := other.Renew(t.Context(), l); err != nil {
		t.Error(err)
	}
}

func TestUnreadableLeasesReserved(t *testing.T) {
	c := newCluster(t, `{"Network":"10.5.0.0/20","SubnetMin":"10.5.3.0","SubnetMax":"10.5.4.0"}`)
	c.put(t, "/subnets/10.5.3.0-24", `not JSON`)
	grant, err := c.Grant(t.Context(), 86400)
	if err != nil {
		t.Fatal(err)
	}
	c.put(t, "/subnets/foo", `{"PublicIP":"192.0.2.1","PublicIPv6":null}`, clientv3.WithLease(grant.ID))
	if l := mustClaim(t, open(t, c.config(0)), request(c.network, 0)); l.Subnet != prefix("10.5.4.0/24") {
		t.Errorf("got %s", l.Subnet)
	}
	if _, err := open(t, c.config(1)).Claim(t.Context(), request(c.network, 1)); !errors.Is(err, lease.ErrNoSubnet) {
		t.Errorf("got %v", err)
	}
	if got := c.all(t, "/subnets/"); got["foo"] == "" || got["10.5.3.0-24"] != "not JSON" {
		t.Errorf("keys: %v", got)
	}
}

func TestNoncanonicalKeysReserved(t *testing.T) {
	const others = `{"PublicIP":"192.0.2.200","PublicIPv6":null}`
	for _, test := range []struct{ network, key, want, want6 string }{
		{`{"Network":"10.5.0.0/20","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0"}`, "10.5.1.7-24", "10.5.2.0/24", ""},
		{`{"Network":"10.5.0.0/20","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0"}`, "10.5.1.0-024", "10.5.2.0/24", ""},
		{`{"Network":"10.5.0.0/20","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0"}`, "old/10.5.1.0-24", "10.5.2.0/24",
			""},
		{`{"Network":"10.5.0.0/20","EnableIPv6":true,"IPv6Network":"fd10:5::/48"}`, "10.5.9.0-24&fd10:5:0:1::7-64",
			"10.5.1.0/24", "fd10:5:0:2::/64"},
		{`{"Network":"10.5.0.0/20","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0"}`, "10.5.1.7-0", "10.5.1.0/24", ""},
		{`{"Network":"10.5.0.0/20","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0"}`, "10.5.1.0-40", "10.5.1.0/24", ""},
	} {
		t.Run(test.key, func(t *testing.T) {
			c := newCluster(t, test.network)
			c.put(t, "/subnets/"+test.key, others)
			s := open(t, c.config(0))
			s.random = func(int) int { return 0 }
			l := mustClaim(t, s, request(c.network, 0))
			if l.Subnet != prefix(test.want) || l.Subnet6 != prefix(test.want6) {
				t.Errorf("got %s %s", l.Subnet, l.Subnet6)
			}
			if got := c.all(t, "/subnets/"); len(got) != 2 || got[test.key] != others {
				t.Errorf("keys: %v", got)
			}
		})
	}
}

func TestNoncanonicalOwnKeyReplaced(t *testing.T) {
	c := newCluster(t, onlyV4)
	for n, test := range []struct {
		key      string
		reserved bool
	}{{"10.5.7.9-24", false}, {"10.5.8.9-24", true}} {
		var opts []clientv3.OpOption
		if !test.reserved {
			grant, err := c.Grant(t.Context(), 86400)
			if err != nil {
				t.Fatal(err)
			}
			opts = append(opts, clientv3.WithLease(grant.ID))
		}
		c.put(t, "/subnets/"+test.key, fmt.Sprintf(`{"PublicIP":"192.0.2.%d","PublicIPv6":null}`, n+1), opts...)
		want := prefix(fmt.Sprintf("10.5.%d.0/24", n+7))
		l := mustClaim(t, open(t, c.config(n)), request(c.network, n))
		if l.Subnet != want || l.Expires.IsZero() != test.reserved {
			t.Errorf("%s: got %s until %s", test.key, l.Subnet, l.Expires)
		}
		if got := c.all(t, "/subnets/"); len(got) != n+1 || got[formatKey(l)] == "" {
			t.Errorf("%s: keys %v", test.key, got)
		}
		if reserved := c.leaseIDOf(t, "/subnets/"+formatKey(l)) == 0; reserved != test.reserved {
			t.Errorf("%s: reserved %v", test.key, reserved)
		}
	}
}

func TestClaimWithoutPublicIP(t *testing.T) {
	c := newCluster(t, onlyV4)
	r := request(c.network, 0)
	r.Attrs.PublicIP = netip.Addr{}
	if l, err := open(t, c.config(0)).Claim(t.Context(), r); err == nil {
		t.Errorf("got %s without a public IP", l.Subnet)
	}
}

func TestClaimIPv6Only(t *testing.T) {
	c := newCluster(t, `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd10:5::/48"}`)
	seen := make(map[netip.Prefix]bool)
	for n := range 3 {
		r := lease.Request{Network: c.network, Node: fmt.Sprint("x", n),
			Attrs: lease.Attrs{PublicIPv6: netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(n)})}}
		l := mustClaim(t, open(t, c.config(n)), r)
		seen[l.Subnet6] = true
		if again := mustClaim(t, open(t, c.config(n)), r); !again.SameSubnets(l) {
			t.Errorf("node %d had %s, got %s", n, l.Subnet6, again.Subnet6)
		}
	}
	if len(seen) != 3 {
		t.Errorf("three nodes got %v", seen)
	}
	for key, value := range c.all(t, "/subnets/") {
		if !strings.HasPrefix(key, "0.0.0.0-0&fd10:5:0:") ||
			!strings.HasPrefix(value, `{"PublicIP":"0.0.0.0","PublicIPv6":"fd`) {
			t.Errorf("%s: %s", key, value)
		}
	}
}
