package agent

import (
	"time"

	"weft/cmd/control"
	"weft/metrics"
)

// metricsSnapshot converts the status to metrics, so that /status and /metrics never disagree.
func metricsSnapshot(s control.Status) metrics.Snapshot {
	unreachable := 0
	for _, n := range s.Nodes {
		if n.Unreachable != "" {
			unreachable++
		}
	}
	m := metrics.Snapshot{
		Ready:            s.Ready,
		StoreConnected:   s.Store.Connected,
		StoreRevision:    s.Store.Revision,
		Nodes:            len(s.Nodes),
		Traffic:          s.Traffic,
		Probe:            probeMetrics(s),
		Kernel:           s.KernelTraffic,
		ReconcilerInSync: s.Kernel.Synced,
		Unreachable:      unreachable,
		KernelRepairs:    s.Kernel.Repairs,
		RulesInPlace:     s.Rules.InPlace,
		RuleRepairs:      s.Rules.Repairs,
	}
	if s.Cloud != nil {
		m.Cloud = s.Cloud.Calls
	}
	if i := s.IPsec; i != nil {
		m.IPsec = &metrics.IPsec{Established: i.Established, Missing: i.Missing, Restarts: i.Restarts}
	}
	for _, c := range s.Conditions {
		m.Conditions = append(m.Conditions, metrics.Condition{Name: c.Name, OK: c.OK})
	}
	if s.Lease != nil {
		m.Lease = metrics.Lease{
			Held:      s.Lease.Held,
			Age:       time.Since(s.Lease.Since),
			ExpiresIn: time.Until(s.Lease.Expires),
			Permanent: s.Lease.Expires.IsZero(),
		}
	}
	return m
}
