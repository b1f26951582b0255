package control

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"weft/metrics"
)

// Row is a node's own account of itself and of its paths to the others: a row in the matrix of the
// cluster.
type Row struct {
	ID         string      `json:"id,omitempty"` // see [Node.ID]; absent without a lease
	Node       string      `json:"node"`
	Time       time.Time   `json:"time"`
	Ready      bool        `json:"ready"`
	Conditions []Condition `json:"conditions"` // those that are not met
	Backend    string      `json:"backend,omitempty"`
	Paths      []PeerPath  `json:"paths"`
	LeftOut    int         `json:"left_out,omitempty"` // paths beyond MaxRow
}

// PeerPath is the path to another node. With two families, it is the worse one.
type PeerPath struct {
	ID          string  `json:"id"`
	Node        string  `json:"node"`
	Unreachable string  `json:"unreachable,omitempty"` // the reason
	Refused     string  `json:"refused,omitempty"`     // why the last packet was refused
	Sent        int     `json:"sent"`                  // of the last echoes; 0: not probed
	Lost        int     `json:"lost"`
	RTT         float64 `json:"rtt_seconds,omitempty"` // median
	MTU         int     `json:"mtu,omitempty"`
	SmallMTU    bool    `json:"small_mtu,omitempty"` // the path's MTU is smaller than the device's
	// Out and In are bytes since the daemon started; absent if nothing counts them.
	Out *uint64 `json:"out_bytes,omitempty"`
	In  *uint64 `json:"in_bytes,omitempty"`
	// FastOut and FastIn are the parts of Out and In that the fast path of the udp backend carried;
	// absent without one.
	FastOut *uint64 `json:"fast_path_out_bytes,omitempty"`
	FastIn  *uint64 `json:"fast_path_in_bytes,omitempty"`
}

// MaxRow is the largest number of paths in a row: those that the mesh probe measures, and some that
// it does not.
const MaxRow = 256

// ID identifies a node among the rows of the matrix: its subnet. A name does not, as in etcd the
// others may know a node by its address only.
func (n Node) ID() string { return subnetID(n.Subnet, n.Subnet6) }

// ID returns the node's own [Node.ID]; empty without a lease.
func (s *Status) ID() string {
	if s.Lease == nil {
		return ""
	}
	return subnetID(s.Lease.Subnet, s.Lease.Subnet6)
}

func subnetID(v4, v6 netip.Prefix) string {
	switch {
	case v4.IsValid():
		return v4.String()
	case v6.IsValid():
		return v6.String()
	}
	return ""
}

// DisplayName returns the host name of a node if it is known, else its name.
func (n Node) DisplayName() string { return cmp.Or(n.Host, n.Name) }

// NewRow returns the row of the node with a status.
func NewRow(s Status, now time.Time) Row {
	r := Row{ID: s.ID(), Node: s.Node, Time: now, Ready: s.Ready, Backend: s.Backend,
		Conditions: []Condition{}, Paths: []PeerPath{}}
	for _, c := range s.Conditions {
		if !c.OK {
			r.Conditions = append(r.Conditions, c)
		}
	}
	traffic := s.TrafficByNode()
	for _, n := range s.Nodes {
		p := peerPath(n)
		if t, ok := traffic[n.Name]; ok {
			p.Out, p.In = &t.Out.Bytes, &t.In.Bytes
			if s.HasFastPath() {
				p.FastOut, p.FastIn = &t.FastPath.Out.Bytes, &t.FastPath.In.Bytes
			}
		}
		r.Paths = append(r.Paths, p)
	}
	slices.SortStableFunc(r.Paths, func(a, b PeerPath) int {
		return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(a.Node, b.Node))
	})
	r.LeftOut = max(0, len(r.Paths)-MaxRow)
	r.Paths = r.Paths[:len(r.Paths)-r.LeftOut]
	return r
}

// rank orders paths: broken ones come first, those that are not probed last.
func (p PeerPath) rank() int {
	switch {
	case p.Sent == 0 && p.Unreachable == "":
		return 2
	case p.Unreachable == "":
		return 1
	}
	return 0
}

func peerPath(n Node) PeerPath {
	row := PeerPath{ID: n.ID(), Node: n.DisplayName(), Unreachable: n.Unreachable, Refused: n.Error}
	for _, p := range []*Path{n.Path, n.Path6} {
		if p == nil || p.Sent == 0 {
			continue
		}
		if row.Sent == 0 || p.Lost*row.Sent > row.Lost*p.Sent {
			row.Sent, row.Lost = p.Sent, p.Lost
		}
		row.RTT = max(row.RTT, p.RTTMedian)
		if p.MTU > 0 && (row.MTU == 0 || p.MTU < row.MTU) {
			row.MTU = p.MTU
		}
		row.SmallMTU = row.SmallMTU || p.MTU > 0 && p.MTU < p.MaxMTU
	}
	return row
}

// TrafficByNode returns the traffic per node by name, as far as the engine or the kernel counts it.
func (s *Status) TrafficByNode() map[string]*metrics.NodeTraffic {
	var all []metrics.NodeTraffic
	switch {
	case s.Traffic != nil:
		all = s.Traffic.Nodes
	case s.KernelTraffic != nil:
		all = s.KernelTraffic.Nodes
	}
	nodes := make(map[string]*metrics.NodeTraffic, len(all))
	for _, t := range all {
		sum := nodes[t.Node]
		if sum == nil {
			sum = &metrics.NodeTraffic{Node: t.Node}
			nodes[t.Node] = sum
		}
		sum.Add(t)
	}
	return nodes
}

// HasFastPath reports whether a fast path carries packets, or has carried some.
func (s *Status) HasFastPath() bool { return s.Traffic != nil && s.Traffic.FastPath.Used() }

// Cluster is the matrix of a cluster, or the part of it that was asked for.
type Cluster struct {
	Nodes int          `json:"nodes"` // of the cluster
	Rows  []ClusterRow `json:"rows"`
	// Note tells why the other nodes were not asked, and the remedy.
	Note string `json:"note,omitempty"`
}

// ClusterRow is the answer of one node.
type ClusterRow struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Row  *Row   `json:"row,omitempty"`
	// Error is why there is no answer.
	Error string `json:"error,omitempty"`
}

// Parameters of ClusterPath: the IDs of the nodes, each a NodeParameter, instead of the first ones;
// and the port of the other nodes' health servers, on the control socket only.
const (
	NodeParameter = "node"
	PortParameter = "port"
)

// MaxRows is the largest number of rows in an answer.
const MaxRows = 64
