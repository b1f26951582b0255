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

// newLease returns a lease for tests; "" leaves an address or subnet unset.
func newLease(subnet, subnet6, public, public6 string) Lease {
	return Lease{Subnet: prefix(subnet), Subnet6: prefix(subnet6),
		Attrs: Attrs{PublicIP: addr(public), PublicIPv6: addr(public6)}}
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
		{name: "first subnet skipped", network: v4, random: first, want: "10.5.1.0/24"},
		{name: "last subnet allocated", network: v4, random: last, want: "10.5.15.0/24"},
		{
			name: "own lease preferred to previous subnet", network: v4, previous: "10.5.7.0/24",
			existing: []Lease{newLease("10.5.2.0/24", "", "192.0.2.9", ""),
				newLease("10.5.3.0/24", "", "192.0.2.1", "")},
			random: first, want: "10.5.3.0/24", reuse: true, own: []int{1},
		},
		{
			name: "previous one of two own leases", network: v4, previous: "10.5.7.0/24",
			existing: []Lease{newLease("10.5.3.0/24", "", "192.0.2.1", ""),
				newLease("10.5.7.0/24", "", "192.0.2.1", "")},
			random: first, want: "10.5.7.0/24", reuse: true, own: []int{1, 0},
		},
		{
			name: "own lease outside network replaced", network: v4,
			existing: []Lease{newLease("10.9.3.0/24", "", "192.0.2.1", "")},
			random:   first, want: "10.5.1.0/24", own: []int{0},
		},
		{
			name: "fitting own lease preferred", network: v4, previous: "10.9.3.0/24",
			existing: []Lease{newLease("10.9.3.0/24", "", "192.0.2.1", ""),
				newLease("10.5.3.0/24", "", "192.0.2.1", "")},
			random: first, want: "10.5.3.0/24", reuse: true, own: []int{1, 0},
		},
		{name: "previous subnet", network: v4, previous: "10.5.7.0/24", random: first, want: "10.5.7.0/24"},
		{name: "previous subnet of other length", network: v4, previous: "10.5.7.0/25", random: first,
			want: "10.5.1.0/24"},
		{name: "previous subnet out of range", network: v4, previous: "10.4.1.0/24", random: first,
			want: "10.5.1.0/24"},
		{
			name: "previous subnet taken", network: v4, previous: "10.5.7.0/24",
			existing: []Lease{newLease("10.5.7.0/24", "", "192.0.2.9", "")}, random: first, want: "10.5.1.0/24",
		},
		{
			name: "previous subnet inside taken one", network: v4, previous: "10.5.7.0/24",
			existing: []Lease{newLease("10.5.6.0/23", "", "192.0.2.9", "")}, random: first, want: "10.5.1.0/24",
		},
		{
			name: "leases of any length skipped", network: v4,
			existing: []Lease{newLease("10.5.1.128/30", "", "192.0.2.9", ""),
				newLease("10.5.2.0/23", "", "192.0.2.8", ""), newLease("10.5.4.0/24", "", "", "")},
			random: first, want: "10.5.5.0/24",
		},
		{
			name: "two leases inside one subnet", network: v4,
			existing: []Lease{newLease("10.5.1.0/30", "", "192.0.2.9", ""),
				newLease("10.5.1.128/30", "", "192.0.2.8", "")},
			random: first, want: "10.5.2.0/24",
		},
		{name: "IPv6 only", network: v6, attrs: Attrs{PublicIPv6: addr("fd31::1")}, random: first,
			want6: "fc00:0:0:1::/64"},
		{
			name: "IPv6-only nodes distinguished by IPv6 address", network: v6,
			attrs: Attrs{PublicIPv6: addr("fd31::1")},
			existing: []Lease{newLease("", "fc00:0:0:1::/64", "", "fd31::2"),
				newLease("", "fc00:0:0:2::/64", "", "fd31::1")},
			random: first, want6: "fc00:0:0:2::/64", reuse: true, own: []int{1},
		},
		{
			name: "IPv6 enabled with IPv4 leases present", network: dual,
			existing: []Lease{newLease("10.5.1.0/24", "", "192.0.2.9", "")}, random: first, want: "10.5.2.0/24",
			want6: "fc00:0:0:1::/64",
		},
		{
			name: "own IPv4 subnet kept when IPv6 is enabled", network: dual,
			existing: []Lease{newLease("10.5.3.0/24", "", "192.0.2.1", "")}, random: first,
			want: "10.5.3.0/24", want6: "fc00:0:0:1::/64", own: []int{0},
		},
		{
			name: "own IPv4 subnet kept when IPv6 is disabled", network: v4,
			existing: []Lease{newLease("10.5.3.0/24", "fc00:0:0:1::/64", "192.0.2.1", "fd31::1")}, random: first,
			want: "10.5.3.0/24", own: []int{0},
		},
		{
			name: "previous subnet of one family taken", network: dual, previous: "10.5.7.0/24",
			previous6: "fc00:0:0:7::/64",
			existing:  []Lease{newLease("10.5.1.0/24", "fc00:0:0:7::/64", "192.0.2.9", "fd31::9")}, random: first,
			want: "10.5.7.0/24", want6: "fc00:0:0:1::/64",
		},
		{
			name: "lease much wider than a subnet skipped", network: mustParseNetwork(t,
				`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/8","IPv6SubnetLen":126}`),
			attrs:    Attrs{PublicIPv6: addr("fd31::1")},
			existing: []Lease{newLease("", "fc00::/16", "", "fd31::2")}, random: first, want6: "fc01::/126",
		},
		{
			name: "network at end of address space", network: mustParseNetwork(t, `{"Network":"255.255.255.240/28"}`),
			existing: []Lease{newLease("255.255.255.244/30", "", "", ""), newLease("255.255.255.248/30", "", "", "")},
			random:   last,
			want:     "255.255.255.252/30",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := Request{Network: test.network, Attrs: test.attrs, Previous: prefix(test.previous),
				Previous6: prefix(test.previous6)}
			if !r.Attrs.Public().IsValid() {
				r.Attrs.PublicIP = addr("192.0.2.1")
			}
			got, err := Choose(r, test.existing, test.random)
			if err != nil {
				t.Fatal(err)
			}
			if got.Subnet != prefix(test.want) || got.Subnet6 != prefix(test.want6) || got.Reuse != test.reuse ||
				!slices.Equal(got.Own, test.own) {
				t.Errorf("got %+v, want %s %s reuse %v own %v", got, test.want, test.want6, test.reuse, test.own)
			}
		})
	}
}

func TestChooseFullPool(t *testing.T) {
	network := mustParseNetwork(t, `{"Network":"10.5.0.0/28"}`)
	existing := []Lease{
		newLease("10.5.0.4/30", "", "192.0.2.7", ""), newLease("10.5.0.8/30", "", "192.0.2.8", ""),
		newLease("10.5.0.12/30", "", "192.0.2.9", ""),
	}
	r := Request{Network: network, Attrs: Attrs{PublicIP: addr("192.0.2.1")}, Previous: prefix("10.5.0.8/30")}
	_, err := Choose(r, existing, first)
	if !errors.Is(err, ErrNoSubnet) {
		t.Errorf("got %v", err)
	}
	r.Attrs.PublicIP = addr("192.0.2.8")
	if c, err := Choose(r, existing, first); err != nil || !c.Reuse {
		t.Errorf("node with a lease in a full pool: got %+v, %v", c, err)
	}
}

func TestChooseCandidates(t *testing.T) {
	r := Request{Network: mustParseNetwork(t, `{"Network":"10.0.0.0/8"}`), Attrs: Attrs{PublicIP: addr("192.0.2.1")}}
	var limit int
	if _, err := Choose(r, nil, func(n int) int { limit = n; return 0 }); err != nil || limit != Candidates {
		t.Errorf("random called with %d, want %d; error %v", limit, Candidates, err)
	}
}

// slowFree is the reference implementation of pool.free.
func slowFree(p pool, taken []netip.Prefix, limit int) []netip.Prefix {
	var free []netip.Prefix
	s, ok := netip.PrefixFrom(p.min, p.length), true
	for ; ok && s.Addr().Compare(p.max) <= 0 && len(free) < limit; s, ok = nextSubnet(s) {
		if !slices.ContainsFunc(taken, s.Overlaps) {
			free = append(free, s)
		}
	}
	return free
}

func TestPoolFreeReference(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	networks := []Network{
		mustParseNetwork(t, `{"Network":"10.5.0.0/20"}`),
		mustParseNetwork(t, `{"Network":"10.5.0.0/22","SubnetLen":29,"SubnetMax":"10.5.3.0"}`),
		mustParseNetwork(t, `{"Network":"255.255.255.0/24"}`),
		mustParseNetwork(t, `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/56"}`),
		mustParseNetwork(t, `{"EnableIPv4":false,"EnableIPv6":true,`+
			`"IPv6Network":"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120","IPv6SubnetLen":126}`),
	}
	for range 2000 {
		p := networks[rng.IntN(len(networks))].pools()[0]
		taken := randomTaken(rng, p)
		limit := 1 + rng.IntN(2*Candidates)
		if got, want := p.free(taken, limit), slowFree(p, taken, limit); !slices.Equal(got, want) {
			t.Fatalf("pool %+v taken %v limit %d:\n got %v\nwant %v", p, taken, limit, got, want)
		}
	}
}

// randomTaken returns ordered prefixes in and around the network, wider and narrower than its
// subnets.
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
		bits := min(p.length-4+rng.IntN(8), p.family.bits)
		taken = append(taken, netip.PrefixFrom(a, bits).Masked())
	}
	slices.SortFunc(taken, netip.Prefix.Compare)
	return taken
}

func BenchmarkChooseTenThousandLeases(b *testing.B) {
	network := mustParseNetwork(b, `{"Network":"10.0.0.0/8"}`)
	var existing []Lease
	for i := range 10000 {
		a := netip.AddrFrom4([4]byte{10, byte(i / 200), byte(i % 200), 0})
		existing = append(existing, Lease{Subnet: netip.PrefixFrom(a, 24)})
	}
	r := Request{Network: network, Attrs: Attrs{PublicIP: addr("192.0.2.1")}}
	for b.Loop() {
		if _, err := Choose(r, existing, last); err != nil {
			b.Fatal(err)
		}
	}
}
