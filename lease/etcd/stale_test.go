package etcd

import "testing"

func TestStaleDetector(t *testing.T) {
	type step struct {
		local, server fingerprint
		stale         bool
	}
	at := func(revision, count, newest int64) fingerprint {
		return fingerprint{cluster: 7, revision: revision, count: count, newest: newest}
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"up to date", []step{{at(10, 3, 9), at(10, 3, 9), false}}},
		{"other keys written",
			[]step{{at(10, 3, 9), at(500, 3, 9), false}, {at(10, 3, 9), at(900, 3, 9), false}}},
		{"another cluster", []step{{at(10, 3, 9), fingerprint{cluster: 8, revision: 10, count: 3, newest: 9}, true}}},
		{"wiped", []step{{at(10, 3, 9), at(2, 0, 0), true}}},
		{"recent data restored", []step{{at(10, 3, 9), at(9, 3, 9), true}}},
		{"different at the same revision", []step{{at(10, 3, 9), at(10, 2, 9), true}}},
		{"change not yet delivered", []step{{at(10, 3, 9), at(12, 4, 12), false},
			{at(12, 4, 12), at(12, 4, 12), false}}},
		{"removal not yet delivered", []step{{at(10, 3, 9), at(12, 2, 9), false}, {at(12, 2, 9), at(12, 2, 9), false}}},
		{"stream silent", []step{{at(10, 3, 9), at(12, 4, 12), false}, {at(10, 3, 9), at(12, 4, 12), true}}},
		{"removal missed", []step{{at(10, 3, 9), at(12, 2, 9), false}, {at(10, 3, 9), at(13, 2, 9), true}}},
		{"another undelivered change at each check", []step{
			{at(10, 3, 9), at(12, 4, 12), false}, {at(12, 4, 12), at(13, 5, 13), false},
			{at(13, 5, 13), at(13, 5, 13), false},
			{at(13, 5, 13), at(15, 6, 15), false},
		}},
		{"stream never catches up", []step{
			{at(10, 3, 9), at(12, 4, 12), false}, {at(11, 3, 11), at(13, 5, 13), false},
			{at(12, 3, 12), at(14, 5, 14), true},
		}},
		{"wiped, revision caught up",
			[]step{{at(10, 3, 9), at(11, 1, 5), false}, {at(10, 3, 9), at(11, 1, 5), true}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var d staleDetector
			for i, s := range test.steps {
				if err := d.check(s.local, s.server); (err != nil) != s.stale {
					t.Errorf("step %d: got %v", i, err)
				}
			}
		})
	}
}
