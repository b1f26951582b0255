package ctrl

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"weft/lease"
)

// network is the config of both families with a Backend object.
func network(t *testing.T, backend string) lease.Network {
	t.Helper()
	n, err := lease.ParseNetwork([]byte(`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd10:5::/48","Backend":` + backend + `}`))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// only4 is the same without IPv6.
func only4(n lease.Network) lease.Network {
	n.IPv6Network, n.EnableIPv6 = netip.Prefix{}, false
	return n
}

// only6 is the same without IPv4.
func only6(n lease.Network) lease.Network {
	n.Network, n.EnableIPv4 = netip.Prefix{}, false
	return n
}

// node is the lease of node i, with data for its backend type.
func node(i int, typ, data, data6 string) lease.Lease {
	l := lease.Lease{
		Node:    fmt.Sprintf("n%d", i),
		Subnet:  prefix(fmt.Sprintf("10.5.%d.0/24", i)),
		Subnet6: prefix(fmt.Sprintf("fd10:5:0:%d::/64", i)),
	}
	l.PublicIP, l.PublicIPv6 = addr(fmt.Sprintf("172.31.0.%d", i)), addr(fmt.Sprintf("fd31::%d", i))
	l.BackendType = typ
	if data != "" {
		l.BackendData = json.RawMessage(data)
	}
	if data6 != "" {
		l.BackendV6Data = json.RawMessage(data6)
	}
	return l
}

// me is node 1 as its backend knows it.
func me() Self {
	return Self{
		Iface: Iface{Name: "eth0", Index: 2, MTU: 1500, Addr: addr("172.31.0.1"), Addr6: addr("fd31::1"),
			Public: addr("172.31.0.1"), Public6: addr("fd31::1"), OnLink: NewPrefixSet(prefix("172.31.0.0/24"), prefix("fd31::/64"))},
		VTEP: macA, VTEP6: MAC{2, 0, 0, 0, 0, 0xc}, PrivateKey: Key{1}, Device: "flannel0",
	}
}

func route(dst, via, dev string, onLink bool) Route {
	r := ours(dst, via, dev)
	r.OnLink = onLink
	return r
}

// former is what flannel would leave for nodes.
func former(ls ...lease.Lease) []Former {
	var out []Former
	for _, l := range ls {
		out = append(out, Former{l.Subnet, l.PublicIP})
		if l.Subnet6.IsValid() {
			out = append(out, Former{l.Subnet6, l.PublicIPv6})
		}
	}
	return out
}

const vxlanData2 = `{"VNI":1,"VtepMAC":"02:00:00:00:00:0b"}`
const vxlanData2v6 = `{"VNI":1,"VtepMAC":"02:00:00:00:00:0d"}`

// publicKeyOf gives the base64 form of a made-up public key.
func publicKeyOf(b byte) string { return Key{b}.Base64() }

func wgData(b byte, port int) string {
	return fmt.Sprintf(`{"PublicKey":%q,"Port":%d}`, publicKeyOf(b), port)
}

func TestPlan(t *testing.T) {
	lo, lo6 := []Addr{{"", prefix("10.5.1.0/32")}}, []Addr{{"", prefix("fd10:5:0:1::/128")}}
	on := func(dev string, as ...[]Addr) []Addr {
		var out []Addr
		for _, s := range as {
			for _, a := range s {
				out = append(out, Addr{dev, a.Prefix})
			}
		}
		return out
	}
	vxlanLink := Link{Name: "flannel.1", Kind: KindVXLAN, MTU: 1450, MAC: macA, Up: true, IgnoreRA: true,
		VXLAN: VXLAN{VNI: 1, Port: 8472, Local: addr("172.31.0.1"), Parent: "eth0"}}
	vxlanLink6 := Link{Name: "flannel-v6.1", Kind: KindVXLAN, MTU: 1430, MAC: MAC{2, 0, 0, 0, 0, 0xc}, Up: true, IgnoreRA: true,
		VXLAN: VXLAN{VNI: 1, Port: 8472, Local: addr("fd31::1"), Parent: "eth0"}}
	vxlanPeer := node(2, "vxlan", vxlanData2, vxlanData2v6)
	far := node(3, "vxlan", `{"VNI":1,"VtepMAC":"02:00:00:00:00:03"}`, "")
	far.PublicIP, far.Subnet6 = addr("10.9.0.3"), netip.Prefix{}
	linkScope := ours("10.5.0.0/16", "", "flannel-wg")
	linkScope.LinkOnly = true

	tests := []struct {
		name    string
		network lease.Network
		self    func(*Self)
		lease   func(*lease.Lease) // of node 1
		peers   []lease.Lease
		want    State
	}{
		{
			name: "alloc", network: network(t, `{"Type":"alloc"}`), peers: []lease.Lease{node(2, "", "", "")},
			want: State{Networks: nets},
		},
		{
			name: "udp, both families", network: network(t, `{"Type":"udp"}`), peers: []lease.Lease{node(2, "", "", "")},
			want: State{
				Networks: nets, NoFOU: []FOUPort{{8285}}, Former: former(node(2, "", "", "")),
				Links:  []Link{{Name: "flannel0", Kind: KindTUN, MTU: 1472, TxQueueLen: 5000, Up: true, Foreign: true}},
				Addrs:  on("flannel0", lo, lo6),
				Routes: []Route{ours("10.5.0.0/16", "", "flannel0"), ours("fd10:5::/48", "", "flannel0")},
			},
		},
		{
			name: "udp before the engine has a device", network: only4(network(t, `{"Type":"udp","Port":9000}`)),
			self: func(s *Self) { s.Device = "" },
			want: State{Networks: nets[:1], NoFOU: []FOUPort{{9000}}},
		},
		{
			name: "udp in a mixed cluster", network: only4(network(t, `{"Type":"udp"}`)), peers: []lease.Lease{node(2, "vxlan", vxlanData2, "")},
			self: func(s *Self) { s.Device = "" },
			want: State{Networks: nets[:1], NoFOU: []FOUPort{{8285}}, Former: former(node(2, "", "", ""))[:1],
				Unreachable: []Unreachable{{"n2", prefix("10.5.2.0/24"), "its backend is vxlan, ours is udp"}}},
		},
		{
			name: "udp carried by the kernel", network: only4(network(t, `{"Type":"udp","Port":9000,"Carrier":"Kernel"}`)),
			self: func(s *Self) { s.FOU, s.Device = true, "" }, peers: []lease.Lease{node(2, "", "", "")},
			want: State{
				Networks: nets[:1], FOU: []FOUPort{{9000}}, Former: former(node(2, "", "", ""))[:1],
				Links: []Link{{Name: "flannel0", Kind: KindIPIP, MTU: 1472, Up: true,
					IPIP: IPIP{Local: addr("172.31.0.1"), FOUPort: 9000, TTL: 64, PathMTU: true}}},
				Addrs: on("flannel0", lo), Routes: []Route{route("10.5.2.0/24", "172.31.0.2", "flannel0", true)},
			},
		},
		{
			name: "udp carried by the kernel over a veth", network: only4(network(t, `{"Type":"udp","Carrier":"auto"}`)),
			self: func(s *Self) { s.FOU, s.Device, s.Iface.Kind = true, "", "veth" },
			want: State{
				Networks: nets[:1], FOU: []FOUPort{{8285}}, Addrs: on("flannel0", lo),
				Links: []Link{{Name: "flannel0", Kind: KindIPIP, MTU: 1472, Up: true, Software: true,
					IPIP: IPIP{Local: addr("172.31.0.1"), FOUPort: 8285, TTL: 64, PathMTU: true}}},
			},
		},
		{
			name: "vxlan, both families", network: network(t, `{"Type":"vxlan"}`), peers: []lease.Lease{vxlanPeer},
			want: State{
				Networks: nets, Former: former(vxlanPeer),
				Links: []Link{vxlanLink, vxlanLink6}, Addrs: append(on("flannel.1", lo), on("flannel-v6.1", lo6)...),
				Neighbours: []Neighbour{{"flannel.1", addr("10.5.2.0"), macB}, {"flannel-v6.1", addr("fd10:5:0:2::"), MAC{2, 0, 0, 0, 0, 0xd}}},
				FDB:        []FDBEntry{{"flannel.1", macB, addr("172.31.0.2")}, {"flannel-v6.1", MAC{2, 0, 0, 0, 0, 0xd}, addr("fd31::2")}},
				Routes:     []Route{route("10.5.2.0/24", "10.5.2.0", "flannel.1", true), route("fd10:5:0:2::/64", "fd10:5:0:2::", "flannel-v6.1", true)},
			},
		},
		{
			name:    "vxlan with every key, a node on the link and one behind a router",
			network: only4(network(t, `{"type":"vxlan","vni":7,"PORT":4789,"MTU":1400,"GBP":true,"Learning":true,"DirectRouting":true}`)),
			peers:   []lease.Lease{node(2, "vxlan", `{"VNI":7,"VtepMAC":"02:00:00:00:00:0b"}`, ""), farVNI(far, 7)},
			want: State{
				Networks: nets[:1], Former: append(former(vxlanPeer)[:1], former(far)...),
				Links: []Link{{Name: "flannel.7", Kind: KindVXLAN, MTU: 1350, MAC: macA, Up: true, IgnoreRA: true,
					VXLAN: VXLAN{VNI: 7, Port: 4789, Local: addr("172.31.0.1"), Parent: "eth0", Learning: true, GBP: true}}},
				Addrs:      on("flannel.7", lo),
				Neighbours: []Neighbour{{"flannel.7", addr("10.5.3.0"), MAC{2, 0, 0, 0, 0, 3}}},
				FDB:        []FDBEntry{{"flannel.7", MAC{2, 0, 0, 0, 0, 3}, addr("10.9.0.3")}},
				Routes:     []Route{route("10.5.2.0/24", "172.31.0.2", "eth0", false), route("10.5.3.0/24", "10.5.3.0", "flannel.7", true)},
			},
		},
		{
			name: "vxlan nodes that cannot be reached", network: only4(network(t, `{"Type":"vxlan"}`)),
			peers: []lease.Lease{
				node(2, "host-gw", "", ""), node(3, "vxlan", `junk`, ""), node(4, "vxlan", `{"VNI":1,"VtepMAC":"zz"}`, ""),
				node(5, "vxlan", `{"VNI":9,"VtepMAC":"02:00:00:00:00:05"}`, ""), node(6, "vxlan", `{"VtepMAC":"02:00:00:00:00:0a"}`, ""),
				noPublic(node(7, "vxlan", vxlanData2, "")), node(8, "vxlan", `{"VNI":1,"VtepMAC":"02:00:00:00:00:00:00:01"}`, ""),
				node(2, "vxlan", vxlanData2, ""), node(3, "vxlan", vxlanData2, ""),
			},
			want: State{
				Networks: nets[:1], Links: []Link{vxlanLink}, Addrs: on("flannel.1", lo),
				Former: []Former{{prefix("10.5.2.0/24"), addr("172.31.0.2")}, {prefix("10.5.3.0/24"), addr("172.31.0.3")}, {prefix("10.5.4.0/24"), addr("172.31.0.4")},
					{prefix("10.5.5.0/24"), addr("172.31.0.5")}, {prefix("10.5.6.0/24"), addr("172.31.0.6")}, {prefix("10.5.8.0/24"), addr("172.31.0.8")},
					{prefix("10.5.2.0/24"), addr("172.31.0.2")}, {prefix("10.5.3.0/24"), addr("172.31.0.3")}},
				Neighbours: []Neighbour{{"flannel.1", addr("10.5.2.0"), macB}}, FDB: []FDBEntry{{"flannel.1", macB, addr("172.31.0.2")}},
				Routes: []Route{route("10.5.2.0/24", "10.5.2.0", "flannel.1", true)},
				Unreachable: []Unreachable{
					{"n2", prefix("10.5.2.0/24"), "its backend is host-gw, ours is vxlan"},
					{"n7", prefix("10.5.7.0/24"), "its lease has no public address of this family"},
					{"n3", prefix("10.5.3.0/24"), "its lease has no readable vxlan data: invalid character 'j' looking for beginning of value"},
					{"n4", prefix("10.5.4.0/24"), "its lease has no usable VtepMAC: address zz: invalid MAC address"},
					{"n5", prefix("10.5.5.0/24"), "its VNI is 9, ours is 1"},
					{"n6", prefix("10.5.6.0/24"), "its VtepMAC 02:00:00:00:00:0a is also that of this node"},
					{"n8", prefix("10.5.8.0/24"), `its lease has no usable VtepMAC: "02:00:00:00:00:00:00:01" is not an Ethernet address`},
					{"n3", prefix("10.5.3.0/24"), "its VtepMAC 02:00:00:00:00:0b is also that of n2"},
				},
			},
		},
		{
			name: "host-gw", network: network(t, `{"Type":"host-gw"}`), peers: []lease.Lease{node(2, "host-gw", "", ""), withType(far, "host-gw")},
			want: State{
				Networks: nets, Former: append(former(vxlanPeer), former(far)...),
				Routes: []Route{route("10.5.2.0/24", "172.31.0.2", "eth0", false), route("fd10:5:0:2::/64", "fd31::2", "eth0", false)},
				Unreachable: []Unreachable{{"n3", prefix("10.5.3.0/24"),
					"10.9.0.3 is not on the link of eth0 (172.31.0.0/24 fd31::/64): use vxlan with DirectRouting"}},
			},
		},
		{
			name: "blackhole", network: network(t, `{"Type":"host-gw"}`), self: func(s *Self) { s.Blackhole = true },
			want: State{Networks: nets, Routes: []Route{
				{Dst: prefix("10.5.1.0/24"), Kind: Blackhole, Metric: blackholeMetric, Protocol: RouteProtocol},
				{Dst: prefix("fd10:5:0:1::/64"), Kind: Blackhole, Metric: blackholeMetric, Protocol: RouteProtocol}}},
		},
		{
			name: "ipip", network: network(t, `{"Type":"ipip"}`), peers: []lease.Lease{node(2, "ipip", "", "")},
			want: State{
				Networks: nets, Former: former(vxlanPeer), Addrs: on("flannel.ipip", lo),
				Links:       []Link{{Name: "flannel.ipip", Kind: KindIPIP, MTU: 1480, Up: true, IPIP: IPIP{Local: addr("172.31.0.1")}}},
				Routes:      []Route{route("10.5.2.0/24", "172.31.0.2", "flannel.ipip", true)},
				Unreachable: []Unreachable{{"n2", prefix("fd10:5:0:2::/64"), "ipip carries IPv4 only"}},
			},
		},
		{
			name: "ipip with DirectRouting", network: only4(network(t, `{"Type":"ipip","DirectRouting":true}`)), peers: []lease.Lease{node(2, "ipip", "", ""), withType(far, "ipip")},
			want: State{
				Networks: nets[:1], Former: append(former(vxlanPeer)[:1], former(far)...), Addrs: on("flannel.ipip", lo),
				Links:  []Link{{Name: "flannel.ipip", Kind: KindIPIP, MTU: 1480, Up: true, IPIP: IPIP{Local: addr("172.31.0.1")}}},
				Routes: []Route{route("10.5.2.0/24", "172.31.0.2", "eth0", true), route("10.5.3.0/24", "10.9.0.3", "flannel.ipip", true)},
			},
		},
		{
			name:    "wireguard, a device per family",
			network: network(t, `{"Type":"wireguard","PSK":"`+Key{7}.Base64()+`","PersistentKeepaliveInterval":25,"ListenPort":5000,"ListenPortV6":5001,"MTU":1400}`),
			peers:   []lease.Lease{node(2, "wireguard", wgData(2, 6000), wgData(2, 0))},
			want: State{
				Networks: nets, Former: former(vxlanPeer),
				Links:   []Link{{Name: "flannel-wg", Kind: KindWireGuard, MTU: 1320, Up: true}, {Name: "flannel-wg-v6", Kind: KindWireGuard, MTU: 1320, Up: true}},
				Tunnels: []Tunnel{{"flannel-wg", Key{1}, 5000}, {"flannel-wg-v6", Key{1}, 5001}},
				Addrs:   append(on("flannel-wg", lo), on("flannel-wg-v6", lo6)...),
				Routes:  []Route{linkScope, ours("fd10:5::/48", "", "flannel-wg-v6")},
				Peers: []Peer{
					{Dev: "flannel-wg", PublicKey: Key{2}, PSK: Key{7}, Endpoint: netip.MustParseAddrPort("172.31.0.2:6000"), Keepalive: 25 * time.Second, Allowed: prefix("10.5.2.0/24")},
					{Dev: "flannel-wg-v6", PublicKey: Key{2}, PSK: Key{7}, Endpoint: netip.MustParseAddrPort("[fd31::2]:5001"), Keepalive: 25 * time.Second, Allowed6: prefix("fd10:5:0:2::/64")},
				},
			},
		},
		{
			name: "wireguard, one device", network: network(t, `{"Type":"wireguard","Mode":"auto"}`),
			peers: []lease.Lease{node(2, "wireguard", wgData(2, 6000), wgData(2, 51821)), withoutV4(node(3, "wireguard", "", wgData(3, 6001)))},
			want: State{
				Networks: nets, Former: append(former(vxlanPeer), Former{prefix("fd10:5:0:3::/64"), addr("fd31::3")}),
				Links:   []Link{{Name: "flannel-wg", Kind: KindWireGuard, MTU: 1420, Up: true}},
				Tunnels: []Tunnel{{"flannel-wg", Key{1}, 51820}},
				Addrs:   on("flannel-wg", lo, lo6),
				Routes:  []Route{linkScope, ours("fd10:5::/48", "", "flannel-wg")},
				Peers: []Peer{
					{Dev: "flannel-wg", PublicKey: Key{2}, Endpoint: netip.MustParseAddrPort("172.31.0.2:6000"), Allowed: prefix("10.5.2.0/24"), Allowed6: prefix("fd10:5:0:2::/64")},
					{Dev: "flannel-wg", PublicKey: Key{3}, Endpoint: netip.MustParseAddrPort("[fd31::3]:6001"), Allowed6: prefix("fd10:5:0:3::/64")},
				},
			},
		},
		{
			name: "wireguard, one device, over IPv6 only at our end: flannel listens on the port of its IPv4 data", network: network(t, `{"Type":"wireguard","Mode":"ipv6"}`),
			lease: func(l *lease.Lease) { l.Subnet = netip.Prefix{} },
			peers: []lease.Lease{node(2, "wireguard", wgData(2, 6000), wgData(2, 51821))},
			want: State{
				Networks: nets, Former: former(vxlanPeer),
				Links:   []Link{{Name: "flannel-wg", Kind: KindWireGuard, MTU: 1420, Up: true}},
				Tunnels: []Tunnel{{"flannel-wg", Key{1}, 51820}}, Addrs: on("flannel-wg", lo6), Routes: []Route{ours("fd10:5::/48", "", "flannel-wg")},
				Peers: []Peer{{Dev: "flannel-wg", PublicKey: Key{2}, Endpoint: netip.MustParseAddrPort("[fd31::2]:6000"), Allowed6: prefix("fd10:5:0:2::/64")}},
			},
		},
		{
			name: "wireguard, one device, two nodes with one key", network: network(t, `{"Type":"wireguard","Mode":"auto"}`),
			peers: []lease.Lease{withoutV6(node(2, "wireguard", wgData(2, 1), "")), withoutV4(node(3, "wireguard", "", wgData(2, 1)))},
			want: State{
				Networks: nets, Former: []Former{{prefix("10.5.2.0/24"), addr("172.31.0.2")}, {prefix("fd10:5:0:3::/64"), addr("fd31::3")}},
				Links:   []Link{{Name: "flannel-wg", Kind: KindWireGuard, MTU: 1420, Up: true}},
				Tunnels: []Tunnel{{"flannel-wg", Key{1}, 51820}}, Addrs: on("flannel-wg", lo, lo6),
				Routes:      []Route{linkScope, ours("fd10:5::/48", "", "flannel-wg")},
				Peers:       []Peer{{Dev: "flannel-wg", PublicKey: Key{2}, Endpoint: netip.MustParseAddrPort("172.31.0.2:1"), Allowed: prefix("10.5.2.0/24")}},
				Unreachable: []Unreachable{{"n3", prefix("fd10:5:0:3::/64"), "its PublicKey is also that of another node"}},
			},
		},
		{
			name: "wireguard nodes that cannot be reached", network: only4(network(t, `{"Type":"wireguard"}`)),
			peers: []lease.Lease{
				node(2, "wireguard", "junk", ""), node(3, "wireguard", `{"PublicKey":"x"}`, ""), node(4, "wireguard", wgData(4, 70000), ""),
				node(5, "wireguard", wgData(5, 0), ""), node(6, "wireguard", wgData(5, 0), ""), node(7, "wireguard", `{"PublicKey":"`+ownPublic(t)+`"}`, ""),
				node(8, "wireguard", `{"PublicKey":"AAAA"}`, ""),
			},
			want: State{
				Networks: nets[:1], Former: former4(2, 3, 4, 5, 6, 7, 8),
				Links:   []Link{{Name: "flannel-wg", Kind: KindWireGuard, MTU: 1420, Up: true}},
				Tunnels: []Tunnel{{"flannel-wg", Key{1}, 51820}}, Addrs: on("flannel-wg", lo), Routes: []Route{linkScope},
				Peers: []Peer{{Dev: "flannel-wg", PublicKey: Key{5}, Endpoint: netip.MustParseAddrPort("172.31.0.5:51820"), Allowed: prefix("10.5.5.0/24")}},
				Unreachable: []Unreachable{
					{"n2", prefix("10.5.2.0/24"), "its lease has no readable wireguard data: invalid character 'j' looking for beginning of value"},
					{"n3", prefix("10.5.3.0/24"), "its lease has no usable PublicKey: key is not base64"},
					{"n4", prefix("10.5.4.0/24"), "its port 70000 is not in 1 to 65535"},
					{"n6", prefix("10.5.6.0/24"), "its PublicKey is also that of another node"},
					{"n7", prefix("10.5.7.0/24"), "its PublicKey is ours"},
					{"n8", prefix("10.5.8.0/24"), "its lease has no usable PublicKey: key has 3 bytes, not 32"},
				},
			},
		},
		{
			name:    "wireguard over IPv6 to a node without",
			network: only4(network(t, `{"Type":"wireguard","Mode":"ipv6"}`)), peers: []lease.Lease{noPublic6(node(2, "wireguard", wgData(2, 1), ""))},
			want: State{
				Networks: nets[:1], Former: former4(2), Links: []Link{{Name: "flannel-wg", Kind: KindWireGuard, MTU: 1420, Up: true}},
				Tunnels: []Tunnel{{"flannel-wg", Key{1}, 51820}}, Addrs: on("flannel-wg", lo), Routes: []Route{linkScope},
				Unreachable: []Unreachable{{"n2", prefix("10.5.2.0/24"), "its lease has no address for mode ipv6"}},
			},
		},
		{
			name:    "extension",
			network: only4(network(t, `{"Type":"extension","PreStartupCommand":"p","PostStartupCommand":"post","SubnetAddCommand":"a","SubnetRemoveCommand":"r"}`)),
			peers:   []lease.Lease{node(2, "extension", `"printed"`, ""), node(3, "extension", "", ""), node(4, "extension", "7", "")},
			want: State{
				Networks: nets[:1], Former: former4(2, 3, 4),
				Commands: []Command{
					{ID: "startup", Add: "post", Env: "NETWORK=10.5.0.0/16\nSUBNET=10.5.1.0/24\nIPV6SUBNET=fd10:5:0:1::/64\nPUBLIC_IP=172.31.0.1\nPUBLIC_IPV6=fd31::1"},
					{ID: "10.5.2.0/24", Add: "a", Remove: "r", Env: "SUBNET=10.5.2.0/24\nPUBLIC_IP=172.31.0.2", Stdin: "printed"},
					{ID: "10.5.3.0/24", Add: "a", Remove: "r", Env: "SUBNET=10.5.3.0/24\nPUBLIC_IP=172.31.0.3"},
				},
				Unreachable: []Unreachable{{"n4", prefix("10.5.4.0/24"),
					"its lease has no readable extension data: json: cannot unmarshal number into Go value of type string"}},
			},
		},
		{
			name: "extension without an address", network: only4(network(t, `{"Type":"extension","PostStartupCommand":"post"}`)),
			lease: func(l *lease.Lease) {
				l.Subnet6, l.PublicIPv6, l.PublicIP = netip.Prefix{}, netip.Addr{}, netip.Addr{}
			},
			want: State{Networks: nets[:1], Commands: []Command{
				{ID: "startup", Add: "post", Env: "NETWORK=10.5.0.0/16\nSUBNET=10.5.1.0/24\nIPV6SUBNET=\nPUBLIC_IP=\nPUBLIC_IPV6="}}},
		},
		{
			name: "a subnet of another network", network: only4(network(t, `{"Type":"host-gw"}`)), peers: []lease.Lease{elsewhere(node(2, "host-gw", "", ""))},
			want: State{Networks: nets[:1], Former: []Former{{prefix("10.99.2.0/24"), addr("172.31.0.2")}},
				Unreachable: []Unreachable{{"n2", prefix("10.99.2.0/24"), "10.99.2.0/24 is not inside the network 10.5.0.0/16"}}},
		},
		{
			name: "a node without a name", network: only4(network(t, `{"Type":"host-gw"}`)), peers: []lease.Lease{noName(node(2, "", "", ""))},
			want: State{Networks: nets[:1], Former: former4(2), Unreachable: []Unreachable{{"172.31.0.2", prefix("10.5.2.0/24"), "its backend is udp, ours is host-gw"}}},
		},
		{
			name: "extension without commands for nodes", network: only4(network(t, `{"Type":"extension"}`)), peers: []lease.Lease{node(2, "extension", "", "")},
			want: State{Networks: nets[:1], Former: former4(2)},
		},
		{
			name: "families that only one side has", network: network(t, `{"Type":"host-gw"}`), lease: func(l *lease.Lease) { l.Subnet6 = netip.Prefix{} },
			peers: []lease.Lease{node(2, "host-gw", "", "")},
			want:  State{Networks: nets, Former: former(vxlanPeer), Routes: []Route{route("10.5.2.0/24", "172.31.0.2", "eth0", false)}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := me()
			if tt.self != nil {
				tt.self(&s)
			}
			self := node(1, "", "", "")
			if tt.lease != nil {
				tt.lease(&self)
			}
			b, err := NewBackend(tt.network, s)
			if err != nil {
				t.Fatal(err)
			}
			got := b.Plan(self, append([]lease.Lease{self}, tt.peers...))
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", dumpState(got), dumpState(tt.want))
			}
		})
	}
}

func dumpState(s State) string {
	v := reflect.ValueOf(s)
	var out strings.Builder
	for i := range v.NumField() {
		for j := range v.Field(i).Len() {
			fmt.Fprintf(&out, "  %s %+v\n", v.Type().Field(i).Name, v.Field(i).Index(j).Interface())
		}
	}
	return out.String()
}

func withType(l lease.Lease, typ string) lease.Lease { l.BackendType = typ; return l }
func elsewhere(l lease.Lease) lease.Lease            { l.Subnet = prefix("10.99.2.0/24"); return l }
func noName(l lease.Lease) lease.Lease               { l.Node = ""; return l }
func noPublic(l lease.Lease) lease.Lease             { l.PublicIP = netip.Addr{}; return l }
func noPublic6(l lease.Lease) lease.Lease            { l.PublicIPv6 = netip.Addr{}; return l }
func withoutV4(l lease.Lease) lease.Lease {
	l.Subnet, l.PublicIP = netip.Prefix{}, netip.Addr{}
	return l
}
func withoutV6(l lease.Lease) lease.Lease {
	l.Subnet6, l.PublicIPv6 = netip.Prefix{}, netip.Addr{}
	return l
}
func farVNI(l lease.Lease, vni int) lease.Lease {
	l.BackendData = json.RawMessage(fmt.Sprintf(`{"VNI":%d,"VtepMAC":"02:00:00:00:00:03"}`, vni))
	return l
}

func former4(is ...int) []Former {
	var out []Former
	for _, i := range is {
		l := node(i, "", "", "")
		out = append(out, Former{l.Subnet, l.PublicIP})
	}
	return out
}

func ownPublic(t *testing.T) string {
	t.Helper()
	k, err := Key{1}.public()
	if err != nil {
		t.Fatal(err)
	}
	return k.Base64()
}
