package lease

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/lease/spelling"
)

// Network is the network config of the cluster: the JSON object that flannel keeps at
// <prefix>/config. Field names are its keys. ParseNetwork derives missing values. The fields of a
// family that is not enabled are zero, whatever its keys are: they must have no effect.
type Network struct {
	// Network and IPv6Network are the ranges of the whole cluster.
	Network, IPv6Network                   netip.Prefix
	EnableIPv4, EnableIPv6, EnableNFTables bool
	// SubnetLen is the prefix length of a node's subnet. 0 means that it cannot be derived: Check
	// returns the reason.
	SubnetLen, IPv6SubnetLen int
	// SubnetMin and SubnetMax are the first and last subnets that may be leased, inclusive.
	SubnetMin, SubnetMax         netip.Addr
	IPv6SubnetMin, IPv6SubnetMax netip.Addr
	Backend                      Backend
	// Unknown lists the unknown keys, which have no effect.
	Unknown []string
}

// Backend is the Backend object of the network config.
type Backend struct {
	// Type is in lower case: "udp" without a Backend key, "" if the object has no type.
	Type string
	// Raw is the whole object, for the backend's own keys; nil without a Backend key.
	Raw json.RawMessage
}

// NetworkKeys returns the keys of the network config.
func NetworkKeys() []string {
	var keys []string
	for _, f := range new(wireNetwork).fields() {
		keys = append(keys, f.key)
	}
	return keys
}

// wireNetwork is the stored form of Network.
type wireNetwork struct {
	enableIPv4, enableIPv6, enableNFTables bool
	v4, v6                                 wirePool
	backend                                json.RawMessage
}

// wirePool is the stored form of the keys of one family.
type wirePool struct {
	network  netip.Prefix
	length   uint
	min, max netip.Addr
}

// wireField is a key of the network config and the place of its value.
type wireField struct {
	key  string
	into any
	// enabled is the switch of the key's family; nil for the other keys.
	enabled *bool
}

// fields returns all keys. The switches of the families come first.
func (w *wireNetwork) fields() []wireField {
	return []wireField{
		{"EnableIPv4", &w.enableIPv4, nil},
		{"EnableIPv6", &w.enableIPv6, nil},
		{"EnableNFTables", &w.enableNFTables, nil},
		{"Network", &w.v4.network, &w.enableIPv4},
		{"SubnetLen", &w.v4.length, &w.enableIPv4},
		{"SubnetMin", &w.v4.min, &w.enableIPv4},
		{"SubnetMax", &w.v4.max, &w.enableIPv4},
		{"IPv6Network", &w.v6.network, &w.enableIPv6},
		{"IPv6SubnetLen", &w.v6.length, &w.enableIPv6},
		{"IPv6SubnetMin", &w.v6.min, &w.enableIPv6},
		{"IPv6SubnetMax", &w.v6.max, &w.enableIPv6},
		{"Backend", &w.backend, nil},
	}
}

// decode stores the members and returns the unknown keys. As with encoding/json, the last of
// several equal keys wins.
func (w *wireNetwork) decode(members []Member) (unknown []string, err error) {
	fields := w.fields()
	for _, f := range fields {
		for _, m := range members {
			if !m.Is(f.key) || f.enabled != nil && !*f.enabled {
				continue
			}
			if err := m.Decode(f.into); err != nil {
				return nil, err
			}
		}
	}
	for _, m := range members {
		if !slices.ContainsFunc(fields, func(f wireField) bool { return m.Is(f.key) }) {
			unknown = append(unknown, m.Key)
		}
	}
	return unknown, nil
}

// ParseNetwork decodes a network config and derives missing values. It rejects malformed text only;
// Check validates the values together, because a store that does not allocate (kube) skips that.
func ParseNetwork(b []byte) (Network, error) {
	members, err := Members(b)
	if err != nil {
		return Network{}, fmt.Errorf("decode network config: %w", err)
	}
	w := wireNetwork{enableIPv4: true}
	unknown, err := w.decode(members)
	if err != nil {
		return Network{}, fmt.Errorf("decode network config: %w", err)
	}
	backend, err := parseBackend(w.backend)
	if err != nil {
		return Network{}, err
	}
	v4, err := parsePool(v4Family, w.v4)
	if err != nil {
		return Network{}, err
	}
	v6, err := parsePool(v6Family, w.v6)
	if err != nil {
		return Network{}, err
	}
	return Network{
		Network: v4.network, IPv6Network: v6.network,
		EnableIPv4: w.enableIPv4, EnableIPv6: w.enableIPv6, EnableNFTables: w.enableNFTables,
		SubnetLen: v4.length, IPv6SubnetLen: v6.length,
		SubnetMin: v4.min, SubnetMax: v4.max,
		IPv6SubnetMin: v6.min, IPv6SubnetMax: v6.max,
		Backend: backend, Unknown: unknown,
	}, nil
}

// parseBackend distinguishes a missing Backend (udp) from one without a type (null or {}).
func parseBackend(raw json.RawMessage) (Backend, error) {
	if raw == nil {
		return Backend{Type: "udp"}, nil
	}
	b := Backend{Raw: raw}
	if string(raw) == "null" {
		return b, nil
	}
	members, err := Members(raw)
	if err != nil {
		return b, fmt.Errorf(`error decoding Backend property of config: %w, want {"Type": ...}`, err)
	}
	for _, m := range members {
		if !m.Is("Type") {
			continue
		}
		if err := m.Decode(&b.Type); err != nil {
			return b, fmt.Errorf("error decoding Backend property of config: %w", err)
		}
	}
	b.Type = strings.ToLower(b.Type)
	return b, nil
}

// CheckRanges returns an error unless at least one family is enabled and each enabled family has a
// range. This suffices if the cluster allocates the subnets (kube); flannel checks no more there.
func (n Network) CheckRanges() error {
	if !n.EnableIPv4 && !n.EnableIPv6 {
		return errors.New("none defined stack: enable at least one of EnableIPv4 and EnableIPv6")
	}
	for _, p := range n.pools() {
		if !p.network.IsValid() {
			return fmt.Errorf("please define a correct %s parameter in the flannel config%s",
				p.family.network, n.misspelt(p.family.network))
		}
	}
	return nil
}

// misspelt returns a note if an unknown key looks like the given one, else nothing.
func (n Network) misspelt(key string) string {
	for _, u := range n.Unknown {
		if spelling.Nearest(u, NetworkKeys()) == key {
			return fmt.Sprintf(": unknown key %q, did you mean %q?", u, key)
		}
	}
	return ""
}

// Check returns an error if no subnets can be leased from the network. The texts are flannel's,
// which people search for, with two exceptions: flannel accepts a Min above Max and then finds no
// subnet, and reports a config without families elsewhere.
func (n Network) Check() error {
	if err := n.CheckRanges(); err != nil {
		return err
	}
	for _, p := range n.pools() {
		if err := p.check(); err != nil {
			return err
		}
	}
	return nil
}

// Fits reports whether a lease of these subnets could be allocated from the network: a subnet for
// each enabled family and none for a disabled one, of the right length and between Min and Max.
func (n Network) Fits(subnet, subnet6 netip.Prefix) bool {
	fits := n.EnableIPv4 == subnet.IsValid() && n.EnableIPv6 == subnet6.IsValid()
	for _, p := range n.pools() {
		fits = fits && p.fits(p.family.pick(subnet, subnet6))
	}
	return fits
}

// pools returns the pools of the enabled families.
func (n Network) pools() []pool {
	var pools []pool
	if n.EnableIPv4 {
		pools = append(pools, pool{v4Family, n.Network, n.SubnetLen, n.SubnetMin, n.SubnetMax})
	}
	if n.EnableIPv6 {
		pools = append(pools, pool{v6Family, n.IPv6Network, n.IPv6SubnetLen, n.IPv6SubnetMin,
			n.IPv6SubnetMax})
	}
	return pools
}
