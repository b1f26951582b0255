package file

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"weft/lease"
	"weft/lease/spelling"
)

// topKeys returns the top-level keys of a lease file in the order of error messages. Keys are
// case-insensitive.
func topKeys() []string { return []string{"network", "nodes"} }

// nodeKeys returns the keys of a node.
func nodeKeys() []string {
	return []string{
		"name", "subnet", "subnet6", "publicIP", "publicIPv6",
		"backendType", "backendData", "backendV6Data", "fastPath",
	}
}

// content is the content of a valid file.
type content struct {
	network lease.Network
	leases  []lease.Lease // ordered by subnet
}

// node is the encoded form of an entry of nodes.
type node struct {
	Name                       string
	Subnet, Subnet6            netip.Prefix
	PublicIP, PublicIPv6       netip.Addr
	BackendType                string
	BackendData, BackendV6Data json.RawMessage
	FastPath                   bool
}

// parse parses YAML or JSON, which is a subset of YAML.
func parse(b []byte) (content, error) {
	b, err := yaml.YAMLToJSONStrict(b)
	if err != nil {
		return content{}, err
	}
	top, err := object(b, topKeys())
	if err != nil {
		return content{}, err
	}
	if top["network"] == nil || top["nodes"] == nil {
		return content{}, errors.New("both network and nodes are required")
	}
	var c content
	if c.network, err = lease.ParseNetwork(top["network"]); err == nil {
		err = c.network.Check()
	}
	if err != nil {
		return content{}, fmt.Errorf("network: %w", err)
	}
	var nodes []json.RawMessage
	if err := json.Unmarshal(top["nodes"], &nodes); err != nil {
		return content{}, fmt.Errorf("nodes: want a list of objects with %s, got %s",
			strings.Join(nodeKeys(), ", "), lease.Excerpt(top["nodes"]))
	}
	for i, raw := range nodes {
		l, err := parseNode(raw, c.network)
		if err == nil {
			err = c.add(l)
		}
		if err != nil {
			return content{}, fmt.Errorf("nodes[%d]: %w", i, err)
		}
	}
	slices.SortFunc(c.leases, lease.Compare)
	return c, nil
}

// object decodes a JSON object into its members. The keys of the result are spelled as in allowed;
// other keys are an error.
func object(b []byte, allowed []string) (map[string]json.RawMessage, error) {
	list, err := lease.Members(b)
	if err != nil {
		return nil, fmt.Errorf("want an object with %s, got %s",
			strings.Join(allowed, ", "), lease.Excerpt(b))
	}
	members := make(map[string]json.RawMessage, len(list))
	for _, m := range list {
		i := slices.IndexFunc(allowed, m.Is)
		switch {
		case i < 0:
			return nil, fmt.Errorf("unknown key %q, allowed keys are %s%s",
				m.Key, strings.Join(allowed, ", "), didYouMean(m.Key, allowed))
		case members[allowed[i]] != nil:
			return nil, fmt.Errorf("duplicate key %q", allowed[i])
		}
		members[allowed[i]] = m.Value
	}
	return members, nil
}

func didYouMean(key string, allowed []string) string {
	if nearest := spelling.Nearest(key, allowed); nearest != "" {
		return fmt.Sprintf("; did you mean %q?", nearest)
	}
	return ""
}

// parseNode parses one node and validates it apart from collisions with other nodes.
func parseNode(b []byte, network lease.Network) (lease.Lease, error) {
	n, err := decodeNode(b)
	if err != nil {
		return lease.Lease{}, err
	}
	if n.Name == "" {
		return lease.Lease{}, errors.New("name is missing")
	}
	wrap := func(err error) (lease.Lease, error) {
		return lease.Lease{}, fmt.Errorf("node %q: %w", n.Name, err)
	}
	if err := checkSubnet("subnet", n.Subnet, network.EnableIPv4, network.Network); err != nil {
		return wrap(err)
	}
	err = checkSubnet("subnet6", n.Subnet6, network.EnableIPv6, network.IPv6Network)
	if err != nil {
		return wrap(err)
	}
	switch {
	case !n.PublicIP.IsValid() && !n.PublicIPv6.IsValid():
		return wrap(errors.New("publicIP or publicIPv6 is missing"))
	case n.PublicIP.IsValid() && !n.PublicIP.Is4():
		return wrap(fmt.Errorf("publicIP: %s is not an IPv4 address", n.PublicIP))
	case n.PublicIPv6.IsValid() &&
		(!n.PublicIPv6.Is6() || n.PublicIPv6.Is4In6() || n.PublicIPv6.Zone() != ""):
		return wrap(fmt.Errorf("publicIPv6: %s is not an IPv6 address without zone", n.PublicIPv6))
	case n.PublicIP.IsUnspecified() || n.PublicIPv6.IsUnspecified():
		return wrap(errors.New("public IP is the unspecified address"))
	}
	if n.BackendType == "" {
		n.BackendType = publishedType(network.Backend.Type)
	}
	return lease.Lease{Node: n.Name, Subnet: n.Subnet, Subnet6: n.Subnet6, Attrs: lease.Attrs{
		PublicIP: n.PublicIP, PublicIPv6: n.PublicIPv6, BackendType: n.BackendType,
		BackendData: n.BackendData, BackendV6Data: n.BackendV6Data, FastPath: n.FastPath,
	}}, nil
}

// decodeNode decodes the keys of a node.
func decodeNode(b []byte) (n node, err error) {
	members, err := object(b, nodeKeys())
	if err != nil {
		return n, err
	}
	into := map[string]any{
		"name": &n.Name, "subnet": &n.Subnet, "subnet6": &n.Subnet6,
		"publicIP": &n.PublicIP, "publicIPv6": &n.PublicIPv6, "backendType": &n.BackendType,
		"backendData": &n.BackendData, "backendV6Data": &n.BackendV6Data,
		"fastPath": &n.FastPath,
	}
	for _, key := range nodeKeys() {
		value, given := members[key]
		if !given {
			continue
		}
		if err := (lease.Member{Key: key, Value: value}).Decode(into[key]); err != nil {
			return n, err
		}
	}
	return n, nil
}

// publishedType returns the backend type that a node publishes with the network's backend.
func publishedType(backend string) string {
	switch backend = strings.ToLower(backend); backend {
	case "udp", "alloc":
		return ""
	}
	return backend
}

// checkSubnet checks one family's subnet of a node.
func checkSubnet(key string, subnet netip.Prefix, enabled bool, network netip.Prefix) error {
	switch {
	case !enabled && subnet.IsValid():
		return fmt.Errorf("%s: address family is not enabled in the network config", key)
	case !enabled:
		return nil
	case !subnet.IsValid():
		return fmt.Errorf("%s is missing", key)
	case subnet != subnet.Masked():
		return fmt.Errorf("%s: %s has host bits set, want %s", key, subnet, subnet.Masked())
	case subnet.Bits() <= network.Bits() || !network.Contains(subnet.Addr()):
		return fmt.Errorf("%s: %s is not a subnet of network %s", key, subnet, network)
	}
	return nil
}

// add appends a node's lease. It returns an error if the lease collides with an earlier one.
func (c *content) add(l lease.Lease) error {
	for _, other := range c.leases {
		switch {
		case other.Node == l.Node:
			return fmt.Errorf("duplicate node %q", l.Node)
		case other.Overlaps(l):
			return fmt.Errorf("node %q: subnet overlaps that of node %q", l.Node, other.Node)
		case l.PublicIP.IsValid() && other.PublicIP == l.PublicIP,
			l.PublicIPv6.IsValid() && other.PublicIPv6 == l.PublicIPv6:
			return fmt.Errorf("node %q: same public IP as node %q", l.Node, other.Node)
		}
	}
	c.leases = append(c.leases, l)
	return nil
}
