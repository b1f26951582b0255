package agent

import (
	"reflect"
	"slices"
	"testing"

	"weft/dataplane"
	"weft/dataplane/fastpath"
	"weft/dataplane/feature"
	"weft/metrics"
)

func TestTraffic(t *testing.T) {
	got := traffic(dataplane.Stats{
		Sent:              dataplane.Traffic{Packets: 1, Bytes: 2},
		Received:          dataplane.Traffic{Packets: 3, Bytes: 4},
		Drops:             map[dataplane.Drop]uint64{dataplane.DropNoNode: 5},
		ICMPSent:          6,
		ICMPSuppressed:    7,
		SocketOverflows:   8,
		TUNOverflows:      9,
		DeviceRecreations: 10,
		SocketRecreations: 11,
		Nodes: []dataplane.NodeTraffic{
			{Name: "n2", Sent: dataplane.Traffic{Packets: 12, Bytes: 13},
				Received: dataplane.Traffic{Packets: 14, Bytes: 15}},
		},
		GSOFramesRejected: 16,
		FastPath: dataplane.FastPathStats{
			FastPathStatus: dataplane.FastPathStatus{Active: true, Reason: "paused"},
			Sent:           dataplane.Traffic{Packets: 17, Bytes: 18},
			Received:       dataplane.Traffic{Packets: 19, Bytes: 20},
			Passed:         map[fastpath.Pass]uint64{fastpath.PassBulk: 21},
		},
	}, []dataplane.FeatureStatus{{Feature: feature.VnetHeader, Used: true}, {Feature: feature.GRO, Reason: "too old"}})
	drops := got.Drops
	got.Drops = nil
	passed := got.FastPath.Passed
	got.FastPath.Passed = nil
	want := &metrics.Traffic{
		Engine: "offload",
		Features: []metrics.Feature{
			{Name: string(feature.VnetHeader), Used: true}, {Name: string(feature.GRO), Reason: "too old"},
		},
		GSOFramesRejected: 16,
		Out:               metrics.Volume{Packets: 1, Bytes: 2},
		In:                metrics.Volume{Packets: 3, Bytes: 4},
		Overflows: []metrics.Overflow{
			{Queue: "socket", Packets: 8}, {Queue: "tun", Packets: 9},
		},
		Recreations:    []metrics.Recreation{{Object: "device", Count: 10}, {Object: "socket", Count: 11}},
		ICMPSent:       6,
		ICMPSuppressed: 7,
		FastPath: metrics.FastPath{Active: true, Reason: "paused",
			Out: metrics.Volume{Packets: 17, Bytes: 18}, In: metrics.Volume{Packets: 19, Bytes: 20}},
		Nodes: []metrics.NodeTraffic{
			{Node: "n2", Out: metrics.Volume{Packets: 12, Bytes: 13}, In: metrics.Volume{Packets: 14, Bytes: 15}},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := traffic(dataplane.Stats{}, nil).Engine; got != "portable" {
		t.Errorf("engine without features is %q", got)
	}
	// Every reason is exported from the start, so that rate() has a first value.
	if len(drops) != len(dataplane.Drops()) || !slices.ContainsFunc(drops, func(d metrics.Drop) bool {
		return d.Reason == "no_node" && d.Packets == 5 && d.Meaning != ""
	}) {
		t.Errorf("drops are %v", drops)
	}
	if len(passed) != len(fastpath.Passes()) ||
		!slices.Contains(passed, metrics.Drop{Reason: "bulk", Packets: 21}) {
		t.Errorf("passed packets are %v", passed)
	}
}
