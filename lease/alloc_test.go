package lease

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

// held makes a lease for tests; "" is no address and no subnet.
func held(subnet, subnet6, public, public6 string) Lease {
	return Lease{Subnet: prefix(subnet), Subnet6: prefix(subnet6), Attrs: Attrs{PublicIP: addr(public), PublicIPv6: addr(public6)}}
}

func first(int) int { return 0 }

func last(n int) int { return n - 1 }

func TestChoose(t *testing.T) {
	v4 := mustParseNetwork(t, `{"Network":"10.5.0.0/20"}`)
	v6 := mustParseNetwork(t, `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48"}`)
	dual := mustParseNetwork(t, `{"Network":"10.5.0.0/20","EnableIPv6":true,"IPv6Network":"fc00::/48"}`)
	tests := []struct {
		name                string
		network             Network
		attrs               Attrs
		previous, previous6 string
		existing            []Lease
		random              func(int) int
		want, want6         string
		reuse               bool
		own                 []int
	}{
		{name: "the first subnet is skipped", network: v4, random: first, want: "10.5.1.0/24"},
		{name: "the last subnet is given", network: v4, random: last, want: "10.5.15.0/24"},
		{
			name: "own lease by public IP goes before the previous subnet", network: v4, previous: "10.5.7.0/24",
			existing: []Lease{held("10.5.2.0/24", "", "192.0.2.9", ""), held("10.5.3.0/24", "", "192.0.2.1", "")},
			random:   first, want: "10.5.3.0/24", reuse: true, own: []int{1},
		},
		{
			name: "of two own leases the previous one", network: v4, previous: "10.5.7.0/24",
			existing: []Lease{held("10.5.3.0/24", "", "192.0.2.1", ""), held("10.5.7.0/24", "", "192.0.2.1", "")},
			random:   first, want: "10.5.7.0/24", reuse: true, own: []int{1, 0},
		},
		{
			name: "an own lease outside the network is replaced", network: v4,
			existing: []Lease{held("10.9.3.0/24", "", "192.0.2.1", "")},
			random:   first, want: "10.5.1.0/24", own: []int{0},
		},
		{
			name: "an own lease that fits goes before one that does not", network: v4, previous: "10.9.3.0/24",
			existing: []Lease{held("10.9.3.0/24", "", "192.0.2.1", ""), held("10.5.3.0/24", "", "192.0.2.1", "")},
			random:   first, want: "10.5.3.0/24", reuse: true, own: []int{1, 0},
		},
		{name: "the previous subnet", network: v4, previous: "10.5.7.0/24", random: first, want: "10.5.7.0/24"},
		{name: "the previous subnet has another length", network: v4, previous: "10.5.7.0/25", random: first, want: "10.5.1.0/24"},
		{name: "the previous subnet is out of range", network: v4, previous: "10.4.1.0/24", random: first, want: "10.5.1.0/24"},
		{
			name: "the previous subnet is another's", network: v4, previous: "10.5.7.0/24",
			existing: []Lease{held("10.5.7.0/24", "", "192.0.2.9", "")}, random: first, want: "10.5.1.0/24",
		},
		{
			name: "the previous subnet is within another's", network: v4, previous: "10.5.7.0/24",
			existing: []Lease{held("10.5.6.0/23", "", "192.0.2.9", "")}, random: first, want: "10.5.1.0/24",
		},
		{
			name: "leases of any length are skipped", network: v4,
			existing: []Lease{held("10.5.1.128/30", "", "192.0.2.9", ""), held("10.5.2.0/23", "", "192.0.2.8", ""), held("10.5.4.0/24", "", "", "")},
			random:   first, want: "10.5.5.0/24",
		},
		{
			name: "two leases within one subnet", network: v4,
			existing: []Lease{held("10.5.1.0/30", "", "192.0.2.9", ""), held("10.5.1.128/30", "", "192.0.2.8", "")},
			random:   first, want: "10.5.2.0/24",
		},
		{name: "IPv6 only", network: v6, attrs: Attrs{PublicIPv6: addr("fd31::1")}, random: first, want6: "fc00:0:0:1::/64"},
		{
			name: "IPv6-only nodes are told apart by their IPv6 address", network: v6, attrs: Attrs{PublicIPv6: addr("fd31::1")},
			existing: []Lease{held("", "fc00:0:0:1::/64", "", "fd31::2"), held("", "fc00:0:0:2::/64", "", "fd31::1")},
			random:   first, want6: "fc00:0:0:2::/64", reuse: true, own: []int{1},
		},
		{
			name: "IPv6 is enabled while there are IPv4 leases", network: dual,
			existing: []Lease{held("10.5.1.0/24", "", "192.0.2.9", "")}, random: first, want: "10.5.2.0/24", want6: "fc00:0:0:1::/64",
		},
		{
			name: "our own IPv4 subnet stays when IPv6 is enabled", network: dual,
			existing: []Lease{held("10.5.3.0/24", "", "192.0.2.1", "")}, random: first,
			want: "10.5.3.0/24", want6: "fc00:0:0:1::/64", own: []int{0},
		},
		{
			name: "our own IPv4 subnet stays when IPv6 is disabled", network: v4,
			existing: []Lease{held("10.5.3.0/24", "fc00:0:0:1::/64", "192.0.2.1", "fd31::1")}, random: first,
			want: "10.5.3.0/24", own: []int{0},
		},
		{
			name: "a family whose previous subnet is taken gets another one", network: dual, previous: "10.5.7.0/24", previous6: "fc00:0:0:7::/64",
			existing: []Lease{held("10.5.1.0/24", "fc00:0:0:7::/64", "192.0.2.9", "fd31::9")}, random: first,
			want: "10.5.7.0/24", want6: "fc00:0:0:1::/64",
		},
		{
			name: "a lease much wider than a subnet is jumped over", network: mustParseNetwork(t,
				`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/8","IPv6SubnetLen":126}`),
			attrs:    Attrs{PublicIPv6: addr("fd31::1")},
			existing: []Lease{held("", "fc00::/16", "", "fd31::2")}, random: first, want6: "fc01::/126",
		},
		{
			name: "a network at the end of the address space", network: mustParseNetwork(t, `{"Network":"255.255.255.240/28"}`),
			existing: []Lease{held("255.255.255.244/30", "", "", ""), held("255.255.255.248/30", "", "", "")}, random: last,
			want: "255.255.255.252/30",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := Request{Network: test.network, Attrs: test.attrs, Previous: prefix(test.previous), Previous6: prefix(test.previous6)}
			if !r.Attrs.Public().IsValid() {
				r.Attrs.PublicIP = addr("192.0.2.1")
			}
			got, err := Choose(r, test.existing, test.random)
			if err != nil {
				t.Fatal(err)
			}
			if got.Subnet != prefix(test.want) || got.Subnet6 != prefix(test.want6) || got.Reuse != test.reuse || !slices.Equal(got.Own, test.own) {
				t.Errorf("got %+v, want %s %s reuse %v own %v", got, test.want, test.want6, test.reuse, test.own)
			}
		})
	}
}

func TestChooseFullPool(t *testing.T) {
	network := mustParseNetwork(t, `{"Network":"10.5.0.0/28"}`)
	existing := []Lease{
		held("10.5.0.4/30", "", "192.0.2.7", ""), held("10.5.0.8/30", "", "192.0.2.8", ""), held("10.5.0.12/30", "", "192.0.2.9", ""),
	}
	r := Request{Network: network, Attrs: Attrs{PublicIP: addr("192.0.2.1")}, Previous: prefix("10.5.0.8/30")}
	_, err := Choose(r, existing, first)
	if !errors.Is(err, ErrNoSubnet) {
		t.Errorf("got %v", err)
	}
	r.Attrs.PublicIP = addr("192.0.2.8")
	if c, err := Choose(r, existing, first); err != nil || !c.Reuse {
		t.Errorf("a node that has a lease in a full pool: %+v, %v", c, err)
	}
}

func TestChooseDrawsFromAHundred(t *testing.T) {
	r := Request{Network: mustParseNetwork(t, `{"Network":"10.0.0.0/8"}`), Attrs: Attrs{PublicIP: addr("192.0.2.1")}}
	var asked int
	if _, err := Choose(r, nil, func(n int) int { asked = n; return 0 }); err != nil || asked != candidates {
		t.Errorf("drew from %d, %v", asked, err)
	}
}

// slowFree is the obvious version of pool.free.
func slowFree(p pool, taken []netip.Prefix, limit int) []netip.Prefix {
	var free []netip.Prefix
	for s, ok := netip.PrefixFrom(p.min, p.length), true; ok && s.Addr().Compare(p.max) <= 0 && len(free) < limit; s, ok = nextSubnet(s) {
		if !slices.ContainsFunc(taken, s.Overlaps) {
			free = append(free, s)
		}
	}
	return free
}

func TestFreeAgainstItsSlowTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	networks := []Network{
		mustParseNetwork(t, `{"Network":"10.5.0.0/20"}`),
		mustParseNetwork(t, `{"Network":"10.5.0.0/22","SubnetLen":29,"SubnetMax":"10.5.3.0"}`),
		mustParseNetwork(t, `{"Network":"255.255.255.0/24"}`),
		mustParseNetwork(t, `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/56"}`),
		mustParseNetwork(t, `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120","IPv6SubnetLen":126}`),
	}
	for range 2000 {
		p := networks[rng.IntN(len(networks))].pools()[0]
		taken := randomTaken(rng, p)
		limit := 1 + rng.IntN(2*candidates)
		if got, want := p.free(taken, limit), slowFree(p, taken, limit); !slices.Equal(got, want) {
			t.Fatalf("pool %+v taken %v limit %d:\n got %v\nwant %v", p, taken, limit, got, want)
		}
	}
}

// randomTaken makes leases in and around the network, wider and narrower than its subnets, in order.
func randomTaken(rng *rand.Rand, p pool) []netip.Prefix {
	var taken []netip.Prefix
	for range rng.IntN(40) {
		bytes := p.network.Addr().AsSlice()
		for i := max(p.network.Bits()-4, 0); i < len(bytes)*8; i++ {
			if rng.IntN(2) == 0 {
				bytes[i/8] ^= 0x80 >> (i % 8)
			}
		}
		a, _ := netip.AddrFromSlice(bytes)
		bits := min(p.length-4+rng.IntN(8), p.keys.bits)
		taken = append(taken, netip.PrefixFrom(a, bits).Masked())
	}
	slices.SortFunc(taken, netip.Prefix.Compare)
	return taken
}

func BenchmarkChooseTenThousandLeases(b *testing.B) {
	network := mustParseNetwork(b, `{"Network":"10.0.0.0/8"}`)
	var existing []Lease
	for i := range 10000 {
		existing = append(existing, Lease{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / 200), byte(i % 200), 0}), 24)})
	}
	r := Request{Network: network, Attrs: Attrs{PublicIP: addr("192.0.2.1")}}
	for b.Loop() {
		if _, err := Choose(r, existing, last); err != nil {
			b.Fatal(err)
		}
	}
}
