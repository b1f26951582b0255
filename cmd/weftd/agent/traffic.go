package agent

import (
	"weft/dataplane"
	"weft/dataplane/fastpath"
	"weft/dataplane/feature"
	"weft/metrics"
)

// traffic converts the engine's counters and features to metrics.
func traffic(s dataplane.Stats, features []dataplane.FeatureStatus) *metrics.Traffic {
	t := &metrics.Traffic{
		Engine:            dataplane.ModePortable.String(),
		Out:               metrics.Volume(s.Sent),
		In:                metrics.Volume(s.Received),
		ICMPSent:          s.ICMPSent,
		ICMPSuppressed:    s.ICMPSuppressed,
		GSOFramesRejected: s.GSOFramesRejected,
		Overflows: []metrics.Overflow{
			{Queue: "socket", Packets: s.SocketOverflows},
			{Queue: "tun", Packets: s.TUNOverflows},
		},
		Recreations: []metrics.Recreation{
			{Object: "device", Count: s.DeviceRecreations},
			{Object: "socket", Count: s.SocketRecreations},
		},
	}
	for _, f := range features {
		t.Features = append(t.Features, metrics.Feature{
			Name: string(f.Feature), Used: f.Used, Reason: f.Reason,
		})
		if f.Feature == feature.VnetHeader && f.Used {
			t.Engine = dataplane.ModeOffload.String()
		}
	}
	t.FastPath = metrics.FastPath{Active: s.FastPath.Active, Reason: s.FastPath.Reason,
		Out: metrics.Volume(s.FastPath.Sent), In: metrics.Volume(s.FastPath.Received)}
	for _, p := range fastpath.Passes() {
		t.FastPath.Passed = append(t.FastPath.Passed,
			metrics.Drop{Reason: p.String(), Packets: s.FastPath.Passed[p]})
	}
	for _, d := range dataplane.Drops() {
		last := s.LastDrops[d]
		t.Drops = append(t.Drops, metrics.Drop{Reason: d.String(), Packets: s.Drops[d],
			Meaning: d.Meaning(), Last: lastAddresses(last), LastAt: last.Time})
	}
	for _, n := range s.Nodes {
		t.Nodes = append(t.Nodes, metrics.NodeTraffic{
			Node: n.Name, Out: metrics.Volume(n.Sent), In: metrics.Volume(n.Received),
			FastPath: metrics.NodeFastPath{Out: metrics.Volume(n.FastSent),
				In: metrics.Volume(n.FastReceived)},
			SendError: errText(n.SendError), SendErrorAt: n.SendErrorAt,
		})
	}
	return t
}

// lastAddresses formats the addresses of a dropped packet; empty if there is none.
func lastAddresses(l dataplane.LastDrop) string {
	if l.Time.IsZero() {
		return ""
	}
	return l.Src.String() + " -> " + l.Dst.String()
}
