package doctor

import (
	"fmt"
	"slices"
	"strings"

	"weft/ctrl"
)

// TCFilter is a filter of traffic control with the counts of packets during the examination.
type TCFilter struct {
	ctrl.TrafficFilter
	Met, Lost uint64 // packets that met its effect, and that it dropped
}

// describe names a filter and its place.
func (t TCFilter) describe() string {
	kind := t.Kind
	if t.Name != "" {
		kind += " " + t.Name
	}
	return fmt.Sprintf("tc filter %s on %s %s", kind, t.Dev, t.Direction())
}

// show returns the command that shows the filter.
func (t TCFilter) show() string {
	return fmt.Sprintf("tc -s filter show dev %s %s; tc filter del dev %s %s removes all there", t.Dev,
		t.Direction(), t.Dev, t.Direction())
}

// countTC compares the filters with those at the start of the examination.
func countTC(before, after []ctrl.TrafficFilter) (all []TCFilter) {
	same := func(a, b ctrl.TrafficFilter) bool {
		a.Packets, a.Dropped, b.Packets, b.Dropped = 0, 0, 0, 0
		return a == b
	}
	for _, f := range after {
		t := TCFilter{TrafficFilter: f}
		if i := slices.IndexFunc(before, func(b ctrl.TrafficFilter) bool { return same(b, f) }); i >= 0 {
			t.Met = f.Packets - min(before[i].Packets, f.Packets)
			t.Lost = f.Dropped - min(before[i].Dropped, f.Dropped)
			before = slices.Delete(slices.Clone(before), i, i+1)
		}
		all = append(all, t)
	}
	return all
}

// failing reports whether packets to a node were lost on their way.
func (f *Facts) failing() bool {
	return slices.ContainsFunc(f.reachable(), func(n Node) bool {
		p := n.Probes
		return n.Probed && (p.Small.Received == 0 || n.lossy() || p.Large.Sent > 0 && p.Large.Received == 0 ||
			p.DirectTCP && !p.TCP)
	})
}

// findTCFilter looks for filters that take packets away. Those that only count, mark or shape, and
// the devices ifb of shapers, are no fault.
func findTCFilter(f *Facts) []Finding {
	var out []Finding
	add := func(t TCFilter, effect, cause string) {
		out = append(out, Finding{Evidence: fmt.Sprintf("%s %s", t.describe(), effect), Cause: cause, Remedy: t.show()})
	}
	for _, t := range f.TC {
		active := t.All || t.Met > 0
		switch to, exists := f.link(t.To); {
		case !slices.Contains(f.passed(), t.Dev):
		case t.Effect == ctrl.FilterDrops && active:
			add(t, fmt.Sprintf("drops packets, %d during the examination", t.Met),
				"another program drops packets of pods or of the tunnel below the packet filters")
		case t.Effect == ctrl.FilterRedirects && active && !(strings.HasPrefix(string(to.Kind), "ifb") && to.Up):
			state := ""
			if exists && !to.Up {
				state = ", which is down"
			}
			add(t, fmt.Sprintf("redirects packets to %s%s, %d during the examination", t.To, state, t.Met),
				"another program takes packets of pods or of the tunnel to another device")
		case t.Effect == ctrl.FilterMirrors && active && slices.Contains(f.passed(), t.To):
			add(t, fmt.Sprintf("copies packets to %s, %d during the examination", t.To, t.Met),
				"packets of pods are duplicated: the copies take the same way as the packets")
		case t.Effect == ctrl.FilterProgram && !knownProgram(t.Name) && f.failing():
			add(t, "may drop packets, and some were lost in this examination",
				"a BPF program of another program sees the packets of pods or of the tunnel; what it does with "+
					"them is not visible")
		}
	}
	return out
}

// knownProgram reports whether a BPF filter is Weft's or Cilium's.
func knownProgram(name string) bool {
	return strings.HasPrefix(name, "weft") || strings.HasPrefix(name, "cil_") || strings.Contains(name, "cilium") ||
		strings.HasPrefix(name, "bpf_lxc") || strings.HasPrefix(name, "bpf_host") || strings.HasPrefix(name, "bpf_netdev")
}

// findTCPolice looks for policers that have dropped packets during the examination, or while it had
// losses.
func findTCPolice(f *Facts) []Finding {
	var out []Finding
	for _, t := range f.TC {
		if t.Effect != ctrl.FilterPolices || !slices.Contains(f.passed(), t.Dev) ||
			t.Lost == 0 && (t.Dropped == 0 || !f.failing()) {
			continue
		}
		rate := ""
		if t.Rate > 0 {
			rate = fmt.Sprintf(" at %d bit/s", 8*t.Rate)
		}
		out = append(out, Finding{
			Evidence: fmt.Sprintf("%s polices the rate%s and has dropped %d packets, %d during the examination",
				t.describe(), rate, t.Dropped, t.Lost),
			Cause:  "a limit of the rate drops packets beyond it: pings pass, transfers are slow or stall",
			Remedy: t.show(),
		})
	}
	return out
}
