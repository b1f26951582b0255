package main

import (
	"weft/dataplane"
	"weft/metrics"
)

// engineName is the engine of package dataplane.
const engineName = "portable"

// traffic turns the engine's counters into those that metrics names.
func traffic(s dataplane.Stats) *metrics.Traffic {
	t := &metrics.Traffic{
		Engine:         engineName,
		Out:            metrics.Volume(s.Sent),
		In:             metrics.Volume(s.Received),
		ICMPSent:       s.ICMPSent,
		ICMPSuppressed: s.ICMPSuppressed,
		Overflows: []metrics.Overflow{
			{Queue: "socket", Packets: s.SocketOverflows},
			{Queue: "tun", Packets: s.TUNOverflows},
		},
		Reopens: []metrics.Reopen{
			{What: "device", Count: s.DeviceReopens},
			{What: "socket", Count: s.SocketReopens},
		},
	}
	for _, d := range dataplane.Drops() {
		t.Drops = append(t.Drops, metrics.Drop{Reason: d.String(), Packets: s.Drops[d]})
	}
	for _, n := range s.Nodes {
		t.Nodes = append(t.Nodes, metrics.NodeTraffic{
			Node: n.Name, Out: metrics.Volume(n.Sent), In: metrics.Volume(n.Received),
		})
	}
	return t
}
