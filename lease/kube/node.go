package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"weft/lease"
)

// family describes an address family: its annotations and its fields of a lease.
type family struct {
	name    string
	bits    int // of an address
	enabled func(lease.Network) bool
	network func(lease.Network) netip.Prefix
	names   func(annotations) familyAnnotations
	fields  func(*lease.Lease) (subnet *netip.Prefix, public *netip.Addr, data *json.RawMessage)
}

// families returns both families, IPv4 first.
func families() [2]family {
	return [2]family{
		{
			name: "IPv4", bits: 32,
			enabled: func(n lease.Network) bool { return n.EnableIPv4 },
			network: func(n lease.Network) netip.Prefix { return n.Network },
			names:   func(a annotations) familyAnnotations { return a.v4 },
			fields: func(l *lease.Lease) (*netip.Prefix, *netip.Addr, *json.RawMessage) {
				return &l.Subnet, &l.PublicIP, &l.BackendData
			},
		},
		{
			name: "IPv6", bits: 128,
			enabled: func(n lease.Network) bool { return n.EnableIPv6 },
			network: func(n lease.Network) netip.Prefix { return n.IPv6Network },
			names:   func(a annotations) familyAnnotations { return a.v6 },
			fields: func(l *lease.Lease) (*netip.Prefix, *netip.Addr, *json.RawMessage) {
				return &l.Subnet6, &l.PublicIPv6, &l.BackendV6Data
			},
		},
	}
}

// podCIDRs returns the node's pod CIDRs. Clusters without dual-stack support set only spec.podCIDR.
func podCIDRs(n *corev1.Node) []string {
	if len(n.Spec.PodCIDRs) == 0 && n.Spec.PodCIDR != "" {
		return []string{n.Spec.PodCIDR}
	}
	return n.Spec.PodCIDRs
}

// podCIDR returns the node's subnet of the family.
func (f family) podCIDR(n *corev1.Node, network lease.Network) (netip.Prefix, error) {
	for _, text := range podCIDRs(n) {
		p, err := netip.ParsePrefix(text)
		if err != nil || p.Addr().BitLen() != f.bits || p.Addr().Is4In6() {
			continue
		}
		if in := f.network(network); p.Bits() < in.Bits() || !in.Contains(p.Addr()) {
			return netip.Prefix{}, fmt.Errorf("podCIDR %s of node %s is not inside the network %s",
				p, n.Name, in)
		}
		return p.Masked(), nil
	}
	return netip.Prefix{}, fmt.Errorf(
		"node %s has no %s podCIDR (spec.podCIDRs is %q): does the cluster allocate them?",
		n.Name, f.name, podCIDRs(n))
}

// address parses an annotation that holds an address of the family. If it is missing, address
// returns the zero Addr.
func (f family) address(n *corev1.Node, annotation string) (netip.Addr, error) {
	text := n.Annotations[annotation]
	if text == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.BitLen() != f.bits || a.Is4In6() || a.Zone() != "" ||
		a.IsUnspecified() || a.IsMulticast() {
		return netip.Addr{}, fmt.Errorf("annotation %s: %q is not an %s address of a host",
			annotation, text, f.name)
	}
	return a, nil
}

// data returns the family's backend data; nil if none.
func (f family) data(n *corev1.Node, annotation string) (json.RawMessage, error) {
	text := n.Annotations[annotation]
	switch {
	case text == "" || text == "null":
		return nil, nil
	case !json.Valid([]byte(text)):
		return nil, fmt.Errorf("annotation %s: %.40q is not JSON", annotation, text)
	}
	return json.RawMessage(text), nil
}

// subnetsOf returns a lease with the subnets of a node, which must have one per enabled family.
func subnetsOf(n *corev1.Node, network lease.Network) (lease.Lease, error) {
	l := lease.Lease{Node: n.Name}
	for _, f := range families() {
		if !f.enabled(network) {
			continue
		}
		p, err := f.podCIDR(n, network)
		if err != nil {
			return lease.Lease{}, err
		}
		subnet, _, _ := f.fields(&l)
		*subnet = p
	}
	return l, nil
}

// leaseOf returns the lease that a node publishes; ok is false if it publishes none. An invalid
// family is omitted from the lease, so that the other one remains usable. err describes invalid
// data, even if ok is true.
func leaseOf(
	n *corev1.Node, names annotations, network lease.Network,
) (l lease.Lease, ok bool, err error) {
	if n.Annotations[names.managed] != "true" {
		return lease.Lease{}, false, nil
	}
	l = lease.Lease{Node: n.Name, Attrs: lease.Attrs{BackendType: n.Annotations[names.backendType],
		FastPath: n.Annotations[names.fastPath] == "true"}}
	var invalid []error
	for _, f := range families() {
		if !f.enabled(network) {
			continue
		}
		if err := f.read(n, f.names(names), network, &l); err != nil {
			invalid = append(invalid, err)
		}
	}
	reachable := l.PublicIP.IsValid() || l.PublicIPv6.IsValid()
	if !reachable && (l.Subnet.IsValid() || l.Subnet6.IsValid()) {
		invalid = append(invalid, fmt.Errorf("neither annotation %s nor %s holds an address",
			names.v4.publicIP, names.v6.publicIP))
	}
	return l, reachable && (l.Subnet.IsValid() || l.Subnet6.IsValid()), errors.Join(invalid...)
}

// read sets the family's fields of l. On an error it leaves them unset.
func (f family) read(
	n *corev1.Node, names familyAnnotations, network lease.Network, l *lease.Lease,
) error {
	p, err := f.podCIDR(n, network)
	if err != nil {
		return err
	}
	a, err := f.address(n, names.publicIP)
	if err != nil {
		return err
	}
	d, err := f.data(n, names.data)
	if err != nil {
		return err
	}
	subnet, public, data := f.fields(l)
	*subnet, *public, *data = p, a, d
	return nil
}

// published returns the attributes to publish on n: a with its addresses replaced by those that the
// administrator set, in the families that a has. It ignores invalid addresses, which err describes.
func published(n *corev1.Node, names annotations, a lease.Attrs) (lease.Attrs, error) {
	l := lease.Lease{Attrs: a}
	var invalid []error
	for _, f := range families() {
		overwrite, err := f.address(n, f.names(names).overwrite)
		if err != nil {
			invalid = append(invalid, err)
		}
		if _, public, _ := f.fields(&l); overwrite.IsValid() && public.IsValid() {
			*public = overwrite
		}
	}
	return l.Attrs, errors.Join(invalid...)
}

// annotationChanges returns the annotations to change so that n publishes a; nil removes one.
func annotationChanges(n *corev1.Node, names annotations, a lease.Attrs) map[string]any {
	want := map[string]any{names.backendType: a.BackendType, names.managed: "true",
		names.fastPath: nil}
	if a.FastPath {
		want[names.fastPath] = "true"
	}
	l := lease.Lease{Attrs: a}
	for _, f := range families() {
		family := f.names(names)
		want[family.data], want[family.publicIP] = nil, nil
		if _, public, data := f.fields(&l); public.IsValid() {
			want[family.publicIP] = public.String()
			want[family.data] = "null"
			if *data != nil {
				want[family.data] = string(*data)
			}
		}
	}
	for name, value := range want {
		have, ok := n.Annotations[name]
		if value == nil && !ok || ok && value == have {
			delete(want, name)
		}
	}
	return want
}
