package ctrl

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"weft/lease"
)

// Backend turns leases into wanted kernel state. It is a pure value: no kernel, no clock, safe for concurrent use.
type Backend interface {
	// Plan is the state that carries traffic from self to all. all may hold self, which is skipped.
	Plan(self lease.Lease, all []lease.Lease) State
	// Spec says what the daemon publishes and runs for this backend.
	Spec() Spec
}

// Spec is what a backend asks of the daemon.
type Spec struct {
	Type string // as in the network config, lower case
	// LeaseType, Data and DataV6 go into our lease: BackendType, BackendData and BackendV6Data.
	LeaseType    string
	Data, DataV6 json.RawMessage
	MTU          int  // bytes, for subnet.env and pods
	Userspace    bool // the packet engine has to run; Port is its UDP port
	Port         int
}

// Self is what a backend has to know of its own node beside the network config.
type Self struct {
	Iface  Iface
	Device string // the packet engine's device; empty while there is none
}

// NewBackend makes the backend that the network config names. The error names the key that is wrong and what is
// allowed. It touches nothing, so it may be called again whenever the interface or the device changes.
func NewBackend(n lease.Network, s Self) (Backend, error) {
	typ := strings.ToLower(n.Backend.Type)
	switch typ {
	case "udp":
		return newUDP(n, s)
	case "alloc":
		return alloc{mtu: s.Iface.MTU}, nil
	}
	return nil, fmt.Errorf("unknown backend type %q; known are alloc, udp", n.Backend.Type)
}

// alloc takes a lease and forwards nothing.
type alloc struct{ mtu int }

// Plan is empty.
func (alloc) Plan(lease.Lease, []lease.Lease) State { return State{} }

// Spec publishes no backend type, as flannel does.
func (a alloc) Spec() Spec { return Spec{Type: "alloc", MTU: a.mtu} }

// family is one address family of a network and a lease.
type family struct {
	network netip.Prefix // the whole overlay
	subnet  netip.Prefix // of one node
	public  netip.Addr   // that node's address for peers
}

// families gives the enabled families in which the lease has a subnet.
func families(n lease.Network, l lease.Lease) []family {
	var out []family
	for _, f := range []family{
		{n.Network, l.Subnet, l.PublicIP},
		{n.IPv6Network, l.Subnet6, l.PublicIPv6},
	} {
		if f.network.IsValid() && f.subnet.IsValid() {
			out = append(out, f)
		}
	}
	return out
}

// networks lists the valid networks of both families.
func networks(n lease.Network) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range []netip.Prefix{n.Network, n.IPv6Network} {
		if p.IsValid() {
			out = append(out, p.Masked())
		}
	}
	return out
}

// hostPrefix is the network address of a subnet alone: 10.5.77.0/24 gives 10.5.77.0/32.
func hostPrefix(p netip.Prefix) netip.Prefix {
	a := p.Masked().Addr()
	return netip.PrefixFrom(a, a.BitLen())
}
