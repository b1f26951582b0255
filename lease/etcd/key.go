package etcd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"weft/lease"
)

// noSubnet is the IPv4 part of the key of an IPv6-only node, as written by flannel.
const noSubnet = "0.0.0.0-0"

// formatKey returns the last part of a lease's key, as flannel's MakeSubnetKey does.
func formatKey(l lease.Lease) string {
	key := noSubnet
	if l.Subnet.IsValid() {
		key = formatPart(l.Subnet)
	}
	if l.Subnet6.IsValid() {
		key += "&" + formatPart(l.Subnet6)
	}
	return key
}

func formatPart(p netip.Prefix) string {
	return fmt.Sprintf("%s-%d", p.Addr(), p.Bits())
}

// parseKey parses the last part of a lease's key into a lease with only subnets. It accepts exactly
// the results of formatKey, so that formatting the lease again gives the same key.
func parseKey(key string) (lease.Lease, error) {
	v4, v6, both := strings.Cut(key, "&")
	var l lease.Lease
	var err error
	if v4 != noSubnet || !both {
		if l.Subnet, err = parsePart(v4, netip.Addr.Is4); err != nil {
			return lease.Lease{}, fmt.Errorf("subnet key %q: %w", key, err)
		}
	}
	if both {
		if l.Subnet6, err = parsePart(v6, netip.Addr.Is6); err != nil {
			return lease.Lease{}, fmt.Errorf("subnet key %q: %w", key, err)
		}
	}
	return l, nil
}

// flannelKey matches the keys that flannel accepts (pkg/subnet/subnet.go, ParseSubnetKey): the
// subnets are the end of the key, after any other text.
var flannelKey = regexp.MustCompile(`([0-9.]+)-([0-9]+)(?:&([0-9a-f:]+)-([0-9]+))?$`)

// parseLikeFlannel parses a key that parseKey rejects as flannel does: 10.5.1.7-24 reserves all of
// 10.5.1.0/24. It leaves unreadable subnets unset, and also those of length 0, which would reserve
// every address.
func parseLikeFlannel(key string) lease.Lease {
	parts := flannelKey.FindStringSubmatch(key)
	if parts == nil {
		return lease.Lease{}
	}
	return lease.Lease{
		Subnet:  parseFlannelPart(parts[1], parts[2], netip.Addr.Is4),
		Subnet6: parseFlannelPart(parts[3], parts[4], netip.Addr.Is6),
	}
}

func parseFlannelPart(addr, bits string, family func(netip.Addr) bool) netip.Prefix {
	a, err := netip.ParseAddr(addr)
	n, bitsErr := strconv.Atoi(bits)
	if err != nil || bitsErr != nil || !family(a) || a.Is4In6() || n == 0 {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, n).Masked() // the zero Prefix if n is too long
}

func parsePart(s string, family func(netip.Addr) bool) (netip.Prefix, error) {
	addr, bits, _ := strings.Cut(s, "-")
	p, err := netip.ParsePrefix(addr + "/" + bits)
	switch {
	case err != nil:
		return netip.Prefix{}, err
	case !family(p.Addr()) || p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%s is of the wrong address family", p.Addr())
	case p.Bits() == 0 || p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%s is not the first address of a subnet", p)
	case formatPart(p) != s:
		return netip.Prefix{}, fmt.Errorf("%q is not in canonical form, want %q", s, formatPart(p))
	}
	return p, nil
}

// wireAttrs is the value of a lease's key: flannel's LeaseAttrs, with the same order of fields.
type wireAttrs struct {
	PublicIP      wireAddr
	PublicIPv6    wireAddr
	BackendType   string          `json:",omitempty"`
	BackendData   json.RawMessage `json:",omitempty"`
	BackendV6Data json.RawMessage `json:",omitempty"`
}

// wireAddr is an address that is null if unset.
type wireAddr struct{ netip.Addr }

func (a wireAddr) MarshalJSON() ([]byte, error) {
	if !a.IsValid() {
		return []byte("null"), nil
	}
	return json.Marshal(a.String())
}

func (a *wireAddr) UnmarshalJSON(b []byte) error {
	var s *string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	a.Addr = netip.Addr{}
	if s == nil {
		return nil
	}
	var err error
	a.Addr, err = netip.ParseAddr(*s)
	return err
}

// formatValue returns the value of a lease's key. An unset IPv4 address becomes "0.0.0.0", an unset
// IPv6 address null.
func formatValue(a lease.Attrs) ([]byte, error) {
	w := wireAttrs{
		wireAddr{a.PublicIP}, wireAddr{a.PublicIPv6}, a.BackendType, a.BackendData, a.BackendV6Data,
	}
	if !w.PublicIP.IsValid() {
		w.PublicIP.Addr = netip.IPv4Unspecified()
	}
	b, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode lease attributes: %w", err)
	}
	return b, nil
}

// parseValue parses the value of a lease's key.
func parseValue(b []byte) (lease.Attrs, error) {
	var w wireAttrs
	if err := json.Unmarshal(b, &w); err != nil {
		return lease.Attrs{}, fmt.Errorf("decode lease attributes: %w", err)
	}
	for _, a := range []*wireAddr{&w.PublicIP, &w.PublicIPv6} {
		if a.Is4In6() || a.Zone() != "" {
			return lease.Attrs{}, fmt.Errorf(
				"decode lease attributes: %s has a zone or an embedded IPv4 address", a)
		}
		if a.IsUnspecified() {
			a.Addr = netip.Addr{}
		}
	}
	if w.PublicIP.Is6() || w.PublicIPv6.Is4() {
		return lease.Attrs{}, errors.New("decode lease attributes: address of the wrong family")
	}
	return lease.Attrs{
		PublicIP: w.PublicIP.Addr, PublicIPv6: w.PublicIPv6.Addr,
		BackendType: w.BackendType, BackendData: w.BackendData, BackendV6Data: w.BackendV6Data,
	}, nil
}
