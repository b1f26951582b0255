package control

import (
	"context"
	"encoding/json"
	"net/netip"
)

// LeaseEntryPath answers with a LeaseEntry once the network config is read.
const LeaseEntryPath = "/v1/lease-entry"

// LeaseEntry is this node's entry of a lease file, with the file's keys. Without a lease it lacks
// the subnets.
type LeaseEntry struct {
	Name          string          `json:"name"`
	Subnet        netip.Prefix    `json:"subnet,omitzero"`
	Subnet6       netip.Prefix    `json:"subnet6,omitzero"`
	PublicIP      netip.Addr      `json:"publicIP,omitzero"`
	PublicIPv6    netip.Addr      `json:"publicIPv6,omitzero"`
	BackendData   json.RawMessage `json:"backendData,omitempty"`
	BackendV6Data json.RawMessage `json:"backendV6Data,omitempty"`
	FastPath      bool            `json:"fastPath,omitempty"`
}

// LeaseEntry returns the entry of the daemon's node.
func (c *Client) LeaseEntry(ctx context.Context) (LeaseEntry, error) {
	var e LeaseEntry
	err := c.Get(ctx, LeaseEntryPath, nil, &e)
	return e, err
}
