package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"weft/lease"
)

// family is one address family of a node: which annotations are its own, and where its part of a lease lies.
type family struct {
	name    string
	bits    int // of an address
	enabled func(lease.Network) bool
	network func(lease.Network) netip.Prefix
	names   func(annotations) familyAnnotations
	part    func(*lease.Lease) (subnet *netip.Prefix, public *netip.Addr, data *json.RawMessage)
}

// families are both, IPv4 first.
func families() [2]family {
	return [2]family{
		{
			name: "IPv4", bits: 32,
			enabled: func(n lease.Network) bool { return n.EnableIPv4 },
			network: func(n lease.Network) netip.Prefix { return n.Network },
			names:   func(a annotations) familyAnnotations { return a.v4 },
			part: func(l *lease.Lease) (*netip.Prefix, *netip.Addr, *json.RawMessage) {
				return &l.Subnet, &l.PublicIP, &l.BackendData
			},
		},
		{
			name: "IPv6", bits: 128,
			enabled: func(n lease.Network) bool { return n.EnableIPv6 },
			network: func(n lease.Network) netip.Prefix { return n.IPv6Network },
			names:   func(a annotations) familyAnnotations { return a.v6 },
			part: func(l *lease.Lease) (*netip.Prefix, *netip.Addr, *json.RawMessage) {
				return &l.Subnet6, &l.PublicIPv6, &l.BackendV6Data
			},
		},
	}
}

// podCIDRs lists what the cluster gave the node. spec.podCIDR is what clusters without dual stack fill alone.
func podCIDRs(n *corev1.Node) []string {
	if len(n.Spec.PodCIDRs) == 0 && n.Spec.PodCIDR != "" {
		return []string{n.Spec.PodCIDR}
	}
	return n.Spec.PodCIDRs
}

// podCIDR is the node's subnet of the family, or an error that says what is missing.
func (f family) podCIDR(n *corev1.Node, network lease.Network) (netip.Prefix, error) {
	for _, text := range podCIDRs(n) {
		p, err := netip.ParsePrefix(text)
		if err != nil || p.Addr().BitLen() != f.bits || p.Addr().Is4In6() {
			continue
		}
		if in := f.network(network); p.Bits() < in.Bits() || !in.Contains(p.Addr()) {
			return netip.Prefix{}, fmt.Errorf("podCIDR %s of node %s is not inside the network %s", p, n.Name, in)
		}
		return p.Masked(), nil
	}
	return netip.Prefix{}, fmt.Errorf("node %s has no %s podCIDR (spec.podCIDRs is %q): does the cluster allocate them?",
		n.Name, f.name, podCIDRs(n))
}

// address reads one of the annotations that hold an address of the family. An absent one is the zero Addr.
func (f family) address(n *corev1.Node, annotation string) (netip.Addr, error) {
	text := n.Annotations[annotation]
	if text == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.BitLen() != f.bits || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
		return netip.Addr{}, fmt.Errorf("annotation %s: %q is not an %s address of a host", annotation, text, f.name)
	}
	return a, nil
}

// data reads the family's backend data; nil if there is none.
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

// subnetsOf are the subnets of a node, of which it must have one for each family that is on.
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
		subnet, _, _ := f.part(&l)
		*subnet = p
	}
	return l, nil
}

// leaseOf reads the lease that a node publishes. ok is false if it publishes none. A family with something wrong is left
// out of the lease, so that it cannot take the other along; err says what was wrong, also if ok.
func leaseOf(n *corev1.Node, names annotations, network lease.Network) (l lease.Lease, ok bool, err error) {
	if n.Annotations[names.managed] != "true" {
		return lease.Lease{}, false, nil
	}
	l = lease.Lease{Node: n.Name, Attrs: lease.Attrs{BackendType: n.Annotations[names.backendType]}}
	var wrong []error
	for _, f := range families() {
		if !f.enabled(network) {
			continue
		}
		if err := f.read(n, f.names(names), network, &l); err != nil {
			wrong = append(wrong, err)
		}
	}
	reachable := l.PublicIP.IsValid() || l.PublicIPv6.IsValid()
	if !reachable && (l.Subnet.IsValid() || l.Subnet6.IsValid()) {
		wrong = append(wrong, fmt.Errorf("neither annotation %s nor %s holds an address", names.v4.publicIP, names.v6.publicIP))
	}
	return l, reachable && (l.Subnet.IsValid() || l.Subnet6.IsValid()), errors.Join(wrong...)
}

// read fills the family's part of l, or leaves it unset and says why.
func (f family) read(n *corev1.Node, names familyAnnotations, network lease.Network, l *lease.Lease) error {
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
	subnet, public, data := f.part(l)
	*subnet, *public, *data = p, a, d
	return nil
}

// published is what a node with these attributes says of itself: a with the administrator's addresses in place of its
// own. err names those that are no addresses, which change nothing.
func published(n *corev1.Node, names annotations, a lease.Attrs) (lease.Attrs, error) {
	l := lease.Lease{Attrs: a}
	var wrong []error
	for _, f := range families() {
		over, err := f.address(n, f.names(names).overwrite)
		if err != nil {
			wrong = append(wrong, err)
		}
		if _, public, _ := f.part(&l); over.IsValid() {
			*public = over
		}
	}
	return l.Attrs, errors.Join(wrong...)
}

// changes lists the annotations that must change for the node to say a; nil stands for one that must go.
func changes(n *corev1.Node, names annotations, a lease.Attrs) map[string]any {
	want := map[string]any{names.backendType: a.BackendType, names.managed: "true"}
	l := lease.Lease{Attrs: a}
	for _, f := range families() {
		own := f.names(names)
		want[own.data], want[own.publicIP] = nil, nil
		if _, public, data := f.part(&l); public.IsValid() && !(needsData(a.BackendType) && *data == nil) {
			want[own.publicIP] = public.String()
			want[own.data] = "null"
			if *data != nil {
				want[own.data] = string(*data)
			}
		}
	}
	for name, value := range want {
		have, there := n.Annotations[name]
		if value == nil && !there || there && value == have {
			delete(want, name)
		}
	}
	return want
}

// needsData reports whether a node of this backend is of no use to others in a family for which it publishes no data.
func needsData(backendType string) bool { return backendType == "vxlan" || backendType == "wireguard" }
