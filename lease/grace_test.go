package lease

import (
	"slices"
	"testing"
	"time"
)

func TestGracePeers(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	a, b, c := newLease("10.5.1.0/24", "", "192.0.2.1", ""), newLease("10.5.2.0/24", "", "192.0.2.2", ""),
		newLease("10.5.3.0/24", "", "192.0.2.3", "")
	bOfC := newLease("10.5.2.0/24", "", "192.0.2.3", "")
	bElsewhere := newLease("10.5.9.0/24", "", "192.0.2.2", "")
	type step struct {
		after time.Duration // since the last step
		list  []Lease
		reset bool
		want  []Lease
	}
	tests := []struct {
		name  string
		grace time.Duration
		steps []step
	}{
		{"normal removal is immediate", time.Minute, []step{{0, []Lease{a}, false, []Lease{a}}}},
		{"peers kept for the grace period after a wipe", time.Minute, []step{
			{0, nil, true, []Lease{a, b, c}},
			{59 * time.Second, []Lease{c}, false, []Lease{a, b, c}},
			{time.Second, []Lease{c}, false, []Lease{c}},
		}},
		{"normal removal after a peer claimed again", time.Minute, []step{
			{0, nil, true, []Lease{a, b, c}},
			{0, []Lease{b}, false, []Lease{a, b, c}},
			{0, nil, false, []Lease{a, c}},
		}},
		{"subnet claimed by another node", time.Minute,
			[]step{{0, nil, true, []Lease{a, b, c}}, {0, []Lease{bOfC}, false, []Lease{a, bOfC}}}},
		{"peer claims another subnet", time.Minute, []step{{0, []Lease{bElsewhere}, true, []Lease{a, c, bElsewhere}}}},
		{"second wipe does not extend the grace period", time.Minute, []step{
			{0, []Lease{a}, true, []Lease{a, b, c}},
			{30 * time.Second, nil, true, []Lease{a, b, c}},
			{29 * time.Second, nil, false, []Lease{a, b, c}},
			{time.Second, nil, false, []Lease{a}},
			{30 * time.Second, nil, false, nil},
		}},
		{"no grace period", -1, []step{{0, []Lease{a}, true, []Lease{a}}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			g, at, all := gracePeers{grace: test.grace}, now, NewSet(a, b, c)
			for i, s := range test.steps {
				at = at.Add(s.after)
				g.expire(at)
				if s.reset {
					g.keep(all, at)
				}
				all, _ = g.merge(NewSet(s.list...))
				if got := List(all); !slices.EqualFunc(got, s.want, Lease.Equal) {
					t.Errorf("step %d: got %v, want %v", i, got, s.want)
				}
			}
		})
	}
}
