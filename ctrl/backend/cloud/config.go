package cloud

import (
	"log/slog"
	"net/netip"
	"slices"
)

// Names of the providers, which are the types of the backends.
const (
	AWS     = "aws-vpc"
	GCE     = "gce"
	Alibaba = "ali-vpc"
	Tencent = "tencent-vpc"
)

// Config selects a provider and holds the keys of its backend. Empty ones are found out.
type Config struct {
	Provider string

	RouteTables []string // of AWS

	Project, Network, Zone string // of GCE

	AccessKeyID, AccessKeySecret Secret // of Alibaba and Tencent
}

// Secret is a text that is never printed.
type Secret string

// hidden replaces a secret.
const hidden = "(hidden)"

// String hides the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hidden
}

// GoString hides the secret.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText hides the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Node is this node as the cloud's routes need it.
type Node struct {
	Networks []netip.Prefix // of all pods
	Subnets  []netip.Prefix // of the pods of this node, one per family
	Addrs    []netip.Addr   // of the underlay interface
	Public   []netip.Addr   // that the node publishes
}

// Equal reports whether two nodes are equal.
func (n Node) Equal(o Node) bool {
	return slices.Equal(n.Networks, o.Networks) && slices.Equal(n.Subnets, o.Subnets) &&
		slices.Equal(n.Addrs, o.Addrs) && slices.Equal(n.Public, o.Public)
}
