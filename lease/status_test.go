package lease

import (
	"testing"
	"time"
)

func TestFateOf(t *testing.T) {
	self := held("10.5.1.0/24", "", "192.0.2.1", "")
	want := Attrs{PublicIP: addr("192.0.2.2")}
	tests := []struct {
		name string
		list []Lease
		want fate
	}{
		{"an empty list", nil, missing},
		{"others only", []Lease{held("10.5.2.0/24", "", "192.0.2.1", "")}, missing},
		{"as it was", []Lease{held("10.5.1.0/24", "", "192.0.2.1", "")}, ours},
		{"as it is to be", []Lease{held("10.5.1.0/24", "", "192.0.2.2", "")}, ours},
		{"another node's", []Lease{held("10.5.1.0/24", "", "192.0.2.3", "")}, taken},
		{"of nobody", []Lease{held("10.5.1.0/24", "", "", "")}, taken},
		{"with another family", []Lease{held("10.5.1.0/24", "fd10::/64", "192.0.2.1", "")}, missing},
	}
	for _, test := range tests {
		if got, _ := fateOf(self, want, test.list); got != test.want {
			t.Errorf("%s: got %d, want %d", test.name, got, test.want)
		}
	}
}

func TestWiped(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	state := func(expires time.Time, holding bool) State {
		return State{Self: Lease{Expires: expires}, Held: holding, Revision: 10}
	}
	later, earlier := now.Add(time.Hour), now.Add(-time.Hour)
	tests := []struct {
		name     string
		before   State
		revision int64
		fate     fate
		want     bool
	}{
		{"the revision goes on", state(later, true), 11, ours, false},
		{"the revision stays", state(later, true), 10, ours, false},
		{"the revision goes back", state(later, true), 9, ours, true},
		{"the revision has caught up, our lease is gone", state(later, true), 11, missing, true},
		{"our reservation is gone", state(time.Time{}, true), 11, missing, true},
		{"our lease had expired", state(earlier, true), 11, missing, false},
		{"we held none", state(later, false), 11, missing, false},
	}
	for _, test := range tests {
		if got := wiped(test.before, test.revision, test.fate, now); got != test.want {
			t.Errorf("%s: got %v", test.name, got)
		}
	}
}
