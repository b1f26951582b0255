package agent

import (
	"cmp"
	"iter"
	"net/netip"
	"time"

	"weft/cmd/control"
	"weft/ctrl/backend"
	"weft/dataplane/probe"
	"weft/metrics"
)

// newProber returns the mesh probe, or nil if the flag or the backend turns it off.
func (d *daemon) newProber(backendType string) *probe.Prober {
	if d.cfg.ProbeInterval == 0 || !probed(backendType) {
		return nil
	}
	return probe.New(d.cfg.ProbeInterval)
}

// probed reports whether the nodes of a backend have an address that answers echoes. Nothing is
// known of the addresses of the other two.
func probed(backendType string) bool { return backendType != "alloc" && backendType != "extension" }

// The shortest times between two lists of targets of the mesh probe, which reads each list as a
// whole to sample the nodes: some milliseconds in a large cluster.
const (
	probeTargetInterval      = time.Second
	probeTargetIntervalLarge = 10 * time.Second
)

// refreshProbe passes a plan to the mesh probe that setProbe has skipped.
func (a *agent) refreshProbe(now time.Time) {
	if a.view != nil && a.view != a.probed {
		a.setProbe(now)
	}
}

// setProbe passes the nodes that have a path to the mesh probe, unless it has just got others.
func (a *agent) setProbe(now time.Time) {
	interval := probeTargetInterval
	if a.view.leases.Len() > largeCluster {
		interval = probeTargetIntervalLarge
	}
	if a.prober == nil || now.Sub(a.probeSet) < interval {
		return
	}
	a.probeSet, a.probed = now, a.view
	adv := a.backend.Advertisement()
	source := probe.Source{MTU: adv.MTU}
	if !direct(adv) {
		source.Addr, source.Addr6 = tunnelAddr(a.self.Subnet), tunnelAddr(a.self.Subnet6)
	}
	a.prober.Set(source, probeTargets(adv, a.view))
}

// probeTargets returns the addresses to probe. A node's overlay device has the first address of its
// subnet; without such a device, the node is probed at its public address.
func probeTargets(
	adv backend.Advertisement, view *peerView,
) iter.Seq[probe.Target] {
	return func(yield func(probe.Target) bool) {
		for l := range view.peers() {
			t := probe.Target{ID: probeID(l.Subnet, l.Subnet6), Fast: adv.Attrs.FastPath && l.FastPath}
			addr, addr6 := tunnelAddr(l.Subnet), tunnelAddr(l.Subnet6)
			if direct(adv) {
				addr, addr6 = l.PublicIP, l.PublicIPv6
			}
			if l.Subnet.IsValid() && view.subnetReason(l.Subnet) == "" {
				t.Addr = addr
			}
			if l.Subnet6.IsValid() && view.subnetReason(l.Subnet6) == "" && adv.IPv6Off == "" {
				t.Addr6 = addr6
			}
			if (t.Addr.IsValid() || t.Addr6.IsValid()) && !yield(t) {
				return
			}
		}
	}
}

// probeID identifies a node in the results of the mesh probe.
func probeID(subnet, subnet6 netip.Prefix) netip.Prefix {
	if subnet.IsValid() {
		return subnet
	}
	return subnet6
}

// tunnelAddr returns the address of a node's overlay device; it is invalid without a subnet.
func tunnelAddr(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr() }

// addProbe adds the results of the mesh probe to the status.
func (s *snapshot) addProbe(status *control.Status) {
	if s.prober == nil {
		return
	}
	results, stats := s.prober.Results(), s.prober.Stats()
	status.Probe = &control.Probe{
		Interval: s.prober.Interval().Seconds(), Nodes: len(results),
		Answered: stats.Answered, Lost: stats.Lost, Error: errText(s.prober.Err()),
	}
	for i := range status.Nodes {
		n := &status.Nodes[i]
		r := results[probeID(n.Subnet, n.Subnet6)]
		for _, p := range []struct {
			from *probe.Path
			into **control.Path
		}{{r.Path, &n.Path}, {r.Path6, &n.Path6}} {
			if p.from != nil {
				*p.into = newPathStatus(p.from)
				n.Unreachable = cmp.Or(n.Unreachable, p.from.Unreachable)
			}
		}
	}
}

func newPathStatus(p *probe.Path) *control.Path {
	return &control.Path{
		Address: p.Addr, Sent: p.Sent, Lost: p.Lost, RTT: p.Last.Seconds(),
		RTTMedian: p.Median.Seconds(), MTU: p.MTU, MaxMTU: p.MaxMTU, Answered: p.Answered,
		Workers: (*control.Loss)(p.Workers), FastPath: (*control.Loss)(p.Fast),
	}
}

// probeMetrics converts the results of the mesh probe to metrics; nil if there is none.
func probeMetrics(s control.Status) *metrics.Probe {
	if s.Probe == nil {
		return nil
	}
	m := &metrics.Probe{Answered: s.Probe.Answered, Lost: s.Probe.Lost}
	for _, n := range s.Nodes {
		for _, p := range []*control.Path{n.Path, n.Path6} {
			if p == nil {
				continue
			}
			path := metrics.ProbePath{Node: n.Name, MTU: p.MTU, MaxMTU: p.MaxMTU}
			path.RTT = time.Duration(p.RTTMedian * float64(time.Second))
			path.Loss = float64(p.Lost) / float64(max(p.Sent, 1))
			m.Paths = append(m.Paths, path)
		}
	}
	return m
}
