package lease

import (
	"errors"
	"fmt"
	"net/netip"
)

// family holds what differs between the two address families, so that the rest is written once.
type family struct {
	network  string // key of the network in the config
	subnet   string // how the keys of Min and Max begin
	tooLong  string // the range of SubnetLen as flannel's error says it
	tooSmall string
	maxLen   int // longest SubnetLen: a subnet holds at least a device and one pod
	wideLen  int // the default SubnetLen of a network that has room for four of them
	bits     int
	v6       bool
}

var (
	v4Keys = family{
		network: "Network", subnet: "Subnet", tooLong: "SubnetLen must be less than /31",
		tooSmall: "network is too small. Minimum useful network prefix is /28", maxLen: 30, wideLen: 24, bits: 32,
	}
	v6Keys = family{
		network: "IPv6Network", subnet: "IPv6Subnet", tooLong: "SubnetLen must be less than /127",
		tooSmall: "IPv6Network is too small. Minimum useful network prefix is /124", maxLen: 126, wideLen: 64, bits: 128, v6: true,
	}
)

// pick returns the one of the two that is of this family.
func (f family) pick(v4, v6 netip.Prefix) netip.Prefix {
	if f.v6 {
		return v6
	}
	return v4
}

// pool is one family's range of subnets.
type pool struct {
	keys     family
	network  netip.Prefix
	length   int
	min, max netip.Addr
}

// parsePool checks the families of what the config holds and derives the rest where that is possible. An address of
// zeros counts as absent, as in flannel.
func parsePool(keys family, network netip.Prefix, length uint, lo, hi netip.Addr) (pool, error) {
	p := pool{keys: keys, network: network.Masked(), length: int(min(length, 1000))}
	if network.IsValid() && !keys.has(network.Addr()) {
		return pool{}, fmt.Errorf("%s: %s is of the wrong address family", keys.network, network)
	}
	if p.network.IsValid() && p.network.Addr().IsUnspecified() && p.network.Bits() == 0 {
		p.network = netip.Prefix{}
	}
	for _, a := range []struct {
		end  string
		in   netip.Addr
		into *netip.Addr
	}{{"Min", lo, &p.min}, {"Max", hi, &p.max}} {
		if !a.in.IsValid() || a.in.IsUnspecified() {
			continue
		}
		if !keys.has(a.in) {
			return pool{}, fmt.Errorf("%s%s: %s is of the wrong address family", keys.subnet, a.end, a.in)
		}
		*a.into = a.in
	}
	p.derive()
	return p, nil
}

// has reports whether a is a plain address of the family: no zone, and no IPv4 address inside an IPv6 one.
func (f family) has(a netip.Addr) bool {
	return a.BitLen() == f.bits && !a.Is4In6() && a.Zone() == ""
}

// derive fills length, min and max as far as the network gives them.
func (p *pool) derive() {
	if !p.network.IsValid() {
		return
	}
	n := p.network.Bits()
	switch {
	case p.length != 0:
	case n <= p.keys.wideLen-2:
		p.length = p.keys.wideLen
	case n <= p.keys.maxLen-2:
		p.length = n + 2
	}
	if p.length < n || p.length > p.keys.maxLen || p.length == 0 {
		return
	}
	if !p.min.IsValid() {
		// The first subnet is skipped: its first address is the network's own.
		if second, ok := nextSubnet(netip.PrefixFrom(p.network.Addr(), p.length)); ok {
			p.min = second.Addr()
		}
	}
	if !p.max.IsValid() {
		p.max = netip.PrefixFrom(lastAddr(p.network), p.length).Masked().Addr()
	}
}

// check says what is wrong with the pool of a range that is given, in flannel's words and order.
func (p pool) check() error {
	n := p.network
	switch {
	case p.length == 0:
		return errors.New(p.keys.tooSmall)
	case p.length > p.keys.maxLen:
		return errors.New(p.keys.tooLong)
	case p.length < n.Bits()+2:
		return errors.New("network must be able to accommodate at least four subnets")
	case !n.Contains(p.min):
		return fmt.Errorf("%sMin is not in the range of the %s", p.keys.subnet, p.keys.network)
	case !n.Contains(p.max):
		return fmt.Errorf("%sMax is not in the range of the %s", p.keys.subnet, p.keys.network)
	case !aligned(p.min, p.length):
		return fmt.Errorf("%sMin is not on a SubnetLen boundary: %s", p.keys.subnet, p.min)
	case !aligned(p.max, p.length):
		return fmt.Errorf("%sMax is not on a SubnetLen boundary: %s", p.keys.subnet, p.max)
	case p.max.Less(p.min):
		return fmt.Errorf("%sMin %s is above %sMax %s: no subnet is left", p.keys.subnet, p.min, p.keys.subnet, p.max)
	}
	return nil
}

// fits reports whether s is a subnet of the pool.
func (p pool) fits(s netip.Prefix) bool {
	return s.IsValid() && p.keys.has(s.Addr()) && s == s.Masked() && s.Bits() == p.length &&
		p.min.Compare(s.Addr()) <= 0 && s.Addr().Compare(p.max) <= 0
}

// aligned reports whether a is the first address of a subnet of the given length.
func aligned(a netip.Addr, length int) bool {
	return netip.PrefixFrom(a, length).Masked().Addr() == a
}

// lastAddr is the highest address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// nextSubnet is the subnet of the same length after p, or false after the last one of the address space.
func nextSubnet(p netip.Prefix) (netip.Prefix, bool) {
	next := lastAddr(p).Next()
	return netip.PrefixFrom(next, p.Bits()), next.IsValid()
}
