package cli

import (
	"fmt"
	"time"

	"weft/cmd/control"
	"weft/metrics"
)

// kernelShare formats the part of some bytes that the kernel carried. 0 % and 100 % mean none and
// all of them; without bytes it returns a dash.
func kernelShare(kernel, all float64) string {
	switch {
	case all <= 0:
		return "-"
	case kernel <= 0:
		return "0 %"
	case kernel >= all:
		return "100 %"
	}
	return fmt.Sprintf("%.0f %%", min(max(100*kernel/all, 1), 99))
}

// addWays adds the parts of a volume that the fast path and the workers carried, if there is a fast
// path.
func addWays(p *screen, f metrics.FastPath, all, kernel metrics.Volume) {
	if f.Used() {
		p.add(false, "", fmt.Sprintf("kernel %s; workers %s", volume(kernel), volume(less(all, kernel))))
	}
}

// less returns a volume without a part of it.
func less(v, part metrics.Volume) metrics.Volume {
	return metrics.Volume{Packets: v.Packets - min(v.Packets, part.Packets),
		Bytes: v.Bytes - min(v.Bytes, part.Bytes)}
}

// flowWay returns who carried the packets of a flow: the kernel, the workers or both.
func flowWay(f control.TopFlow) string {
	switch f.Kernel.Packets {
	case 0:
		return "workers"
	case f.Packets:
		return "kernel"
	}
	return "both"
}

// trafficColumns are the columns about traffic in the table of nodes: those that the backend has
// figures for.
type trafficColumns struct {
	names []string
	cells func(control.Node) []string
}

// newTrafficColumns returns the columns for a status: with an engine, the times since the last
// packet of each direction and the share of the kernel's fast path if there is one; with a kernel
// that counts bytes per node, those.
func newTrafficColumns(s control.Status, now time.Time) trafficColumns {
	counts := s.TrafficByNode()
	count := func(n control.Node) metrics.NodeTraffic {
		if t := counts[n.Name]; t != nil {
			return *t
		}
		return metrics.NodeTraffic{}
	}
	ages := func(n control.Node) []string { return []string{age(n.Heard, now), age(n.Sent, now)} }
	switch {
	case s.HasFastPath():
		return trafficColumns{[]string{"HEARD", "SENT", "KERNEL"}, func(n control.Node) []string {
			t := count(n)
			return append(ages(n), kernelShare(float64(t.FastPath.Out.Bytes+t.FastPath.In.Bytes),
				float64(t.Out.Bytes+t.In.Bytes)))
		}}
	case s.Traffic != nil:
		return trafficColumns{[]string{"HEARD", "SENT"}, ages}
	case len(counts) > 0:
		return trafficColumns{[]string{"OUT", "IN"}, func(n control.Node) []string {
			t := count(n)
			return []string{megabytes(t.Out.Bytes), megabytes(t.In.Bytes)}
		}}
	}
	return trafficColumns{cells: func(control.Node) []string { return nil }}
}

func megabytes(n uint64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// kernelShares returns the shares of the nodes' traffic that their fast paths carried; nil if no
// node has a fast path.
func kernelShares(answers []nodeAnswer) []string {
	shares, has := make([]string, len(answers)), false
	for i, a := range answers {
		var kernel, all uint64
		for _, p := range a.Paths {
			if p.Out == nil || p.In == nil {
				continue
			}
			all += *p.Out + *p.In
			if p.FastOut != nil && p.FastIn != nil {
				kernel += *p.FastOut + *p.FastIn
				has = true
			}
		}
		shares[i] = kernelShare(float64(kernel), float64(all))
	}
	if !has {
		return nil
	}
	return shares
}
