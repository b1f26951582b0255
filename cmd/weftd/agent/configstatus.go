package agent

import (
	"weft/cmd/control"
	"weft/cmd/weftd/config"
	"weft/ctrl/backend"
	"weft/lease"
)

// newNetworkStatus converts a network config.
func newNetworkStatus(n lease.Network) *control.Network {
	s := &control.Network{
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
func newStoreStatus(l config.Lease) control.Store {
	switch {
	case l.File != "":
		return control.Store{Kind: "file", File: l.File}
	case l.Kube.Enabled:
		s := control.Store{
			Kind: "kubernetes", Prefix: l.Kube.AnnotationPrefix, File: l.Kube.NetworkFile,
		}
		if l.Kube.APIURL != "" {
			s.Endpoints = []string{l.Kube.APIURL}
		}
		return s
	}
	return control.Store{Kind: "etcd", Endpoints: l.Etcd.Endpoints, Prefix: l.Etcd.Prefix}
}
