package ordered

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type element struct{ key, value int }

func (e *element) Order(o *element) int { return cmp.Compare(e.key, o.key) }

// slowSet is the reference implementation of Set: a map that is copied as a whole.
type slowSet map[int]*element

func (s slowSet) sorted() []*element {
	return slices.SortedFunc(maps.Values(s), (*element).Order)
}

func (s slowSet) diff(after slowSet) [][2]*element {
	keys := maps.Clone(s)
	maps.Copy(keys, after)
	var out [][2]*element
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if s[k] != after[k] {
			out = append(out, [2]*element{s[k], after[k]})
		}
	}
	return out
}

func (s Set[E]) check(t *testing.T) {
	t.Helper()
	for _, c := range s.chunks {
		if len(c) == 0 || len(c) > maxChunk {
			t.Fatalf("chunk of %d elements", len(c))
		}
	}
}

func compareSets(t *testing.T, rng *rand.Rand, s Set[*element], slow slowSet, keys int) {
	t.Helper()
	s.check(t)
	sorted := slow.sorted()
	if got := slices.Collect(s.All()); !slices.Equal(got, sorted) || s.Len() != len(sorted) {
		t.Fatalf("%d elements of length %d, want %d", len(got), s.Len(), len(sorted))
	}
	for key := -1; key <= keys; key++ {
		if got, ok := s.Get(&element{key: key}); ok != (slow[key] != nil) || got != slow[key] {
			t.Fatalf("Get(%d) = %v %t", key, got, ok)
		}
	}
	for range 20 {
		key := rng.IntN(keys+2) - 1
		first := slices.IndexFunc(sorted, func(e *element) bool { return e.key >= key })
		got := slices.Collect(s.From(&element{key: key}))
		if first < 0 && len(got) != 0 || first >= 0 && !slices.Equal(got, sorted[first:]) {
			t.Fatalf("From(%d) returns %d elements", key, len(got))
		}
	}
}

func diffOf(a, b Set[*element]) (out [][2]*element) {
	for x, y := range Diff(a, b) {
		out = append(out, [2]*element{x, y})
	}
	return out
}

// churn applies one random edit. Few keys of many make long runs of removals and additions.
func churn(rng *rand.Rand, s Set[*element], slow slowSet, keys int) (Set[*element], slowSet) {
	slow = maps.Clone(slow)
	var remove, put []*element
	for range rng.IntN(1 + rng.IntN(keys)) {
		k := rng.IntN(keys)
		remove = append(remove, &element{key: k})
		delete(slow, k)
	}
	for range rng.IntN(1 + rng.IntN(keys)) {
		e := &element{rng.IntN(keys), rng.Int()}
		put = append(put, e)
		slow[e.key] = e
	}
	return s.With(remove, put), slow
}

func TestSetReference(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 1))
		keys := 1 + rng.IntN(1500)
		var s Set[*element]
		slow := slowSet{}
		for range 20 {
			before, slowBefore := s, slow
			s, slow = churn(rng, s, slow, keys)
			compareSets(t, rng, s, slow, keys)
			compareSets(t, rng, before, slowBefore, keys) // unchanged by the edit
			if got, want := diffOf(before, s), slowBefore.diff(slow); !slices.Equal(got, want) {
				t.Fatalf("seed %d: %d differences, want %d", seed, len(got), len(want))
			}
			rebuilt := New(slow.sorted())
			if got := diffOf(rebuilt, s); len(got) != 0 {
				t.Fatalf("seed %d: %d differences from the same elements", seed, len(got))
			}
		}
	}
}

func TestNewDuplicates(t *testing.T) {
	s := New([]*element{{2, 1}, {1, 2}, {2, 3}})
	if got, _ := s.Get(&element{key: 2}); s.Len() != 2 || got.value != 3 {
		t.Errorf("%d elements, key 2 has value %d", s.Len(), got.value)
	}
}

// TestDiffCost checks that a comparison skips shared chunks: it orders elements of the changed
// chunk only.
func TestDiffCost(t *testing.T) {
	var all []*counted
	compared := 0
	for i := range 10_000 {
		all = append(all, &counted{i, &compared})
	}
	s := New(all)
	after := s.With(nil, []*counted{{5000, &compared}})
	compared = 0
	for range Diff(s, after) {
	}
	if compared > 2*maxChunk {
		t.Errorf("%d comparisons for one change", compared)
	}
}

type counted struct {
	key      int
	compared *int
}

func (c *counted) Order(o *counted) int {
	*c.compared++
	return cmp.Compare(c.key, o.key)
}

func BenchmarkWith(b *testing.B) {
	var all []*element
	for i := range 10_000 {
		all = append(all, &element{key: i})
	}
	s := New(all)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		e := []*element{{key: i % 10_000}}
		for range Diff(s, s.With(e, e)) {
		}
	}
}

// Both orders agree for prefixes as leases have them.
func TestComparePrefixes(t *testing.T) {
	prefixes := []netip.Prefix{{}}
	for _, s := range []string{"0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.1.0/24", "192.0.2.1/32",
		"::/0", "2001:db8::/64", "2001:db8::/65", "fd00::/8"} {
		prefixes = append(prefixes, netip.MustParsePrefix(s))
	}
	for _, a := range prefixes {
		for _, b := range prefixes {
			if got, want := ComparePrefixes(a, b), a.Compare(b); got != want {
				t.Errorf("%v, %v: got %d, want %d", a, b, got, want)
			}
		}
	}
	a, b := prefixes[0], prefixes[3]
	if n := testing.AllocsPerRun(100, func() { ComparePrefixes(a, b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
