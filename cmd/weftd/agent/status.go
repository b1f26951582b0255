package agent

import (
	"net/netip"
	"time"

	"weft/metrics"
)

// Status is the state of the daemon at one moment. It is the JSON of /status and the source of
// /readyz and /metrics, so the three never disagree.
type Status struct {
	Build      metrics.Build `json:"build"`
	Node       string        `json:"node"`
	Ready      bool          `json:"ready"`
	Conditions []condition   `json:"conditions"`
	// Flags holds the flags that are set and their values, without secrets.
	Flags     map[string]string `json:"flags"`
	Network   *networkStatus    `json:"network,omitempty"` // absent until it is read
	Backend   string            `json:"backend,omitempty"`
	MTU       int               `json:"mtu,omitempty"`    // of pods, in bytes
	Device    string            `json:"device,omitempty"` // two if each family has one
	Interface *interfaceStatus  `json:"interface,omitempty"`
	Lease     *leaseStatus      `json:"lease,omitempty"`
	Store     storeStatus       `json:"store"`
	Nodes     []nodeStatus      `json:"nodes"`
	Kernel    kernelStatus      `json:"kernel"`
	Rules     rulesStatus       `json:"rules"`
	Traffic   *metrics.Traffic  `json:"traffic,omitempty"`
	Limits    limits            `json:"limits"`
}

// condition is one condition of readiness.
type condition struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"` // why not met; a note if met
}

// interfaceStatus is the interface to the other nodes.
type interfaceStatus struct {
	Name     string     `json:"name"`
	MTU      int        `json:"mtu"`
	Address  netip.Addr `json:"address,omitzero"`
	Address6 netip.Addr `json:"address6,omitzero"`
	Public   netip.Addr `json:"public,omitzero"`
	Public6  netip.Addr `json:"public6,omitzero"`
	Reason   string     `json:"reason,omitempty"`
	Note     string     `json:"note,omitempty"` // a better or missing choice, which is not followed
}

// leaseStatus is the node's lease. After a loss it is the lost one.
type leaseStatus struct {
	Held    bool         `json:"held"`
	Subnet  netip.Prefix `json:"subnet,omitzero"`
	Subnet6 netip.Prefix `json:"subnet6,omitzero"`
	Since   time.Time    `json:"since,omitzero"`
	Expires time.Time    `json:"expires,omitzero"` // absent: never
}

// storeStatus is the state of the lease store.
type storeStatus struct {
	Kind string `json:"kind"` // etcd, kubernetes or file
	// Endpoints are the etcd servers, or the API server if it is given.
	Endpoints []string  `json:"endpoints,omitempty"`
	Prefix    string    `json:"prefix,omitempty"` // of etcd's keys, or of annotations
	File      string    `json:"file,omitempty"`   // the lease file, or the network config of Kubernetes
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since,omitzero"` // of Connected
	Revision  int64     `json:"revision"`
	Error     string    `json:"error,omitempty"`
}

// nodeStatus is one other node.
type nodeStatus struct {
	Name    string       `json:"name"`
	Subnet  netip.Prefix `json:"subnet,omitzero"`
	Subnet6 netip.Prefix `json:"subnet6,omitzero"`
	Public  netip.Addr   `json:"public,omitzero"`
	// Unreachable is the reason why one of its subnets is unreachable; empty if all are reachable.
	Unreachable string `json:"unreachable,omitempty"`
}

// kernelStatus describes devices, addresses and routes.
type kernelStatus struct {
	Synced  bool      `json:"synced"`
	Since   time.Time `json:"since,omitzero"`
	Waiting []string  `json:"waiting,omitempty"` // devices that do not exist yet
	Error   string    `json:"error,omitempty"`
	Repairs uint64    `json:"repairs"`
	// UserspaceWireGuard lists WireGuard devices that run in this process, as the kernel has no
	// WireGuard.
	UserspaceWireGuard []string `json:"userspace_wireguard,omitempty"`
}

// rulesStatus describes the packet filter rules.
type rulesStatus struct {
	InPlace bool      `json:"in_place"`
	Since   time.Time `json:"since,omitzero"`
	Mode    string    `json:"mode,omitempty"` // iptables or nftables
	Error   string    `json:"error,omitempty"`
	Notes   []string  `json:"notes,omitempty"`
	Repairs uint64    `json:"repairs"`
}

// metrics converts the status to metrics.
func (s Status) metrics() metrics.Snapshot {
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
		ReconcilerInSync: s.Kernel.Synced,
		Unreachable:      unreachable,
		KernelRepairs:    s.Kernel.Repairs,
		RulesInPlace:     s.Rules.InPlace,
		RuleRepairs:      s.Rules.Repairs,
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
