package lease

import (
	"errors"
	"fmt"
	"net/netip"
)

// family holds the differences between the two address families.
type family struct {
	network    string // config key of the network
	subnet     string // prefix of the config keys of Min and Max
	tooLong    string // flannel's error for a SubnetLen out of range
	tooSmall   string // flannel's error for a network out of range
	maxLen     int    // longest SubnetLen: a subnet holds at least a device and one pod
	defaultLen int    // SubnetLen of a network that holds at least four such subnets
	bits       int
	v6         bool
}

var (
	v4Family = family{
		network: "Network", subnet: "Subnet",
		tooLong:  "SubnetLen must be less than /31",
		tooSmall: "network is too small. Minimum useful network prefix is /28",
		maxLen:   30, defaultLen: 24, bits: 32,
	}
	v6Family = family{
		network: "IPv6Network", subnet: "IPv6Subnet",
		tooLong:  "SubnetLen must be less than /127",
		tooSmall: "IPv6Network is too small. Minimum useful network prefix is /124",
		maxLen:   126, defaultLen: 64, bits: 128, v6: true,
	}
)

// pick returns the argument of this family.
func (f family) pick(v4, v6 netip.Prefix) netip.Prefix {
	if f.v6 {
		return v6
	}
	return v4
}

// pool is the range of subnets of one family.
type pool struct {
	family   family
	network  netip.Prefix
	length   int
	min, max netip.Addr
}

// parsePool checks the address families of the config's values and derives missing ones if
// possible. An unspecified address counts as missing, as in flannel.
func parsePool(f family, w wirePool) (pool, error) {
	p := pool{family: f, network: w.network.Masked(), length: int(min(w.length, 1000))}
	if w.network.IsValid() && !f.has(w.network.Addr()) {
		return pool{}, fmt.Errorf("%s: %s is of the wrong address family", f.network, w.network)
	}
	if p.network.IsValid() && p.network.Addr().IsUnspecified() && p.network.Bits() == 0 {
		p.network = netip.Prefix{}
	}
	for _, a := range []struct {
		end  string
		in   netip.Addr
		into *netip.Addr
	}{{"Min", w.min, &p.min}, {"Max", w.max, &p.max}} {
		if !a.in.IsValid() || a.in.IsUnspecified() {
			continue
		}
		if !f.has(a.in) {
			return pool{}, fmt.Errorf("%s%s: %s is of the wrong address family", f.subnet, a.end,
				a.in)
		}
		*a.into = a.in
	}
	p.derive()
	return p, nil
}

// has reports whether a is of the family and has neither a zone nor an embedded IPv4 address.
func (f family) has(a netip.Addr) bool {
	return a.BitLen() == f.bits && !a.Is4In6() && a.Zone() == ""
}

// derive sets missing values of length, min and max from the network.
func (p *pool) derive() {
	if !p.network.IsValid() {
		return
	}
	n := p.network.Bits()
	switch {
	case p.length != 0:
	case n <= p.family.defaultLen-2:
		p.length = p.family.defaultLen
	case n <= p.family.maxLen-2:
		p.length = n + 2
	}
	if p.length < n || p.length > p.family.maxLen || p.length == 0 {
		return
	}
	if !p.min.IsValid() {
		// Skip the first subnet: its first address is the network address.
		if second, ok := nextSubnet(netip.PrefixFrom(p.network.Addr(), p.length)); ok {
			p.min = second.Addr()
		}
	}
	if !p.max.IsValid() {
		p.max = netip.PrefixFrom(lastAddr(p.network), p.length).Masked().Addr()
	}
}

// check returns the first error of a pool with a valid network, with flannel's texts and order.
func (p pool) check() error {
	n := p.network
	switch {
	case p.length == 0:
		return errors.New(p.family.tooSmall)
	case p.length > p.family.maxLen:
		return errors.New(p.family.tooLong)
	case p.length < n.Bits()+2:
		return errors.New("network must be able to accommodate at least four subnets")
	case !n.Contains(p.min):
		return fmt.Errorf("%sMin is not in the range of the %s", p.family.subnet, p.family.network)
	case !n.Contains(p.max):
		return fmt.Errorf("%sMax is not in the range of the %s", p.family.subnet, p.family.network)
	case !aligned(p.min, p.length):
		return fmt.Errorf("%sMin is not on a SubnetLen boundary: %s", p.family.subnet, p.min)
	case !aligned(p.max, p.length):
		return fmt.Errorf("%sMax is not on a SubnetLen boundary: %s", p.family.subnet, p.max)
	case p.max.Less(p.min):
		return fmt.Errorf("%sMin %s is above %sMax %s: no subnet is left",
			p.family.subnet, p.min, p.family.subnet, p.max)
	}
	return nil
}

// fits reports whether s is a subnet of the pool.
func (p pool) fits(s netip.Prefix) bool {
	return s.IsValid() && p.family.has(s.Addr()) && s == s.Masked() && s.Bits() == p.length &&
		p.min.Compare(s.Addr()) <= 0 && s.Addr().Compare(p.max) <= 0
}

// aligned reports whether a is the first address of a subnet of the given length.
func aligned(a netip.Addr, length int) bool {
	return netip.PrefixFrom(a, length).Masked().Addr() == a
}

// lastAddr returns the highest address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// nextSubnet returns the subnet of the same length after p; false at the end of the address space.
func nextSubnet(p netip.Prefix) (netip.Prefix, bool) {
	next := lastAddr(p).Next()
	return netip.PrefixFrom(next, p.Bits()), next.IsValid()
}
