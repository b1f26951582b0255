package lease

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"weft/lease/ordered"
)

// Candidates is the number of free subnets that Choose draws from by default, as in flannel. Nodes
// that start together then rarely choose the same one.
const Candidates = 100

// Choice is the result of Choose.
type Choice struct {
	Subnet, Subnet6 netip.Prefix
	// Own lists the indices of existing leases that belong to this node. If Reuse is set, the first
	// is the lease to take over unchanged. All others do not fit the network config or are left
	// over.
	Own   []int
	Reuse bool
}

// Choose selects subnets for a node that overlap no existing lease of another node. In order of
// preference: a lease of the node that fits the config; the remaining family of one that no longer
// does (a family was enabled or disabled); the previous subnet; one of the first free subnets,
// chosen by random, which returns a number in [0,n). It fails with ErrNoSubnet. An existing lease
// that cannot be read is passed with its subnets only.
func Choose(r Request, existing []Lease, random func(n int) int) (Choice, error) {
	c := Choice{Own: ownLeases(r, existing)}
	if len(c.Own) > 0 {
		if l := existing[c.Own[0]]; r.Network.Fits(l.Subnet, l.Subnet6) {
			c.Subnet, c.Subnet6, c.Reuse = l.Subnet, l.Subnet6, true
			return c, nil
		}
	}
	d := draw{cmp.Or(r.Candidates, Candidates), random}
	for _, p := range r.Network.pools() {
		var wanted []netip.Prefix
		for _, i := range c.Own {
			wanted = append(wanted, p.family.pick(existing[i].Subnet, existing[i].Subnet6))
		}
		wanted = append(wanted, p.family.pick(r.Previous, r.Previous6))
		got, err := p.choose(wanted, p.taken(existing, c.Own), d)
		if err != nil {
			return Choice{}, err
		}
		if p.family.v6 {
			c.Subnet6 = got
		} else {
			c.Subnet = got
		}
	}
	return c, nil
}

// ownLeases returns the indices of the requesting node's leases: those that fit the network first,
// and among them the previous one first.
func ownLeases(r Request, existing []Lease) []int {
	var own []int
	for i, l := range existing {
		if l.SameNode(r.Attrs) {
			own = append(own, i)
		}
	}
	rank := func(i int) int {
		l := existing[i]
		switch {
		case !r.Network.Fits(l.Subnet, l.Subnet6):
			return 2
		case l.SameSubnets(Lease{Subnet: r.Previous, Subnet6: r.Previous6}):
			return 0
		}
		return 1
	}
	slices.SortStableFunc(own, func(a, b int) int { return rank(a) - rank(b) })
	return own
}

// taken returns the leased subnets of the family, ordered by address. It skips the indices in own.
func (p pool) taken(existing []Lease, own []int) []netip.Prefix {
	var taken []netip.Prefix
	for i, l := range existing {
		if s := p.family.pick(l.Subnet, l.Subnet6); s.IsValid() && !slices.Contains(own, i) {
			taken = append(taken, s)
		}
	}
	slices.SortFunc(taken, ordered.ComparePrefixes)
	return taken
}

// draw is how to choose from the free subnets: one of the first ones, by random.
type draw struct {
	candidates int
	random     func(n int) int
}

// choose returns the first free subnet of wanted, else a random free subnet.
func (p pool) choose(wanted, taken []netip.Prefix, d draw) (netip.Prefix, error) {
	for _, w := range wanted {
		if p.fits(w) && !slices.ContainsFunc(taken, w.Overlaps) {
			return w, nil
		}
	}
	free := p.free(taken, d.candidates)
	if len(free) == 0 {
		return netip.Prefix{}, fmt.Errorf("%w: all subnets from %s/%d to %s/%d are leased",
			ErrNoSubnet, p.min, p.length, p.max, p.length)
	}
	return free[d.random(len(free))], nil
}

// free returns up to limit subnets, starting at min, that overlap none of taken, which is ordered
// by address. It skips taken ranges in one step, so a lease much wider than a subnet of the pool
// (an IPv6 /48 among /64s) costs no more than others.
func (p pool) free(taken []netip.Prefix, limit int) []netip.Prefix {
	var free []netip.Prefix
	at, ok := netip.PrefixFrom(p.min, p.length), true
	for ok && at.Addr().Compare(p.max) <= 0 && len(free) < limit {
		// Prefixes nest or are disjoint, so ordered prefixes below at cannot overlap later ones.
		for len(taken) > 0 && lastAddr(taken[0]).Less(at.Addr()) {
			taken = taken[1:]
		}
		if len(taken) == 0 || !taken[0].Overlaps(at) {
			free = append(free, at)
			at, ok = nextSubnet(at)
			continue
		}
		wider := at
		if taken[0].Bits() < at.Bits() {
			wider = taken[0].Masked()
		}
		next := lastAddr(wider).Next()
		at, ok = netip.PrefixFrom(next, p.length), next.IsValid()
	}
	return free
}
