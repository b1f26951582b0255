package lease

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Network is the network config of the cluster: the JSON object that flannel keeps at
// <prefix>/config. Field names are its keys. ParseNetwork derives missing values.
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
}

// Backend is the Backend object of the network config.
type Backend struct {
	// Type is in lower case: "udp" without a Backend key, "" if the object has no type.
	Type string
	// Raw is the whole object, for the backend's own keys; nil without a Backend key.
	Raw json.RawMessage
}

// wireNetwork is the stored form of Network. encoding/json matches its keys in any case and ignores
// unknown ones.
type wireNetwork struct {
	EnableIPv4, EnableIPv6, EnableNFTables             bool
	Network, IPv6Network                               netip.Prefix
	SubnetLen, IPv6SubnetLen                           uint
	SubnetMin, SubnetMax, IPv6SubnetMin, IPv6SubnetMax netip.Addr
	Backend                                            json.RawMessage
}

// ParseNetwork decodes a network config and derives missing values. It rejects malformed text only;
// Check validates the values together, because a store that does not allocate (kube) skips that.
func ParseNetwork(b []byte) (Network, error) {
	w := wireNetwork{EnableIPv4: true}
	if err := json.Unmarshal(b, &w); err != nil {
		return Network{}, fmt.Errorf("decode network config: %w", err)
	}
	backend, err := parseBackend(w.Backend)
	if err != nil {
		return Network{}, err
	}
	v4, err := parsePool(v4Family, w.Network, w.SubnetLen, w.SubnetMin, w.SubnetMax)
	if err != nil {
		return Network{}, err
	}
	v6, err := parsePool(v6Family, w.IPv6Network, w.IPv6SubnetLen, w.IPv6SubnetMin, w.IPv6SubnetMax)
	if err != nil {
		return Network{}, err
	}
	return Network{
		Network: v4.network, IPv6Network: v6.network,
		EnableIPv4: w.EnableIPv4, EnableIPv6: w.EnableIPv6, EnableNFTables: w.EnableNFTables,
		SubnetLen: v4.length, IPv6SubnetLen: v6.length,
		SubnetMin: v4.min, SubnetMax: v4.max,
		IPv6SubnetMin: v6.min, IPv6SubnetMax: v6.max,
		Backend: backend,
	}, nil
}

// parseBackend distinguishes a missing Backend (udp) from one without a type (null or {}).
func parseBackend(raw json.RawMessage) (Backend, error) {
	if raw == nil {
		return Backend{Type: "udp"}, nil
	}
	var b struct{ Type string }
	if err := json.Unmarshal(raw, &b); err != nil {
		return Backend{}, fmt.Errorf("error decoding Backend property of config: %w", err)
	}
	return Backend{Type: strings.ToLower(b.Type), Raw: raw}, nil
}

// CheckRanges returns an error unless at least one family is enabled and each enabled family has a
// range. This suffices if the cluster allocates the subnets (kube); flannel checks no more there.
func (n Network) CheckRanges() error {
	if !n.EnableIPv4 && !n.EnableIPv6 {
		return errors.New("none defined stack: enable at least one of EnableIPv4 and EnableIPv6")
	}
	for _, p := range n.pools() {
		if !p.network.IsValid() {
			return fmt.Errorf("please define a correct %s parameter in the flannel config",
				p.family.network)
		}
	}
	return nil
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
