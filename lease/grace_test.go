package lease

import (
	"slices"
	"testing"
	"time"
)

func TestRoster(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	a, b, c := held("10.5.1.0/24", "", "192.0.2.1", ""), held("10.5.2.0/24", "", "192.0.2.2", ""), held("10.5.3.0/24", "", "192.0.2.3", "")
	bOfC := held("10.5.2.0/24", "", "192.0.2.3", "")
	bElsewhere := held("10.5.9.0/24", "", "192.0.2.2", "")
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
		{"an ordinary removal is immediate", time.Minute, []step{{0, []Lease{a}, false, []Lease{a}}}},
		{"peers stay after a wipe, for a while", time.Minute, []step{
			{0, nil, true, []Lease{a, b, c}},
			{59 * time.Second, []Lease{c}, false, []Lease{a, b, c}},
			{time.Second, []Lease{c}, false, []Lease{c}},
		}},
		{"back is back: its next removal is an ordinary one", time.Minute, []step{
			{0, nil, true, []Lease{a, b, c}},
			{0, []Lease{b}, false, []Lease{a, b, c}},
			{0, nil, false, []Lease{a, c}},
		}},
		{"another node claims the subnet", time.Minute, []step{{0, nil, true, []Lease{a, b, c}}, {0, []Lease{bOfC}, false, []Lease{a, bOfC}}}},
		{"the peer claims another subnet", time.Minute, []step{{0, []Lease{bElsewhere}, true, []Lease{a, c, bElsewhere}}}},
		{"wiped twice: what is kept gains no time", time.Minute, []step{
			{0, []Lease{a}, true, []Lease{a, b, c}},
			{30 * time.Second, nil, true, []Lease{a, b, c}},
			{29 * time.Second, nil, false, []Lease{a, b, c}},
			{time.Second, nil, false, []Lease{a}},
			{30 * time.Second, nil, false, nil},
		}},
		{"no grace", -1, []step{{0, []Lease{a}, true, []Lease{a}}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r, at, all := roster{grace: test.grace}, now, []Lease{a, b, c}
			for i, s := range test.steps {
				at = at.Add(s.after)
				r.expire(at)
				before := slices.Clone(all)
				shown := all
				if s.reset {
					r.keep(all, at)
				}
				all, _ = r.merge(s.list)
				if !slices.EqualFunc(all, s.want, Lease.Equal) {
					t.Errorf("step %d: got %v, want %v", i, all, s.want)
				}
				if !slices.EqualFunc(shown, before, Lease.Equal) {
					t.Errorf("step %d changed a list that was shown before", i)
				}
			}
		})
	}
}
