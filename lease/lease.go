package lease

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/netip"
	"time"
)

// Errors that a [Store] wraps with the detail of the case, for errors.Is.
var (
	// ErrNoSubnet says that the store has no subnet for this node: the pool is full, or the node is not listed.
	ErrNoSubnet = errors.New("no subnet to be had")
	// ErrInUse says that another live node holds the lease of our public IP.
	ErrInUse = errors.New("public IP is in use by another live node")
	// ErrLost says that the lease to be renewed is gone or is another node's now.
	ErrLost = errors.New("lease lost")
)

// Attrs is what a node tells the other nodes about itself. The zero Addr means that the family has no address.
type Attrs struct {
	PublicIP   netip.Addr // IPv4 address at which the others reach the node
	PublicIPv6 netip.Addr
	// BackendType is empty for backends that tell nothing (udp, alloc).
	BackendType string
	// BackendData and BackendV6Data are JSON that only the backend understands. They are not changed after they
	// were set here, so copies of Attrs share them.
	BackendData, BackendV6Data json.RawMessage
}

// SameNode reports whether a and b are of one node. IPv4 decides as soon as one of them has an IPv4 address; nodes
// without any are told apart by their IPv6 address. Attrs without any address are nobody's.
func (a Attrs) SameNode(b Attrs) bool {
	if a.PublicIP.IsValid() || b.PublicIP.IsValid() {
		return a.PublicIP == b.PublicIP
	}
	return a.PublicIPv6.IsValid() && a.PublicIPv6 == b.PublicIPv6
}

// Public is the address a node is named by in logs and errors: the IPv4 one if there is one.
func (a Attrs) Public() netip.Addr {
	if a.PublicIP.IsValid() {
		return a.PublicIP
	}
	return a.PublicIPv6
}

// Equal reports whether a and b say the same, backend data compared as bytes.
func (a Attrs) Equal(b Attrs) bool {
	return a.PublicIP == b.PublicIP && a.PublicIPv6 == b.PublicIPv6 && a.BackendType == b.BackendType &&
		string(a.BackendData) == string(b.BackendData) && string(a.BackendV6Data) == string(b.BackendV6Data)
}

// Lease is one node's hold on its subnets. A family that is off has the zero Prefix; a valid one is masked.
type Lease struct {
	// Node is the store's name for the node, for logs and metric labels: a host name where the store knows one
	// (file, kube), else the public IP (etcd, whose keys hold no names).
	Node            string
	Subnet, Subnet6 netip.Prefix
	Attrs
	// Expires is set on our own lease only, and is compared as wall-clock time. Zero means never (a reservation) or not known
	// (the lease of another node).
	Expires time.Time
}

// SameSubnets reports whether l and o are about the same subnets, which is what identifies a lease in a store.
func (l Lease) SameSubnets(o Lease) bool {
	return l.Subnet == o.Subnet && l.Subnet6 == o.Subnet6
}

// Overlaps reports whether a pod address could belong to both leases.
func (l Lease) Overlaps(o Lease) bool {
	return overlap(l.Subnet, o.Subnet) || overlap(l.Subnet6, o.Subnet6)
}

// Equal reports whether l and o are the same lease with the same attributes; Expires does not count.
func (l Lease) Equal(o Lease) bool {
	return l.Node == o.Node && l.SameSubnets(o) && l.Attrs.Equal(o.Attrs)
}

// Compare orders leases by subnet, the order of a Snapshot.
func Compare(a, b Lease) int {
	return cmp.Or(a.Subnet.Compare(b.Subnet), a.Subnet6.Compare(b.Subnet6))
}

// overlap is Prefix.Overlaps for prefixes that may be unset: an unset one overlaps nothing.
func overlap(a, b netip.Prefix) bool {
	return a.IsValid() && b.IsValid() && a.Overlaps(b)
}
