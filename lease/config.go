package lease

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Network is the network config of the cluster: the JSON object that flannel keeps at <prefix>/config. Field names
// are its keys. ParseNetwork fills what the text leaves out.
type Network struct {
	// Network and IPv6Network are the ranges of the whole cluster.
	Network, IPv6Network                   netip.Prefix
	EnableIPv4, EnableIPv6, EnableNFTables bool
	// SubnetLen is the prefix length of one node's subnet. 0 means that none can be derived: Check says why.
	SubnetLen, IPv6SubnetLen int
	// Min and Max are the first and the last subnet that may be leased, both included.
	SubnetMin, SubnetMax         netip.Addr
	IPv6SubnetMin, IPv6SubnetMax netip.Addr
	Backend                      Backend
}

// Backend is the Backend object of the network config.
type Backend struct {
	// Type is in lower case. It is "udp" if the config has no Backend key, and "" if the object names none.
	Type string
	// Raw is the whole object for the backend's own keys; nil if the config has no Backend key.
	Raw json.RawMessage
}

// wireNetwork is Network as it is written. encoding/json matches its keys in any case and ignores all others.
type wireNetwork struct {
	EnableIPv4, EnableIPv6, EnableNFTables             bool
	Network, IPv6Network                               netip.Prefix
	SubnetLen, IPv6SubnetLen                           uint
	SubnetMin, SubnetMax, IPv6SubnetMin, IPv6SubnetMax netip.Addr
	Backend                                            json.RawMessage
}

// ParseNetwork decodes a network config and derives what it leaves out. It refuses text of the wrong form; whether
// the values make sense together is for Check, since a store that does not allocate (kube) does not ask.
func ParseNetwork(b []byte) (Network, error) {
	w := wireNetwork{EnableIPv4: true}
	if err := json.Unmarshal(b, &w); err != nil {
		return Network{}, fmt.Errorf("decode network config: %w", err)
	}
	backend, err := parseBackend(w.Backend)
	if err != nil {
		return Network{}, err
	}
	v4, err := parsePool(v4Keys, w.Network, w.SubnetLen, w.SubnetMin, w.SubnetMax)
	if err != nil {
		return Network{}, err
	}
	v6, err := parsePool(v6Keys, w.IPv6Network, w.IPv6SubnetLen, w.IPv6SubnetMin, w.IPv6SubnetMax)
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

// parseBackend tells an absent Backend (udp) from one that names no type (null or {}).
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

// CheckRanges says whether there is a range for each family that is on, and for one at least. That is all a network needs
// of which the cluster cuts the subnets itself (kube), and all that flannel asks of it there.
func (n Network) CheckRanges() error {
	if !n.EnableIPv4 && !n.EnableIPv6 {
		return errors.New("none defined stack: enable at least one of EnableIPv4 and EnableIPv6")
	}
	for _, p := range n.pools() {
		if !p.network.IsValid() {
			return fmt.Errorf("please define a correct %s parameter in the flannel config", p.keys.network)
		}
	}
	return nil
}

// Check says whether subnets can be leased from the network. The texts are flannel's, which people search for, but for
// two: flannel accepts a Min above Max and then finds no subnet, and leaves "no family" to its main.
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

// Fits reports whether a lease of these subnets is one that the network would give out: a subnet for each family
// that is on and none for one that is off, of the right length, and from Min to Max.
func (n Network) Fits(subnet, subnet6 netip.Prefix) bool {
	fits := n.EnableIPv4 == subnet.IsValid() && n.EnableIPv6 == subnet6.IsValid()
	for _, p := range n.pools() {
		fits = fits && p.fits(p.keys.pick(subnet, subnet6))
	}
	return fits
}

// pools lists the families that are on.
func (n Network) pools() []pool {
	var pools []pool
	if n.EnableIPv4 {
		pools = append(pools, pool{v4Keys, n.Network, n.SubnetLen, n.SubnetMin, n.SubnetMax})
	}
	if n.EnableIPv6 {
		pools = append(pools, pool{v6Keys, n.IPv6Network, n.IPv6SubnetLen, n.IPv6SubnetMin, n.IPv6SubnetMax})
	}
	return pools
}
