package agent

import (
	"encoding/json"
	"net/netip"

	"weft/cmd/weftd/config"
	"weft/ctrl/backend"
	"weft/lease"
)

// networkStatus is the network config in force, with derived values.
type networkStatus struct {
	Network        netip.Prefix               `json:"network,omitzero"`
	SubnetLen      int                        `json:"subnet_len,omitempty"`
	SubnetMin      netip.Addr                 `json:"subnet_min,omitzero"`
	SubnetMax      netip.Addr                 `json:"subnet_max,omitzero"`
	Network6       netip.Prefix               `json:"network6,omitzero"`
	SubnetLen6     int                        `json:"subnet_len6,omitempty"`
	SubnetMin6     netip.Addr                 `json:"subnet_min6,omitzero"`
	SubnetMax6     netip.Addr                 `json:"subnet_max6,omitzero"`
	EnableNFTables bool                       `json:"enable_nftables"`
	Backend        map[string]json.RawMessage `json:"backend"` // keys as in the config
	// UnknownKeys lists keys without effect.
	UnknownKeys []string `json:"unknown_keys,omitempty"`
}

// newNetworkStatus converts a network config.
func newNetworkStatus(n lease.Network) *networkStatus {
	s := &networkStatus{
		Network: n.Network, SubnetLen: n.SubnetLen,
		SubnetMin: n.SubnetMin, SubnetMax: n.SubnetMax,
		Network6: n.IPv6Network, SubnetLen6: n.IPv6SubnetLen,
		SubnetMin6: n.IPv6SubnetMin, SubnetMax6: n.IPv6SubnetMax,
		EnableNFTables: n.EnableNFTables, Backend: backend.Settings(n),
	}
	for _, u := range backend.UnknownKeys(n) {
		s.UnknownKeys = append(s.UnknownKeys, u.String())
	}
	return s
}

// newStoreStatus describes the store that the flags select.
func newStoreStatus(l config.Lease) storeStatus {
	switch {
	case l.File != "":
		return storeStatus{Kind: "file", File: l.File}
	case l.Kube.Enabled:
		s := storeStatus{
			Kind: "kubernetes", Prefix: l.Kube.AnnotationPrefix, File: l.Kube.NetworkFile,
		}
		if l.Kube.APIURL != "" {
			s.Endpoints = []string{l.Kube.APIURL}
		}
		return s
	}
	return storeStatus{Kind: "etcd", Endpoints: l.Etcd.Endpoints, Prefix: l.Etcd.Prefix}
}
