package etcd

import (
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestApplyHeaderAheadOfEvents(t *testing.T) {
	ks := &keyspace{subnets: "/s/", revision: 3}
	ks.load(nil)
	kv := &mvccpb.KeyValue{Key: []byte("/s/10.5.1.0-24"), Value: []byte(`{}`), ModRevision: 5}
	put := &clientv3.Event{Type: mvccpb.PUT, Kv: kv}
	ks.apply(clientv3.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: 9}, Events: []*clientv3.Event{put}})
	if ks.revision != 5 {
		t.Errorf("revision %d after an event of 5", ks.revision)
	}
	if ks.apply(clientv3.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: 9}}); ks.revision != 9 {
		t.Errorf("revision %d after a progress notification of 9", ks.revision)
	}
}

func TestApply(t *testing.T) {
	put := func(key, value string) *clientv3.Event {
		return &clientv3.Event{Type: mvccpb.PUT,
			Kv: &mvccpb.KeyValue{Key: []byte("/s/" + key), Value: []byte(value), ModRevision: 5}}
	}
	del := func(key string) *clientv3.Event {
		return &clientv3.Event{Type: mvccpb.DELETE, Kv: &mvccpb.KeyValue{Key: []byte("/s/" + key), ModRevision: 5}}
	}
	tests := []struct {
		name   string
		event  *clientv3.Event
		change bool
		left   int
	}{
		{"new", put("10.5.2.0-24", `{}`), true, 2},
		{"changed", put("10.5.1.0-24", `{"PublicIP":"192.0.2.9"}`), true, 1},
		{"renewed", put("10.5.1.0-24", `{"PublicIP":"192.0.2.1"}`), false, 1},
		{"became unreadable", put("10.5.1.0-24", `x`), true, 0},
		{"new and unreadable", put("foo", `{}`), false, 1},
		{"deleted", del("10.5.1.0-24"), true, 0},
		{"deleted unknown key", del("10.5.2.0-24"), false, 1},
		{"deleted unreadable key", del("bad"), false, 1},
		{"became readable", put("10.5.9.0-24", `{}`), true, 2},
	}
	for _, test := range tests {
		ks := &keyspace{subnets: "/s/", revision: 3}
		ks.load([]*mvccpb.KeyValue{
			{Key: []byte("/s/10.5.1.0-24"), Value: []byte(`{"PublicIP":"192.0.2.1"}`), ModRevision: 2},
			{Key: []byte("/s/10.5.9.0-24"), Value: []byte(`x`), ModRevision: 2},
			{Key: []byte("/s/bad"), Value: []byte(`{}`), ModRevision: 2},
		})
		r := clientv3.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: 5},
			Events: []*clientv3.Event{test.event}}
		if got := ks.apply(r); got != test.change || ks.snapshot().Leases.Len() != test.left ||
			ks.snapshot().Revision != 5 {
			t.Errorf("%s: change %v, list %+v", test.name, got, ks.snapshot())
		}
	}
}
