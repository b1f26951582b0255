package doctor

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"weft/ctrl"
	"weft/ctrl/netfilter"
)

func TestParseFlow(t *testing.T) {
	for _, c := range []struct {
		src, dst, protocol string
		want               Flow
		problem            string
	}{
		{"10.5.1.2", "10.5.2.3", "tcp/80", Flow{Protocol: 6, Port: 80}, ""},
		{"10.5.1.2", "10.5.2.3", "udp", Flow{Protocol: 17}, ""},
		{"10.5.1.2", "10.5.2.3", "", Flow{}, ""},
		{"fd00::1", "fd00::2", "icmp", Flow{Protocol: 58}, ""},
		{"10.5.1", "10.5.2.3", "", Flow{}, `source "10.5.1" is not`},
		{"10.5.1.2", "pod", "", Flow{}, `destination "pod" is not`},
		{"10.5.1.2", "fd00::2", "", Flow{}, "not of one family"},
		{"10.5.1.2", "10.5.2.3", "sctp", Flow{}, `protocol "sctp", want icmp`},
		{"10.5.1.2", "10.5.2.3", "icmp/8", Flow{}, `protocol "icmp/8"`},
		{"10.5.1.2", "10.5.2.3", "tcp/70000", Flow{}, `protocol "tcp/70000"`},
	} {
		got, err := ParseFlow(c.src, c.dst, c.protocol)
		if c.problem != "" {
			if err == nil || !strings.Contains(err.Error(), c.problem) {
				t.Errorf("%s %s %s: %v, want %q", c.src, c.dst, c.protocol, err, c.problem)
			}
			continue
		}
		c.want.Src, c.want.Dst = netip.MustParseAddr(c.src), netip.MustParseAddr(c.dst)
		if err != nil || got != c.want {
			t.Errorf("%s %s %s: %+v, %v", c.src, c.dst, c.protocol, got, err)
		}
	}
}

// TestTraceSteps makes one fault at a time and expects the step that fails.
func TestTraceSteps(t *testing.T) {
	pod, peer := own.Addr().Next(), peerNet.Addr().Next().Next()
	for _, c := range []struct {
		fails string
		make  func(*way)
	}{
		{"", func(*way) {}},
		{"source", func(w *way) { w.Neighbours[0].Failed = true }},
		{"forwarding", func(w *way) { w.Sysctl["net/ipv4/ip_forward"] = "0" }},
		{"route", func(w *way) { w.route.Dev, w.route.Protocol = "eth0", 3 }},
		{"packet filter", func(w *way) {
			w.verdicts = []netfilter.Verdict{{Chain: "FORWARD", Dropped: true, Certain: true}}
		}},
		{"lease", func(w *way) { w.node, w.flow.Dst = nil, netip.MustParseAddr("10.5.200.1") }},
		{"device", func(w *way) { w.Kernel.Links[2].Up = false }},
		{"vxlan entries", func(w *way) { w.Kernel.FDB = nil }},
		{"underlay", func(w *way) { w.Neighbours[1].Failed = true }},
		{"tunnel filter", func(w *way) {
			w.node.Out = []netfilter.Verdict{{Chain: "OUTPUT", Dropped: true, Certain: true}}
		}},
		{"device", func(w *way) {
			w.Kernel.Links[2].Kind, w.Missing[fromDaemon] = ctrl.KindTUN, os.ErrDeadlineExceeded
		}},
		{"other node", func(w *way) { w.node.Path.Lost = w.node.Path.Sent }},
	} {
		f := healthy(t)
		f.Neighbours = []ctrl.NeighbourState{{Dev: "cni0", IP: pod, MAC: ctrl.MAC{2}},
			{Dev: "eth0", IP: peerAddr, MAC: ctrl.MAC{2}}}
		f.Nodes[0].Path = &Path{Sent: 10, MTU: 1450}
		w := &way{Facts: f, flow: Flow{Src: pod, Dst: peer}, in: "cni0", node: &f.Nodes[0],
			source: Lookup{LookupResult: ctrl.LookupResult{Dev: "cni0"}}, route: f.Nodes[0].Forward}
		c.make(w)
		trace := w.trace()
		failed := ""
		for _, s := range trace.Steps {
			if s.Outcome == Fails {
				failed += s.Name
			}
		}
		if failed != c.fails || (c.fails == "") != (trace.Arrives == Passes) {
			t.Errorf("failed steps %q, want %q: %+v", failed, c.fails, trace)
		}
	}
}
