package ctrl

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"weft/encap"
	"weft/lease"
)

// family is one address family of a network and a lease.
type family struct {
	v6      bool
	network netip.Prefix    // the whole overlay
	subnet  netip.Prefix    // of one node
	public  netip.Addr      // that node's address for peers
	data    json.RawMessage // what its backend published
}

// families gives the enabled families in which the lease has a subnet.
func families(n lease.Network, l lease.Lease) []family {
	var out []family
	for _, f := range []family{
		{false, n.Network, l.Subnet, l.PublicIP, l.BackendData},
		{true, n.IPv6Network, l.Subnet6, l.PublicIPv6, l.BackendV6Data},
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

// gatewayAddr is the network address of a subnet, which the overlay device of its node has: 10.5.77.0/24 gives
// 10.5.77.0.
func gatewayAddr(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr() }

// path is a node's subnet in one family, that a plan is to reach.
type path struct {
	family
	lease lease.Lease
}

// newPlan starts a wanted state: what is ours, and the paths to the other nodes of our backend type in the families
// that self has. Nodes of another type are noted as unreachable.
func newPlan(n lease.Network, leaseType string, self lease.Lease, all []lease.Lease) (State, []path) {
	s := State{Networks: networks(n)}
	has := map[bool]bool{}
	for _, f := range families(n, self) {
		has[f.v6] = true
	}
	var paths []path
	for _, l := range all {
		if l.Overlaps(self) {
			continue
		}
		for _, f := range families(n, l) {
			p := path{f, l}
			if f.public.IsValid() {
				s.Former = append(s.Former, Former{f.subnet.Masked(), f.public})
			}
			switch {
			case !has[f.v6]:
			case !claims{networks: s.Networks}.inside(f.subnet):
				// Of a former config, or of somebody who should not have a lease. What is ours has to be inside.
				s.unreachable(p, fmt.Errorf("%v is not inside the network %v", f.subnet, f.network))
			case l.BackendType != leaseType:
				s.unreachable(p, fmt.Errorf("its backend is %s, ours is %s", typeName(l.BackendType), typeName(leaseType)))
			case !f.public.IsValid():
				s.unreachable(p, errors.New("its lease has no public address of this family"))
			default:
				paths = append(paths, p)
			}
		}
	}
	return s, paths
}

// typeName shows the empty type of leases for what it stands for.
func typeName(leaseType string) string {
	if leaseType == "" {
		return "udp"
	}
	return leaseType
}

// unreachable notes that a path cannot be made.
func (s *State) unreachable(p path, why error) {
	node := p.lease.Node
	if node == "" {
		node = p.lease.Public().String()
	}
	s.Unreachable = append(s.Unreachable, Unreachable{Node: node, Subnet: p.subnet, Reason: why.Error()})
}

// decode reads the keys of the Backend object, in any case, into c, which holds the defaults. The error names the key
// and what it has to be.
func decode(n lease.Network, c any) error {
	if len(n.Backend.Raw) == 0 {
		return nil
	}
	err := json.Unmarshal(n.Backend.Raw, c)
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) && wrong.Field != "" {
		return fmt.Errorf("config key %s is a %s, it has to be a %s", wrong.Field, wrong.Value, kindName(wrong.Type.Kind().String()))
	}
	if err != nil {
		return fmt.Errorf("decode config: %w", err)
	}
	return nil
}

// kindName says in JSON's words what a Go type takes.
func kindName(kind string) string {
	switch {
	case strings.HasPrefix(kind, "int"):
		return "whole number"
	case kind == "bool":
		return "true or false"
	}
	return kind
}

// inRange checks a number of the config.
func inRange(key string, v, low, high int) error {
	if v < low || v > high {
		return fmt.Errorf("config key %s is %d, allowed are %d to %d", key, v, low, high)
	}
	return nil
}

// deviceMTU is what is left of the underlay's MTU for an overlay device. The config may name one below the
// interface's, for a path that carries less; a larger one could not leave the interface. One that is too small for IPv6
// the kernel gives no IPv6 address.
func deviceMTU(n lease.Network, s Self, configured, overhead int) (int, error) {
	mtu, of := s.Iface.MTU, "of interface "+s.Iface.Name
	if configured != 0 && configured < mtu {
		mtu, of = configured, "of the config"
	}
	least, version := encap.MinMTU4, 4
	if n.IPv6Network.IsValid() {
		least, version = encap.MinMTU6, 6
	}
	if mtu-overhead < least {
		return 0, fmt.Errorf("MTU %d %s leaves less than the %d bytes that IPv%d needs, after %d of overhead", mtu, of, least, version, overhead)
	}
	return mtu - overhead, nil
}
