package file

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/lease"
)

const head = "network: {Network: 10.5.0.0/16}\n"

func TestParse(t *testing.T) {
	yaml := `
network:
  network: 10.5.0.0/16
  EnableIPv6: true
  IPv6Network: fd10:5::/48
  Backend: {Type: vxlan, VNI: 7}
nodes:
- {name: b, subnet: 10.5.2.0/24, subnet6: "fd10:5:0:2::/64", publicIP: 192.0.2.2, publicIPv6: "fd31::2"}
- name: a
  Subnet: 10.5.1.0/24
  subnet6: fd10:5:0:1::/64
  publicip: 192.0.2.1
  backendType: vxlan
  backendData: {VNI: 7, VtepMAC: "9a:71:00:00:00:01"}
`
	json := `{"network":{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd10:5::/48",
		"Backend":{"Type":"vxlan","VNI":7}},"nodes":[
		{"name":"a","subnet":"10.5.1.0/24","subnet6":"fd10:5:0:1::/64","publicIP":"192.0.2.1","backendType":"vxlan",
		"backendData":{"VNI":7,"VtepMAC":"9a:71:00:00:00:01"}},
		{"name":"b","subnet":"10.5.2.0/24","subnet6":"fd10:5:0:2::/64","publicIP":"192.0.2.2","publicIPv6":"fd31::2"}]}`
	for _, text := range []string{yaml, json} {
		c, err := parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if c.network.Backend.Type != "vxlan" || c.network.SubnetLen != 24 || len(c.leases) != 2 {
			t.Fatalf("got %+v", c)
		}
		a := lease.Lease{
			Node: "a", Subnet: netip.MustParsePrefix("10.5.1.0/24"), Subnet6: netip.MustParsePrefix("fd10:5:0:1::/64"),
			Attrs: lease.Attrs{
				PublicIP: netip.MustParseAddr("192.0.2.1"), BackendType: "vxlan",
				BackendData: []byte(`{"VNI":7,"VtepMAC":"9a:71:00:00:00:01"}`),
			},
		}
		if !c.leases[0].Equal(a) || c.leases[1].Node != "b" ||
			c.leases[1].BackendType != "vxlan" || c.leases[1].PublicIPv6 != netip.MustParseAddr("fd31::2") {
			t.Errorf("got %+v", c.leases)
		}
	}
}

func TestParseErrors(t *testing.T) {
	const a = "{name: a, subnet: 10.5.1.0/24, publicIP: 192.0.2.1}"
	tests := []struct{ text, want string }{
		{"", "want an object with network, nodes"},
		{"x: [", "yaml"},
		{"- a", "want an object with network, nodes"},
		{"network: {Network: 10.5.0.0/16}", "both network and nodes are required"},
		{"nodes: []", "both network and nodes are required"},
		{head + "nodes: []\nnode: []", `unknown key "node", allowed keys are network, nodes`},
		{head + "nodes: []\nnodes: []", "already set"},
		{head + "nodes: []\nNodes: []", `duplicate key "nodes"`},
		{"network: {Netwrok: 10.5.0.0/16}\nnodes: []", `network: please define a correct Network parameter ` +
			`in the flannel config: unknown key "Netwrok", did you mean "Network"?`},
		{"network: {Network: 10.5.0.0/29}\nnodes: []", "network: network is too small"},
		{"network: 5\nnodes: []", "network: decode network config: 5 is not an object"},
		{head + "nodes: {a: b}", "nodes: want a list"},
		{head + "nodes: [5]", "nodes[0]: want an object with name, subnet"},
		{head + "nodes: [{name: a, sbnet: x}]",
			`nodes[0]: unknown key "sbnet", allowed keys are name, subnet, subnet6, publicIP`},
		{head + "nodes: [{name: a, sbnet: x}]", `; did you mean "subnet"?`},
		{head + "nodes: [{name: 5}]", "nodes[0]: name is 5, want a string"},
		{head + "nodes: [{name: a, publicIP: 192.0.2}]", `nodes[0]: publicIP is "192.0.2", want an IP address`},
		{head + "nodes: [{subnet: 10.5.1.0/24}]", "nodes[0]: name is missing"},
		{head + "nodes: [{name: a, subnet: 10.5.1.0}]", `nodes[0]: subnet is "10.5.1.0", want a network such as 10.5.0.0/16`},
		{head + "nodes: [{name: a, publicIP: 192.0.2.1}]", `node "a": subnet is missing`},
		{head + "nodes: [{name: a, subnet: 10.5.1.7/24, publicIP: 192.0.2.1}]",
			"10.5.1.7/24 has host bits set, want 10.5.1.0/24"},
		{head + "nodes: [{name: a, subnet: 10.6.1.0/24, publicIP: 192.0.2.1}]",
			"10.6.1.0/24 is not a subnet of network 10.5.0.0/16"},
		{head + "nodes: [{name: a, subnet: 10.5.0.0/16, publicIP: 192.0.2.1}]", "is not a subnet of network"},
		{head + "nodes: [{name: a, subnet: 'fd10::/64', publicIP: 192.0.2.1}]", "is not a subnet of network"},
		{head + "nodes: [{name: a, subnet: 10.5.1.0/24, subnet6: 'fd10::/64', publicIP: 192.0.2.1}]",
			"address family is not enabled"},
		{head + "nodes: [{name: a, subnet: 10.5.1.0/24}]", "publicIP or publicIPv6 is missing"},
		{head + "nodes: [{name: a, subnet: 10.5.1.0/24, publicIP: 'fd31::1'}]", "fd31::1 is not an IPv4 address"},
		{head + "nodes: [{name: a, subnet: 10.5.1.0/24, publicIPv6: 192.0.2.1}]", "192.0.2.1 is not an IPv6 address"},
		{head + "nodes: [{name: a, subnet: 10.5.1.0/24, publicIP: 0.0.0.0}]", "unspecified"},
		{head + "nodes: [" + a + ", " + a + "]", `nodes[1]: duplicate node "a"`},
		{head + "nodes: [" + a + ", {name: b, subnet: 10.5.0.0/22, publicIP: 192.0.2.2}]",
			`nodes[1]: node "b": subnet overlaps that of node "a"`},
		{head + "nodes: [" + a + ", {name: b, subnet: 10.5.2.0/24, publicIP: 192.0.2.1}]",
			`node "b": same public IP as node "a"`},
	}
	for _, test := range tests {
		if _, err := parse([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s\n got %v\nwant %s", test.text, err, test.want)
		}
	}
}

func TestParseNetworkKeys(t *testing.T) {
	values := map[string]string{"Network": "10.5.0.0/16", "IPv6Network": "'fd10::/48'", "SubnetLen": "24",
		"SubnetMin": "10.5.1.0", "SubnetMax": "10.5.9.0",
		"IPv6SubnetLen": "64", "IPv6SubnetMin": "'fd10:0:0:1::'", "IPv6SubnetMax": "'fd10:0:0:9::'",
		"Backend": "{Type: udp}"}
	var text strings.Builder
	text.WriteString("nodes: []\nnetwork:\n")
	for _, key := range lease.NetworkKeys() {
		value := values[key]
		if value == "" {
			value = "true"
		}
		text.WriteString("  " + key + ": " + value + "\n")
	}
	c, err := parse([]byte(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	if n := c.network; !n.EnableIPv6 || !n.EnableNFTables || n.SubnetMax.String() != "10.5.9.0" ||
		n.IPv6SubnetMax.String() != "fd10:0:0:9::" {
		t.Errorf("got %+v", n)
	}
}

// TestParseFlannelConfig pastes a net-conf.json with keys that have no effect.
func TestParseFlannelConfig(t *testing.T) {
	c, err := parse([]byte(`{"network":{"Network":"10.5.0.0/16","MTU":1450,"IPTables":false,` +
		`"Backend":{"Type":"vxlan","VNI":4096}},"nodes":[]}`))
	if err != nil || !slices.Equal(c.network.Unknown, []string{"IPTables", "MTU"}) { // YAML sorts keys
		t.Errorf("got %+v, %v", c.network, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(head + "nodes: [{name: a, subnet: 10.5.1.0/24, publicIP: 192.0.2.1}]"))
	f.Add([]byte(`{"network":{"Network":"10.5.0.0/16"},"nodes":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parse(b)
		if err != nil {
			return
		}
		for i, l := range c.leases {
			for _, other := range c.leases[:i] {
				if l.Overlaps(other) || l.SameNode(other.Attrs) || l.Node == other.Node {
					t.Errorf("%s: %+v collides with %+v", b, l, other)
				}
			}
		}
	})
}
