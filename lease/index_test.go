package lease

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// randomLease draws from few values, so that leases often collide.
func randomLease(rng *rand.Rand) Lease {
	var l Lease
	if rng.IntN(3) > 0 {
		a := netip.AddrFrom4([4]byte{10, 5, byte(rng.IntN(8)), byte(rng.IntN(4) << 6)})
		l.Subnet = netip.PrefixFrom(a, 16+rng.IntN(14)).Masked()
	}
	if rng.IntN(3) > 0 {
		a := netip.AddrFrom16([16]byte{0: 0xfd, 6: byte(rng.IntN(8)), 7: byte(rng.IntN(4) << 6)})
		l.Subnet6 = netip.PrefixFrom(a, 48+rng.IntN(14)).Masked()
	}
	if rng.IntN(3) > 0 {
		l.PublicIP = netip.AddrFrom4([4]byte{192, 0, 2, byte(rng.IntN(8))})
	}
	if rng.IntN(3) > 0 {
		l.PublicIPv6 = netip.AddrFrom16([16]byte{0: 0xfe, 15: byte(rng.IntN(8))})
	}
	return l
}

func TestLeaseIndexReference(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 20000 {
		list := make([]Lease, rng.IntN(6))
		for i := range list {
			list[i] = randomLease(rng)
			list[i].Node = fmt.Sprint(i)
		}
		x, l := newLeaseIndex(NewSet(list...)), randomLease(rng)
		if got, want := x.overlaps(l), slices.ContainsFunc(list, l.Overlaps); got != want {
			t.Fatalf("%+v overlaps %+v: got %v", list, l, got)
		}
		node := func(o Lease) bool { return o.SameNode(l.Attrs) }
		if got, want := x.hasNode(l.Attrs), slices.ContainsFunc(list, node); got != want {
			t.Fatalf("%+v hasNode %+v: got %v", list, l, got)
		}
	}
}
