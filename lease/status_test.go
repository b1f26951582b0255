package lease

import (
	"testing"
	"time"
)

func TestStatusIn(t *testing.T) {
	self := newLease("10.5.1.0/24", "", "192.0.2.1", "")
	want := Attrs{PublicIP: addr("192.0.2.2")}
	tests := []struct {
		name string
		list []Lease
		want leaseStatus
	}{
		{"empty list", nil, leaseMissing},
		{"other leases only", []Lease{newLease("10.5.2.0/24", "", "192.0.2.1", "")}, leaseMissing},
		{"old attributes", []Lease{newLease("10.5.1.0/24", "", "192.0.2.1", "")}, leaseOwn},
		{"published attributes", []Lease{newLease("10.5.1.0/24", "", "192.0.2.2", "")}, leaseOwn},
		{"another node", []Lease{newLease("10.5.1.0/24", "", "192.0.2.3", "")}, leaseTaken},
		{"no address", []Lease{newLease("10.5.1.0/24", "", "", "")}, leaseTaken},
		{"additional family", []Lease{newLease("10.5.1.0/24", "fd10::/64", "192.0.2.1", "")}, leaseMissing},
	}
	for _, test := range tests {
		if got, _ := statusIn(NewSet(test.list...), self, want); got != test.want {
			t.Errorf("%s: got %d, want %d", test.name, got, test.want)
		}
	}
}

func TestStoreLostData(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	state := func(expires time.Time, holding bool) State {
		return State{Self: Lease{Expires: expires}, Held: holding, Revision: 10}
	}
	later, earlier := now.Add(time.Hour), now.Add(-time.Hour)
	tests := []struct {
		name     string
		before   State
		revision int64
		status   leaseStatus
		want     bool
	}{
		{"revision grows", state(later, true), 11, leaseOwn, false},
		{"revision unchanged", state(later, true), 10, leaseOwn, false},
		{"revision decreases", state(later, true), 9, leaseOwn, true},
		{"revision caught up, own lease missing", state(later, true), 11, leaseMissing, true},
		{"own reservation missing", state(time.Time{}, true), 11, leaseMissing, true},
		{"own lease expired", state(earlier, true), 11, leaseMissing, false},
		{"no lease held", state(later, false), 11, leaseMissing, false},
	}
	for _, test := range tests {
		if got := storeLostData(test.before, test.revision, test.status, now); got != test.want {
			t.Errorf("%s: got %v", test.name, got)
		}
	}
}
