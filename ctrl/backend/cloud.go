package backend

import (
	"encoding/json"
	"errors"
	"fmt"

	"weft/ctrl"
	"weft/ctrl/backend/cloud"
	"weft/lease"
)

// cloudRoutes leaves packets to the network of a cloud. The routes of its route tables are not
// kernel state; package cloud keeps them.
type cloudRoutes struct {
	network lease.Network
	local   LocalNode
	config  cloud.Config
}

// awsConfig holds the keys of aws-vpc.
type awsConfig struct {
	RouteTableID json.RawMessage // a string or a list of strings
}

// gceConfig holds the keys of gce.
type gceConfig struct{ Project, Network, Zone string }

// keyPairConfig holds the keys of ali-vpc and tencent-vpc.
type keyPairConfig struct{ AccessKeyID, AccessKeySecret string }

// newCloudRoutes reads the keys of the provider that the network config names.
func newCloudRoutes(n lease.Network, l LocalNode) (Backend, error) {
	c := cloud.Config{Provider: n.Backend.Type}
	var err error
	switch c.Provider {
	case cloud.AWS:
		var keys awsConfig
		if err = decode(n, &keys); err == nil {
			c.RouteTables, err = routeTables(keys.RouteTableID)
		}
	case cloud.GCE:
		var keys gceConfig
		err = decode(n, &keys)
		c.Project, c.Network, c.Zone = keys.Project, keys.Network, keys.Zone
	default:
		var keys keyPairConfig
		err = decode(n, &keys)
		c.AccessKeyID = cloud.Secret(keys.AccessKeyID)
		c.AccessKeySecret = cloud.Secret(keys.AccessKeySecret)
		switch {
		case err != nil:
		case (c.AccessKeyID == "") != (c.AccessKeySecret == ""):
			err = errors.New("config keys AccessKeyID and AccessKeySecret belong together, " +
				"and only one is set")
		case n.IPv6Network.IsValid():
			err = errors.New("carries IPv4 only, but IPv6Network is set")
		}
	}
	if err != nil {
		return nil, err
	}
	return cloudRoutes{n, l, c}, nil
}

// routeTables returns the IDs of a RouteTableID; none if it is missing or empty.
func routeTables(raw json.RawMessage) ([]string, error) {
	var one string
	var list []string
	if len(raw) == 0 || json.Unmarshal(raw, &one) == nil && one == "" {
		return nil, nil
	}
	if one != "" {
		list = []string{one}
	} else if json.Unmarshal(raw, &list) != nil {
		return nil, fmt.Errorf("config key RouteTableID is %s, want a string or a list of strings",
			lease.Excerpt(raw))
	}
	for _, id := range list {
		if id == "" {
			return nil, errors.New("config key RouteTableID has an empty ID")
		}
	}
	return list, nil
}

// Plan wants no devices and routes, so those of an earlier backend are removed.
func (c cloudRoutes) Plan(self lease.Lease, all []lease.Lease) ctrl.State {
	s, _ := startPlan(c.network, "", self, all)
	return s
}

// Advertisement publishes no backend type, as flannel does.
func (c cloudRoutes) Advertisement() Advertisement {
	return Advertisement{Type: c.config.Provider, Attrs: c.local.attrs(""), MTU: c.local.Iface.MTU,
		Cloud: c.config}
}
