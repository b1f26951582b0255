package backend

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"weft/ctrl"
	"weft/lease"
	"weft/lease/ordered"
)

// plannerBackends are the network configs that the churn test plans for.
var plannerBackends = []string{
	`{"Type":"alloc"}`, `{"Type":"udp"}`, `{"Type":"udp","Carrier":"kernel"}`,
	`{"Type":"vxlan"}`, `{"Type":"vxlan","DirectRouting":true}`, `{"Type":"host-gw"}`,
	`{"Type":"ipip"}`, `{"Type":"wireguard"}`, `{"Type":"wireguard","Mode":"auto"}`,
	`{"Type":"extension","SubnetAddCommand":"add","SubnetRemoveCommand":"remove"}`,
}

// churnLease returns a random lease out of few: some are those of this node, are invalid, lie
// outside the network, or publish the same Ethernet address or key as others.
func churnLease(rng *rand.Rand, typ string) lease.Lease {
	i := 1 + rng.IntN(60)
	l := node(i, typ, "", "")
	if rng.IntN(10) == 0 {
		l.Node = fmt.Sprintf("n%d", 1+rng.IntN(60))
	}
	switch rng.IntN(12) {
	case 0:
		l.Subnet6 = netip.Prefix{}
	case 1:
		l.Subnet = netip.Prefix{}
	case 2:
		l.Subnet = prefix(fmt.Sprintf("10.6.%d.0/24", i))
	case 3:
		l.BackendType = "other"
	case 4:
		l.PublicIP = addr(fmt.Sprintf("10.9.0.%d", i))
	case 5:
		l.PublicIPv6 = netip.Addr{}
	}
	data := func() json.RawMessage {
		n := i
		if rng.IntN(4) == 0 {
			n = 1 + rng.IntN(10)
		}
		switch {
		case rng.IntN(20) == 0:
			return json.RawMessage(`"x"`)
		case typ == "vxlan":
			return fmt.Appendf(nil, `{"VNI":1,"VtepMAC":"02:00:00:00:00:%02x"}`, n)
		case typ == "wireguard":
			return fmt.Appendf(nil, `{"PublicKey":%q,"Port":51820}`, ctrl.Key{byte(n)}.Base64())
		}
		return nil
	}
	l.BackendData, l.BackendV6Data = data(), data()
	return l
}

// texts returns the objects, former routes and unreachable subnets of a state as a sorted set.
func texts(s ctrl.State) []string {
	var out []string
	for o := range s.Objects() {
		out = append(out, fmt.Sprintf("%+v", o))
	}
	for _, r := range s.FlannelRoutes {
		out = append(out, fmt.Sprintf("%+v", r))
	}
	for _, u := range s.Unreachable {
		out = append(out, fmt.Sprintf("%+v", u))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestPlannerEqualsPlan checks that the plan made from changes is the backend's plan for all
// leases, under random churn, and that parts of unchanged leases are shared.
func TestPlannerEqualsPlan(t *testing.T) {
	for _, config := range plannerBackends {
		for _, families := range []string{"both", "IPv4", "IPv6"} {
			t.Run(config+" "+families, func(t *testing.T) { churnPlanner(t, config, families) })
		}
	}
}

func churnPlanner(t *testing.T, config, families string) {
	n := network(t, config)
	local := me()
	local.FOU = true
	switch {
	case families == "IPv4" || config == `{"Type":"udp","Carrier":"kernel"}`:
		n = only4(n)
	case families == "IPv6":
		n = only6(n)
	}
	local.Blackhole = families == "both"
	b, err := New(n, local)
	if err != nil {
		t.Skip("NOT TESTED: ", err)
	}
	typ := b.Advertisement().Attrs.BackendType
	rng := rand.New(rand.NewPCG(7, uint64(len(config))))
	self := node(1, typ, "", "")
	p := NewPlanner(b, self)
	all := lease.NewSet(self)
	var before ctrl.Plan
	for range 150 {
		var remove, put []*lease.Lease
		for range rng.IntN(4) {
			l := churnLease(rng, typ)
			put = append(put, &l)
		}
		for l := range all.All() {
			if rng.IntN(25) == 0 {
				remove = append(remove, l)
			}
		}
		all = all.With(remove, put)
		plan := p.Plan(all)
		got, want := texts(plan.Whole()), texts(b.Plan(self, lease.List(all)))
		if !slices.Equal(got, want) {
			t.Fatalf("%d leases:\ngot  %q\nwant %q", all.Len(), only(got, want), only(want, got))
		}
		changed := 0
		for range ordered.Diff(before.Parts, plan.Parts) {
			changed++
		}
		if config == `{"Type":"udp"}` && changed > len(remove)+2*len(put) {
			t.Fatalf("%d parts changed for %d removed and %d written leases", changed, len(remove), len(put))
		}
		before = plan
	}
}

// only returns the elements of a that are not in b.
func only(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

// TestPlannerSharedMAC checks that the entry of two nodes with one Ethernet address moves to the
// second when the first leaves.
func TestPlannerSharedMAC(t *testing.T) {
	b, err := New(only4(network(t, `{"Type":"vxlan"}`)), me())
	if err != nil {
		t.Fatal(err)
	}
	data := `{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}`
	first, second := node(2, "vxlan", data, ""), node(3, "vxlan", data, "")
	p := NewPlanner(b, node(1, "vxlan", "", ""))
	for _, step := range []struct {
		leases      []lease.Lease
		dst         string
		unreachable int
	}{
		{[]lease.Lease{second}, "172.31.0.3", 0},
		{[]lease.Lease{first, second}, "172.31.0.2", 1},
		{[]lease.Lease{second}, "172.31.0.3", 0},
	} {
		s := p.Plan(lease.NewSet(step.leases...)).Whole()
		if len(s.FDB) != 1 || s.FDB[0].Dst != addr(step.dst) || len(s.Unreachable) != step.unreachable {
			t.Errorf("%d leases: %v, %v", len(step.leases), s.FDB, s.Unreachable)
		}
	}
}

// BenchmarkPlannerChange plans for one change of 10,000 leases.
func BenchmarkPlannerChange(b *testing.B) {
	n, err := lease.ParseNetwork([]byte(`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}`))
	if err != nil {
		b.Fatal(err)
	}
	backend, err := New(n, me())
	if err != nil {
		b.Fatal(err)
	}
	leases := manyLeases(10_000)
	all := lease.NewSet(leases...)
	p := NewPlanner(backend, leases[0])
	p.Plan(all)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		l := leases[1+i%9_999]
		l.PublicIP = l.PublicIP.Next()
		all = all.With(nil, []*lease.Lease{&l})
		p.Plan(all)
	}
}
