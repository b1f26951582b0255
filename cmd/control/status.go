package control

import (
	"encoding/json"
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
	Conditions []Condition   `json:"conditions"`
	// Flags holds the flags that are set and their values, without secrets.
	Flags     map[string]string `json:"flags"`
	Network   *Network          `json:"network,omitempty"` // absent until it is read
	Backend   string            `json:"backend,omitempty"`
	Port      int               `json:"port,omitempty"`   // UDP port of the tunnel; absent: none
	MTU       int               `json:"mtu,omitempty"`    // of pods, in bytes
	Device    string            `json:"device,omitempty"` // two if each family has one
	Interface *Interface        `json:"interface,omitempty"`
	Lease     *Lease            `json:"lease,omitempty"`
	Store     Store             `json:"store"`
	Nodes     []Node            `json:"nodes"`
	// NextAfter is set if more nodes follow those of a request with [NodesParameter]: the value of
	// AfterParameter that asks for them.
	NextAfter string           `json:"next_after,omitempty"`
	Probe     *Probe           `json:"probe,omitempty"` // absent if it is off
	Kernel    Kernel           `json:"kernel"`
	Rules     Rules            `json:"rules"`
	Traffic   *metrics.Traffic `json:"traffic,omitempty"`
	IPsec     *IPsec           `json:"ipsec,omitempty"` // of the ipsec backend only
	// KernelTraffic replaces Traffic with a backend whose packets the kernel moves.
	KernelTraffic *metrics.KernelTraffic `json:"kernel_traffic,omitempty"`
	Cloud         *Cloud                 `json:"cloud,omitempty"` // of a cloud's backend only
	Limits        Limits                 `json:"limits"`
}

// Condition is one condition of readiness.
type Condition struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"` // why not met; a note if met
}

// Interface is the interface to the other nodes.
type Interface struct {
	Name     string     `json:"name"`
	MTU      int        `json:"mtu"`
	Address  netip.Addr `json:"address,omitzero"`
	Address6 netip.Addr `json:"address6,omitzero"`
	Public   netip.Addr `json:"public,omitzero"`
	Public6  netip.Addr `json:"public6,omitzero"`
	Reason   string     `json:"reason,omitempty"`
	Note     string     `json:"note,omitempty"` // a better or missing choice, which is not followed
}

// Lease is the node's lease. After a loss it is the lost one.
type Lease struct {
	Held    bool         `json:"held"`
	Subnet  netip.Prefix `json:"subnet,omitzero"`
	Subnet6 netip.Prefix `json:"subnet6,omitzero"`
	Since   time.Time    `json:"since,omitzero"`
	Expires time.Time    `json:"expires,omitzero"` // absent: never
}

// Store is the state of the lease store.
type Store struct {
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

// Node is one other node.
type Node struct {
	Name    string       `json:"name"`
	Host    string       `json:"host,omitempty"` // its host name, if name is an address
	Subnet  netip.Prefix `json:"subnet,omitzero"`
	Subnet6 netip.Prefix `json:"subnet6,omitzero"`
	Public  netip.Addr   `json:"public,omitzero"`
	Public6 netip.Addr   `json:"public6,omitzero"` // absent if it is Public
	// Unreachable is the reason why one of its subnets is unreachable; empty if all are reachable.
	Unreachable string `json:"unreachable,omitempty"`
	// Path and Path6 are measured by the mesh probe; absent for a node that is not probed.
	Path  *Path `json:"path,omitempty"`
	Path6 *Path `json:"path6,omitempty"`

	// Heard and Sent are when the last packet from and to the node was counted, to the second, and
	// Unanswered is the number of packets sent since Heard. Of the udp backend only.
	Heard      time.Time `json:"heard,omitzero"`
	Sent       time.Time `json:"sent,omitzero"`
	Unanswered uint64    `json:"unanswered,omitempty"`
	// Error is the last reason why a packet to the node was refused, by this host or by ICMP, and
	// not followed by a packet from the node.
	Error   string    `json:"error,omitempty"`
	ErrorAt time.Time `json:"error_at,omitzero"`

	// IPsec and IPsec6 are the security associations with the node. Of the ipsec backend only.
	IPsec  *Association `json:"ipsec,omitempty"`
	IPsec6 *Association `json:"ipsec6,omitempty"`
}

// Association is the state of the IPsec security associations with a node, in one family.
type Association struct {
	Established time.Time `json:"established,omitzero"` // absent: there is none
	UDP         bool      `json:"udp_encap,omitempty"`  // ESP in UDP
	Rekeys      int       `json:"rekeys"`               // replacements of keys
	Rekeyed     time.Time `json:"rekeyed,omitzero"`     // the last one
	Error       string    `json:"error,omitempty"`      // why there is none, or no new keys
	ErrorAt     time.Time `json:"error_at,omitzero"`
}

// IPsec is the state of strongSwan's charon, which negotiates the keys of the ipsec backend.
type IPsec struct {
	Charon      string    `json:"charon,omitempty"`  // path of the program
	Version     string    `json:"version,omitempty"` // absent: it does not run
	PID         int       `json:"pid,omitempty"`
	Since       time.Time `json:"since,omitzero"` // of its start
	Restarts    uint64    `json:"restarts"`
	Error       string    `json:"error,omitempty"`
	Established int       `json:"established"` // associations that are in place
	Missing     int       `json:"missing"`     // associations that are not
}

// Kernel describes devices, addresses and routes.
type Kernel struct {
	Synced  bool      `json:"synced"`
	Since   time.Time `json:"since,omitzero"`
	Waiting []string  `json:"waiting,omitempty"` // devices that do not exist yet
	Error   string    `json:"error,omitempty"`
	Repairs uint64    `json:"repairs"`
	// Differences lists the operations that the kernel's state lacks to be the desired one. Only
	// the control socket has them.
	Differences []string `json:"differences,omitempty"`
	// UserspaceWireGuard lists WireGuard devices that run in this process, as the kernel has no
	// WireGuard.
	UserspaceWireGuard []string `json:"userspace_wireguard,omitempty"`
}

// Cloud describes the routes to this node's pods in the route tables of a cloud.
type Cloud struct {
	Provider    string    `json:"provider"`
	RouteTables []string  `json:"route_tables,omitempty"`
	InPlace     bool      `json:"in_place"`
	Since       time.Time `json:"since,omitzero"`   // of InPlace
	Checked     time.Time `json:"checked,omitzero"` // last time that the tables could be read
	Error       string    `json:"error,omitempty"`
	Notes       []string  `json:"notes,omitempty"`

	Calls []metrics.CloudCall `json:"calls,omitempty"`
}

// Rules describes the packet filter rules.
type Rules struct {
	InPlace bool      `json:"in_place"`
	Since   time.Time `json:"since,omitzero"`
	Mode    string    `json:"mode,omitempty"` // iptables or nftables
	Error   string    `json:"error,omitempty"`
	Notes   []string  `json:"notes,omitempty"`
	Repairs uint64    `json:"repairs"`
}

// Network is the network config in force, with derived values.
type Network struct {
	Network        netip.Prefix               `json:"network,omitzero"`
	SubnetLen      int                        `json:"subnet_len,omitempty"`
	SubnetMin      netip.Addr                 `json:"subnet_min,omitzero"`
	SubnetMax      netip.Addr                 `json:"subnet_max,omitzero"`
	Network6       netip.Prefix               `json:"network6,omitzero"`
	SubnetLen6     int                        `json:"subnet_len6,omitempty"`
	SubnetMin6     netip.Addr                 `json:"subnet_min6,omitzero"`
	SubnetMax6     netip.Addr                 `json:"subnet_max6,omitzero"`
	EnableNFTables bool                       `json:"enable_nftables"`
	Backend        map[string]json.RawMessage `json:"backend"` // keys as in the config
	// UnknownKeys lists keys without effect.
	UnknownKeys []string `json:"unknown_keys,omitempty"`
}

// Limits are the resources that the daemon may use and the sizes that follow from them.
type Limits struct {
	Memory      uint64  `json:"memory,omitempty"` // bytes
	CPUs        float64 `json:"cpus,omitempty"`   // CPU time per time
	Descriptors uint64  `json:"descriptors"`

	// GoMemory is the part of Memory for Go's heap and stacks; absent without a limit.
	GoMemory int64 `json:"go_memory,omitempty"`
	// Connections is the number of connections to the health server.
	Connections int `json:"connections"`

	// Of the engine, if the backend has one.
	Workers      int  `json:"workers"`
	SocketBuffer int  `json:"socket_buffer,omitempty"` // bytes each way; absent: the default
	Spin         bool `json:"spin"`
}
