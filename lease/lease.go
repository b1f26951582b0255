package lease

import (
	"encoding/json"
	"errors"
	"net/netip"
	"time"

	"weft/lease/ordered"
)

// Errors that a [Store] wraps with details, for errors.Is.
var (
	// ErrNoSubnet means that the store has no subnet for this node: the pool is full, or the node
	// is not listed.
	ErrNoSubnet = errors.New("no subnet available")
	// ErrInUse means that another live node holds the lease of this node's public IP.
	ErrInUse = errors.New("public IP is in use by another live node")
	// ErrLost means that the lease to renew no longer exists or belongs to another node.
	ErrLost = errors.New("lease lost")
)

// Attrs are the attributes that a node publishes for other nodes. The zero Addr means that the node
// has no address of that family.
type Attrs struct {
	PublicIP   netip.Addr // IPv4 address at which other nodes reach this one
	PublicIPv6 netip.Addr
	// BackendType is empty for backends that publish nothing (udp, alloc).
	BackendType string
	// BackendData and BackendV6Data are JSON that only the backend understands. They must not be
	// modified: copies of Attrs share them.
	BackendData, BackendV6Data json.RawMessage
	// FastPath announces that the node takes packets of the fast path of other nodes' kernels. It
	// is stored beside flannel's keys, never in them.
	FastPath bool `json:"-"`
}

// SameNode reports whether a and b belong to the same node. If either has an IPv4 address, IPv4
// decides; otherwise IPv6 does. Attrs without addresses belong to no node.
func (a Attrs) SameNode(b Attrs) bool {
	if a.PublicIP.IsValid() || b.PublicIP.IsValid() {
		return a.PublicIP == b.PublicIP
	}
	return a.PublicIPv6.IsValid() && a.PublicIPv6 == b.PublicIPv6
}

// Public returns the address that identifies the node in logs and errors: the IPv4 address if it
// has one, else the IPv6 address.
func (a Attrs) Public() netip.Addr {
	if a.PublicIP.IsValid() {
		return a.PublicIP
	}
	return a.PublicIPv6
}

// Equal reports whether a and b are identical. Backend data is compared as bytes.
func (a Attrs) Equal(b Attrs) bool {
	return a.PublicIP == b.PublicIP &&
		a.PublicIPv6 == b.PublicIPv6 &&
		a.BackendType == b.BackendType &&
		string(a.BackendData) == string(b.BackendData) &&
		string(a.BackendV6Data) == string(b.BackendV6Data) &&
		a.FastPath == b.FastPath
}

// Lease assigns subnets to a node. A disabled family has the zero Prefix; a valid Prefix is masked.
type Lease struct {
	// Node is the store's name for the node, for logs and metric labels: the host name if the store
	// knows it (file, kube), else the public IP (etcd, whose keys hold no names).
	Node string
	// Host is the node's host name, if Node is not one and the store knows it. It is for people:
	// two nodes may have the same.
	Host            string
	Subnet, Subnet6 netip.Prefix
	Attrs
	// Expires is set only on this node's lease and is compared as wall-clock time. Zero means that
	// the lease never expires (a reservation) or that the expiry is unknown (another node's lease).
	Expires time.Time
}

// SameSubnets reports whether l and o have the same subnets, which identify a lease in a store.
func (l Lease) SameSubnets(o Lease) bool {
	return l.Subnet == o.Subnet && l.Subnet6 == o.Subnet6
}

// Overlaps reports whether a pod address could belong to both leases.
func (l Lease) Overlaps(o Lease) bool {
	return overlap(l.Subnet, o.Subnet) || overlap(l.Subnet6, o.Subnet6)
}

// Equal reports whether l and o are the same lease with the same attributes. It ignores Expires
// and Host.
func (l Lease) Equal(o Lease) bool {
	return l.Node == o.Node && l.SameSubnets(o) && l.Attrs.Equal(o.Attrs)
}

// Compare orders leases by subnet, the order of a Set.
func Compare(a, b Lease) int {
	return compareSubnets(&a, &b)
}

func compareSubnets(a, b *Lease) int {
	if c := ordered.ComparePrefixes(a.Subnet, b.Subnet); c != 0 {
		return c
	}
	return ordered.ComparePrefixes(a.Subnet6, b.Subnet6)
}

// overlap is Prefix.Overlaps for prefixes that may be unset: an unset prefix overlaps nothing.
func overlap(a, b netip.Prefix) bool {
	return a.IsValid() && b.IsValid() && a.Overlaps(b)
}
