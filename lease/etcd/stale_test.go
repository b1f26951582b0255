package etcd

import "testing"

func TestGuard(t *testing.T) {
	type step struct {
		held, server fingerprint
		doubt        bool
	}
	at := func(revision, count, newest int64) fingerprint {
		return fingerprint{cluster: 7, revision: revision, count: count, newest: newest}
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"all is well", []step{{at(10, 3, 9), at(10, 3, 9), false}}},
		{"etcd is ahead by keys that are not ours", []step{{at(10, 3, 9), at(500, 3, 9), false}, {at(10, 3, 9), at(900, 3, 9), false}}},
		{"another cluster", []step{{at(10, 3, 9), fingerprint{cluster: 8, revision: 10, count: 3, newest: 9}, true}}},
		{"wiped", []step{{at(10, 3, 9), at(2, 0, 0), true}}},
		{"restored to a little while ago", []step{{at(10, 3, 9), at(9, 3, 9), true}}},
		{"differs at the same revision", []step{{at(10, 3, 9), at(10, 2, 9), true}}},
		{"a change on its way", []step{{at(10, 3, 9), at(12, 4, 12), false}, {at(12, 4, 12), at(12, 4, 12), false}}},
		{"a removal on its way", []step{{at(10, 3, 9), at(12, 2, 9), false}, {at(12, 2, 9), at(12, 2, 9), false}}},
		{"the stream is silent", []step{{at(10, 3, 9), at(12, 4, 12), false}, {at(10, 3, 9), at(12, 4, 12), true}}},
		{"the stream hides a removal", []step{{at(10, 3, 9), at(12, 2, 9), false}, {at(10, 3, 9), at(13, 2, 9), true}}},
		{"busy: each check sees another change on its way", []step{
			{at(10, 3, 9), at(12, 4, 12), false}, {at(12, 4, 12), at(13, 5, 13), false}, {at(13, 5, 13), at(13, 5, 13), false},
			{at(13, 5, 13), at(15, 6, 15), false},
		}},
		{"never right, however much the stream tells", []step{
			{at(10, 3, 9), at(12, 4, 12), false}, {at(11, 3, 11), at(13, 5, 13), false}, {at(12, 3, 12), at(14, 5, 14), true},
		}},
		{"wiped, and the revision has caught up", []step{{at(10, 3, 9), at(11, 1, 5), false}, {at(10, 3, 9), at(11, 1, 5), true}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var g guard
			for i, s := range test.steps {
				if err := g.judge(s.held, s.server); (err != nil) != s.doubt {
					t.Errorf("step %d: got %v", i, err)
				}
			}
		})
	}
}
