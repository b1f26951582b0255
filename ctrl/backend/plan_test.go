package backend

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/ctrl"
	"weft/lease"
)

func TestPlan(t *testing.T) {
	lo, lo6 := []ctrl.Addr{{Prefix: prefix("10.5.1.0/32")}}, []ctrl.Addr{{Prefix: prefix("fd10:5:0:1::/128")}}
	on := func(dev string, as ...[]ctrl.Addr) []ctrl.Addr {
		var out []ctrl.Addr
		for _, s := range as {
			for _, a := range s {
				out = append(out, ctrl.Addr{Dev: dev, Prefix: a.Prefix})
			}
		}
		return out
	}
	vxlanLink := ctrl.Link{Name: "flannel.1", Kind: ctrl.KindVXLAN, MTU: 1450, MAC: macA, Up: true, AcceptRAOff: true,
		VXLAN: ctrl.VXLAN{VNI: 1, Port: 8472, Local: addr("172.31.0.1"), Parent: "eth0"}}
	vxlanLink6 := ctrl.Link{Name: "flannel-v6.1", Kind: ctrl.KindVXLAN, MTU: 1430, MAC: ctrl.MAC{2, 0, 0, 0, 0, 0xc},
		Up: true, AcceptRAOff: true,
		VXLAN: ctrl.VXLAN{VNI: 1, Port: 8472, Local: addr("fd31::1"), Parent: "eth0"}}
	vxlanPeer := node(2, "vxlan", vxlanData2, vxlanData2v6)
	far := node(3, "vxlan", `{"VNI":1,"VtepMAC":"02:00:00:00:00:03"}`, "")
	far.PublicIP, far.Subnet6 = addr("10.9.0.3"), netip.Prefix{}
	linkScope := ours("10.5.0.0/16", "", "flannel-wg")
	linkScope.Scope = ctrl.ScopeLink

	tests := []struct {
		name    string
		network lease.Network
		self    func(*LocalNode)
		lease   func(*lease.Lease) // of node 1
		peers   []lease.Lease
		want    ctrl.State
	}{
		{
			name: "alloc", network: network(t, `{"Type":"alloc"}`), peers: []lease.Lease{node(2, "", "", "")},
			want: ctrl.State{Networks: nets},
		},
		{
			name: "aws-vpc", network: network(t, `{"Type":"aws-vpc"}`),
			peers: []lease.Lease{node(2, "", "", "")},
			want:  ctrl.State{Networks: nets, FlannelRoutes: former(node(2, "", "", ""))},
		},
		{
			name: "udp, both families", network: network(t, `{"Type":"udp"}`),
			peers: []lease.Lease{node(2, "", "", "")},
			want: ctrl.State{
				Networks: nets, FreePorts: []ctrl.FOUPort{{Port: 8285}}, FlannelRoutes: former(node(2, "", "", "")),
				Links: []ctrl.Link{{Name: "flannel0", Kind: ctrl.KindTUN, MTU: 1472, TxQueueLen: 5000, Up: true,
					External: true}},
				Addrs:  on("flannel0", lo, lo6),
				Routes: []ctrl.Route{ours("10.5.0.0/16", "", "flannel0"), ours("fd10:5::/48", "", "flannel0")},
			},
		},
		{
			name: "udp before the engine has a device", network: only4(network(t, `{"Type":"udp","Port":9000}`)),
			self: func(s *LocalNode) { s.Device = "" },
			want: ctrl.State{Networks: nets[:1], FreePorts: []ctrl.FOUPort{{Port: 9000}}},
		},
		{
			name: "udp in a mixed cluster", network: only4(network(t, `{"Type":"udp"}`)),
			// The third names the type that an empty one means.
			peers: []lease.Lease{node(2, "vxlan", vxlanData2, ""), node(3, "udp", "", "")},
			self:  func(s *LocalNode) { s.Device = "" },
			want: ctrl.State{Networks: nets[:1], FreePorts: []ctrl.FOUPort{{Port: 8285}},
				FlannelRoutes: slices.Concat(former(node(2, "", "", ""))[:1], former(node(3, "", "", ""))[:1]),
				Unreachable: []ctrl.Unreachable{{Node: "n2", Subnet: prefix("10.5.2.0/24"),
					Reason: "backend is vxlan, this node's is udp"}}},
		},
		{
			name: "udp carried by the kernel", network: only4(network(t,
				`{"Type":"udp","Port":9000,"Carrier":"Kernel"}`)),
			self: func(s *LocalNode) { s.FOU, s.Device = true, "" }, peers: []lease.Lease{node(2, "", "", "")},
			want: ctrl.State{
				Networks: nets[:1], FOU: []ctrl.FOUPort{{Port: 9000}}, FlannelRoutes: former(node(2, "", "", ""))[:1],
				Links: []ctrl.Link{{Name: "flannel0", Kind: ctrl.KindIPIP, MTU: 1472, Up: true,
					IPIP: ctrl.IPIP{Local: addr("172.31.0.1"), FOUPort: 9000, TTL: 64, PathMTU: true}}},
				Addrs: on("flannel0", lo), Routes: []ctrl.Route{route("10.5.2.0/24", "172.31.0.2", "flannel0", true)},
			},
		},
		{
			name:    "udp carried by the kernel over a veth",
			network: only4(network(t, `{"Type":"udp","Carrier":"auto"}`)),
			self:    func(s *LocalNode) { s.FOU, s.Device, s.Iface.Kind = true, "", "veth" },
			want: ctrl.State{
				Networks: nets[:1], FOU: []ctrl.FOUPort{{Port: 8285}}, Addrs: on("flannel0", lo),
				Links: []ctrl.Link{{Name: "flannel0", Kind: ctrl.KindIPIP, MTU: 1472, Up: true, NoTxOffload: true,
					IPIP: ctrl.IPIP{Local: addr("172.31.0.1"), FOUPort: 8285, TTL: 64, PathMTU: true}}},
			},
		},
		{
			name: "vxlan, both families", network: network(t, `{"Type":"vxlan"}`), peers: []lease.Lease{vxlanPeer},
			want: ctrl.State{
				Networks: nets, FlannelRoutes: former(vxlanPeer),
				Links: []ctrl.Link{vxlanLink, vxlanLink6},
				Addrs: append(on("flannel.1", lo), on("flannel-v6.1", lo6)...),
				Neighbours: []ctrl.Neighbour{{Dev: "flannel.1", IP: addr("10.5.2.0"), MAC: macB},
					{Dev: "flannel-v6.1", IP: addr("fd10:5:0:2::"), MAC: ctrl.MAC{2, 0, 0, 0, 0, 0xd}}},
				FDB: []ctrl.FDBEntry{{Dev: "flannel.1", MAC: macB, Dst: addr("172.31.0.2")},
					{Dev: "flannel-v6.1", MAC: ctrl.MAC{2, 0, 0, 0, 0, 0xd}, Dst: addr("fd31::2")}},
				Routes: []ctrl.Route{route("10.5.2.0/24", "10.5.2.0", "flannel.1", true),
					route("fd10:5:0:2::/64", "fd10:5:0:2::", "flannel-v6.1", true)},
			},
		},
		{
			name: "vxlan with every key, a node on the link and one behind a router",
			network: only4(network(t,
				`{"type":"vxlan","vni":7,"PORT":4789,"MTU":1400,"GBP":true,"Learning":true,"DirectRouting":true}`)),
			peers: []lease.Lease{node(2, "vxlan", `{"VNI":7,"VtepMAC":"02:00:00:00:00:0b"}`, ""), farVNI(far, 7)},
			want: ctrl.State{
				Networks: nets[:1], FlannelRoutes: append(former(vxlanPeer)[:1], former(far)...),
				Links: []ctrl.Link{{Name: "flannel.7", Kind: ctrl.KindVXLAN, MTU: 1350, MAC: macA, Up: true,
					AcceptRAOff: true,
					VXLAN: ctrl.VXLAN{VNI: 7, Port: 4789, Local: addr("172.31.0.1"), Parent: "eth0", Learning: true,
						GBP: true}}},
				Addrs:      on("flannel.7", lo),
				Neighbours: []ctrl.Neighbour{{Dev: "flannel.7", IP: addr("10.5.3.0"), MAC: ctrl.MAC{2, 0, 0, 0, 0, 3}}},
				FDB:        []ctrl.FDBEntry{{Dev: "flannel.7", MAC: ctrl.MAC{2, 0, 0, 0, 0, 3}, Dst: addr("10.9.0.3")}},
				Routes: []ctrl.Route{route("10.5.2.0/24", "172.31.0.2", "eth0", false),
					route("10.5.3.0/24", "10.5.3.0", "flannel.7", true)},
			},
		},
		{
			name: "vxlan nodes that cannot be reached", network: only4(network(t, `{"Type":"vxlan"}`)),
			peers: []lease.Lease{
				node(2, "host-gw", "", ""), node(3, "vxlan", `junk`, ""),
				node(4, "vxlan", `{"VNI":1,"VtepMAC":"zz"}`, ""),
				node(5, "vxlan", `{"VNI":9,"VtepMAC":"02:00:00:00:00:05"}`, ""),
				node(6, "vxlan", `{"VtepMAC":"02:00:00:00:00:0a"}`, ""),
				noPublic(node(7, "vxlan", vxlanData2, "")),
				node(8, "vxlan", `{"VNI":1,"VtepMAC":"02:00:00:00:00:00:00:01"}`, ""),
				node(2, "vxlan", vxlanData2, ""), node(3, "vxlan", vxlanData2, ""),
			},
			want: ctrl.State{
				Networks: nets[:1], Links: []ctrl.Link{vxlanLink}, Addrs: on("flannel.1", lo),
				FlannelRoutes: []ctrl.FlannelRoute{{Dst: prefix("10.5.2.0/24"), Via: addr("172.31.0.2")},
					{Dst: prefix("10.5.3.0/24"), Via: addr("172.31.0.3")},
					{Dst: prefix("10.5.4.0/24"), Via: addr("172.31.0.4")},
					{Dst: prefix("10.5.5.0/24"), Via: addr("172.31.0.5")},
					{Dst: prefix("10.5.6.0/24"), Via: addr("172.31.0.6")},
					{Dst: prefix("10.5.8.0/24"), Via: addr("172.31.0.8")},
					{Dst: prefix("10.5.2.0/24"), Via: addr("172.31.0.2")},
					{Dst: prefix("10.5.3.0/24"), Via: addr("172.31.0.3")}},
				Neighbours: []ctrl.Neighbour{{Dev: "flannel.1", IP: addr("10.5.2.0"), MAC: macB}},
				FDB:        []ctrl.FDBEntry{{Dev: "flannel.1", MAC: macB, Dst: addr("172.31.0.2")}},
				Routes:     []ctrl.Route{route("10.5.2.0/24", "10.5.2.0", "flannel.1", true)},
				Unreachable: []ctrl.Unreachable{
					{Node: "n2", Subnet: prefix("10.5.2.0/24"), Reason: "backend is host-gw, this node's is vxlan"},
					{Node: "n7", Subnet: prefix("10.5.7.0/24"), Reason: "lease has no public address in this family"},
					{Node: "n3", Subnet: prefix("10.5.3.0/24"),
						Reason: "lease has invalid vxlan data: invalid character 'j' looking for beginning of value"},
					{Node: "n4", Subnet: prefix("10.5.4.0/24"),
						Reason: "lease has an invalid VtepMAC: address zz: invalid MAC address"},
					{Node: "n5", Subnet: prefix("10.5.5.0/24"), Reason: "VNI is 9, this node's is 1"},
					{Node: "n6", Subnet: prefix("10.5.6.0/24"),
						Reason: "VtepMAC 02:00:00:00:00:0a is also used by this node"},
					{Node: "n8", Subnet: prefix("10.5.8.0/24"),
						Reason: `lease has an invalid VtepMAC: "02:00:00:00:00:00:00:01" is not an Ethernet address`},
					{Node: "n3", Subnet: prefix("10.5.3.0/24"), Reason: "VtepMAC 02:00:00:00:00:0b is also used by n2"},
				},
			},
		},
		{
			name: "host-gw", network: network(t, `{"Type":"host-gw"}`),
			peers: []lease.Lease{node(2, "host-gw", "", ""), withType(far, "host-gw")},
			want: ctrl.State{
				Networks: nets, FlannelRoutes: append(former(vxlanPeer), former(far)...),
				Routes: []ctrl.Route{route("10.5.2.0/24", "172.31.0.2", "eth0", false),
					route("fd10:5:0:2::/64", "fd31::2", "eth0", false)},
				Unreachable: []ctrl.Unreachable{{Node: "n3", Subnet: prefix("10.5.3.0/24"),
					Reason: "10.9.0.3 is not on the link of eth0 (172.31.0.0/24 fd31::/64): use vxlan with DirectRouting"}},
			},
		},
		{
			name: "blackhole", network: network(t, `{"Type":"host-gw"}`),
			self: func(s *LocalNode) { s.Blackhole = true },
			want: ctrl.State{Networks: nets, Routes: []ctrl.Route{
				{Dst: prefix("10.5.1.0/24"), Kind: ctrl.Blackhole, Metric: blackholeMetric,
					Protocol: ctrl.RouteProtocol},
				{Dst: prefix("fd10:5:0:1::/64"), Kind: ctrl.Blackhole, Metric: blackholeMetric,
					Protocol: ctrl.RouteProtocol}}},
		},
		{
			name: "ipip", network: network(t, `{"Type":"ipip"}`), peers: []lease.Lease{node(2, "ipip", "", "")},
			want: ctrl.State{
				Networks: nets, FlannelRoutes: former(vxlanPeer), Addrs: on("flannel.ipip", lo),
				Links: []ctrl.Link{{Name: "flannel.ipip", Kind: ctrl.KindIPIP, MTU: 1480, Up: true,
					IPIP: ctrl.IPIP{Local: addr("172.31.0.1")}}},
				Routes: []ctrl.Route{route("10.5.2.0/24", "172.31.0.2", "flannel.ipip", true)},
				Unreachable: []ctrl.Unreachable{{Node: "n2", Subnet: prefix("fd10:5:0:2::/64"),
					Reason: "ipip carries IPv4 only"}},
			},
		},
		{
			name: "ipip with DirectRouting", network: only4(network(t, `{"Type":"ipip","DirectRouting":true}`)),
			peers: []lease.Lease{node(2, "ipip", "", ""), withType(far, "ipip")},
			want: ctrl.State{
				Networks: nets[:1], FlannelRoutes: append(former(vxlanPeer)[:1], former(far)...),
				Addrs: on("flannel.ipip", lo),
				Links: []ctrl.Link{{Name: "flannel.ipip", Kind: ctrl.KindIPIP, MTU: 1480, Up: true,
					IPIP: ctrl.IPIP{Local: addr("172.31.0.1")}}},
				Routes: []ctrl.Route{route("10.5.2.0/24", "172.31.0.2", "eth0", true),
					route("10.5.3.0/24", "10.9.0.3", "flannel.ipip", true)},
			},
		},
		{
			name: "wireguard, a device per family",
			network: network(t,
				`{"Type":"wireguard","PSK":"`+ctrl.Key{7}.Base64()+`","PersistentKeepaliveInterval":25,"ListenPort":5000,"ListenPortV6":5001,"MTU":1400}`),
			peers: []lease.Lease{node(2, "wireguard", wgData(2, 6000), wgData(2, 0))},
			want: ctrl.State{
				Networks: nets, FlannelRoutes: former(vxlanPeer),
				Links: []ctrl.Link{{Name: "flannel-wg", Kind: ctrl.KindWireGuard, MTU: 1320, Up: true},
					{Name: "flannel-wg-v6", Kind: ctrl.KindWireGuard, MTU: 1320, Up: true}},
				Tunnels: []ctrl.Tunnel{{Dev: "flannel-wg", PrivateKey: ctrl.Key{1}, ListenPort: 5000},
					{Dev: "flannel-wg-v6", PrivateKey: ctrl.Key{1}, ListenPort: 5001}},
				Addrs:  append(on("flannel-wg", lo), on("flannel-wg-v6", lo6)...),
				Routes: []ctrl.Route{linkScope, ours("fd10:5::/48", "", "flannel-wg-v6")},
				Peers: []ctrl.Peer{
					{Dev: "flannel-wg", PublicKey: ctrl.Key{2}, PSK: ctrl.Key{7},
						Endpoint: netip.MustParseAddrPort("172.31.0.2:6000"), Keepalive: 25 * time.Second,
						Allowed: prefix("10.5.2.0/24")},
					{Dev: "flannel-wg-v6", PublicKey: ctrl.Key{2}, PSK: ctrl.Key{7},
						Endpoint: netip.MustParseAddrPort("[fd31::2]:5001"), Keepalive: 25 * time.Second,
						Allowed6: prefix("fd10:5:0:2::/64")},
				},
			},
		},
		{
			name: "wireguard, one device", network: network(t, `{"Type":"wireguard","Mode":"auto"}`),
			peers: []lease.Lease{node(2, "wireguard", wgData(2, 6000), wgData(2, 51821)),
				withoutV4(node(3, "wireguard", "", wgData(3, 6001)))},
			want: ctrl.State{
				Networks: nets, FlannelRoutes: append(former(vxlanPeer),
					ctrl.FlannelRoute{Dst: prefix("fd10:5:0:3::/64"), Via: addr("fd31::3")}),
				Links:   []ctrl.Link{{Name: "flannel-wg", Kind: ctrl.KindWireGuard, MTU: 1420, Up: true}},
				Tunnels: []ctrl.Tunnel{{Dev: "flannel-wg", PrivateKey: ctrl.Key{1}, ListenPort: 51820}},
				Addrs:   on("flannel-wg", lo, lo6),
				Routes:  []ctrl.Route{linkScope, ours("fd10:5::/48", "", "flannel-wg")},
				Peers: []ctrl.Peer{
					{Dev: "flannel-wg", PublicKey: ctrl.Key{2}, Endpoint: netip.MustParseAddrPort("172.31.0.2:6000"),
						Allowed: prefix("10.5.2.0/24"), Allowed6: prefix("fd10:5:0:2::/64")},
					{Dev: "flannel-wg", PublicKey: ctrl.Key{3}, Endpoint: netip.MustParseAddrPort("[fd31::3]:6001"),
						Allowed6: prefix("fd10:5:0:3::/64")},
				},
			},
		},
		{
			name:    "wireguard, one device, over IPv6 only at our end: flannel listens on the port of its IPv4 data",
			network: network(t, `{"Type":"wireguard","Mode":"ipv6"}`),
			lease:   func(l *lease.Lease) { l.Subnet = netip.Prefix{} },
			peers:   []lease.Lease{node(2, "wireguard", wgData(2, 6000), wgData(2, 51821))},
			want: ctrl.State{
				Networks: nets, FlannelRoutes: former(vxlanPeer),
				Links:   []ctrl.Link{{Name: "flannel-wg", Kind: ctrl.KindWireGuard, MTU: 1420, Up: true}},
				Tunnels: []ctrl.Tunnel{{Dev: "flannel-wg", PrivateKey: ctrl.Key{1}, ListenPort: 51820}},
				Addrs:   on("flannel-wg", lo6), Routes: []ctrl.Route{ours("fd10:5::/48", "", "flannel-wg")},
				Peers: []ctrl.Peer{{Dev: "flannel-wg", PublicKey: ctrl.Key{2},
					Endpoint: netip.MustParseAddrPort("[fd31::2]:6000"), Allowed6: prefix("fd10:5:0:2::/64")}},
			},
		},
		{
			name:    "wireguard, one device, two nodes with one key",
			network: network(t, `{"Type":"wireguard","Mode":"auto"}`),
			peers: []lease.Lease{withoutV6(node(2, "wireguard", wgData(2, 1), "")),
				withoutV4(node(3, "wireguard", "", wgData(2, 1)))},
			want: ctrl.State{
				Networks: nets, FlannelRoutes: []ctrl.FlannelRoute{{Dst: prefix("10.5.2.0/24"),
					Via: addr("172.31.0.2")}, {Dst: prefix("fd10:5:0:3::/64"), Via: addr("fd31::3")}},
				Links:   []ctrl.Link{{Name: "flannel-wg", Kind: ctrl.KindWireGuard, MTU: 1420, Up: true}},
				Tunnels: []ctrl.Tunnel{{Dev: "flannel-wg", PrivateKey: ctrl.Key{1}, ListenPort: 51820}},
				Addrs:   on("flannel-wg", lo, lo6),
				Routes:  []ctrl.Route{linkScope, ours("fd10:5::/48", "", "flannel-wg")},
				Peers: []ctrl.Peer{{Dev: "flannel-wg", PublicKey: ctrl.Key{2},
					Endpoint: netip.MustParseAddrPort("172.31.0.2:1"), Allowed: prefix("10.5.2.0/24")}},
				Unreachable: []ctrl.Unreachable{{Node: "n3", Subnet: prefix("fd10:5:0:3::/64"),
					Reason: "PublicKey is also used by another node"}},
			},
		},
		{
			name: "wireguard nodes that cannot be reached", network: only4(network(t, `{"Type":"wireguard"}`)),
			peers: []lease.Lease{
				node(2, "wireguard", "junk", ""), node(3, "wireguard", `{"PublicKey":"x"}`, ""),
				node(4, "wireguard", wgData(4, 70000), ""),
				node(5, "wireguard", wgData(5, 0), ""), node(6, "wireguard", wgData(5, 0), ""),
				node(7, "wireguard", `{"PublicKey":"`+ownPublic(t)+`"}`, ""),
				node(8, "wireguard", `{"PublicKey":"AAAA"}`, ""),
			},
			want: ctrl.State{
				Networks: nets[:1], FlannelRoutes: former4(2, 3, 4, 5, 6, 7, 8),
				Links:   []ctrl.Link{{Name: "flannel-wg", Kind: ctrl.KindWireGuard, MTU: 1420, Up: true}},
				Tunnels: []ctrl.Tunnel{{Dev: "flannel-wg", PrivateKey: ctrl.Key{1}, ListenPort: 51820}},
				Addrs:   on("flannel-wg", lo), Routes: []ctrl.Route{linkScope},
				Peers: []ctrl.Peer{{Dev: "flannel-wg", PublicKey: ctrl.Key{5},
					Endpoint: netip.MustParseAddrPort("172.31.0.5:51820"), Allowed: prefix("10.5.5.0/24")}},
				Unreachable: []ctrl.Unreachable{
					{Node: "n2", Subnet: prefix("10.5.2.0/24"),
						Reason: "lease has invalid wireguard data: invalid character 'j' looking for beginning of value"},
					{Node: "n3", Subnet: prefix("10.5.3.0/24"),
						Reason: "lease has an invalid PublicKey: key is not base64"},
					{Node: "n4", Subnet: prefix("10.5.4.0/24"), Reason: "port 70000 is not in 1 to 65535"},
					{Node: "n6", Subnet: prefix("10.5.6.0/24"), Reason: "PublicKey is also used by another node"},
					{Node: "n7", Subnet: prefix("10.5.7.0/24"), Reason: "PublicKey is this node's own"},
					{Node: "n8", Subnet: prefix("10.5.8.0/24"),
						Reason: "lease has an invalid PublicKey: key has 3 bytes, want 32"},
				},
			},
		},
		{
			name:    "wireguard over IPv6 to a node without",
			network: only4(network(t, `{"Type":"wireguard","Mode":"ipv6"}`)),
			peers:   []lease.Lease{noPublic6(node(2, "wireguard", wgData(2, 1), ""))},
			want: ctrl.State{
				Networks: nets[:1], FlannelRoutes: former4(2),
				Links:   []ctrl.Link{{Name: "flannel-wg", Kind: ctrl.KindWireGuard, MTU: 1420, Up: true}},
				Tunnels: []ctrl.Tunnel{{Dev: "flannel-wg", PrivateKey: ctrl.Key{1}, ListenPort: 51820}},
				Addrs:   on("flannel-wg", lo), Routes: []ctrl.Route{linkScope},
				Unreachable: []ctrl.Unreachable{{Node: "n2", Subnet: prefix("10.5.2.0/24"),
					Reason: "lease has no public address for mode ipv6"}},
			},
		},
		{
			name: "extension",
			network: only4(network(t,
				`{"Type":"extension","PreStartupCommand":"p","PostStartupCommand":"post","SubnetAddCommand":"a","SubnetRemoveCommand":"r","ShutdownCommand":"s"}`)),
			peers: []lease.Lease{node(2, "extension", `"printed"`, ""), node(3, "extension", "", ""),
				node(4, "extension", "7", "")},
			want: ctrl.State{
				Networks: nets[:1],
				Commands: []ctrl.Command{
					{ID: "startup", Add: "post", Shutdown: "s",
						Env: "NETWORK=10.5.0.0/16\nSUBNET=10.5.1.0/24\nIPV6SUBNET=fd10:5:0:1::/64\nPUBLIC_IP=172.31.0.1\nPUBLIC_IPV6=fd31::1"},
					{ID: "10.5.2.0/24", Add: "a", Remove: "r", Stdin: "printed",
						Env: "SUBNET=10.5.2.0/24\nIPV6SUBNET=fd10:5:0:2::/64\nPUBLIC_IP=172.31.0.2\nPUBLIC_IPV6=fd31::2"},
					{ID: "10.5.3.0/24", Add: "a", Remove: "r",
						Env: "SUBNET=10.5.3.0/24\nIPV6SUBNET=fd10:5:0:3::/64\nPUBLIC_IP=172.31.0.3\nPUBLIC_IPV6=fd31::3"},
				},
				Unreachable: []ctrl.Unreachable{{Node: "n4", Subnet: prefix("10.5.4.0/24"),
					Reason: "lease has invalid extension data: json: cannot unmarshal number into Go value of type string"}},
			},
		},
		{
			name: "extension without an address", network: only4(network(t,
				`{"Type":"extension","PostStartupCommand":"post"}`)),
			lease: func(l *lease.Lease) {
				l.Subnet6, l.PublicIPv6, l.PublicIP = netip.Prefix{}, netip.Addr{}, netip.Addr{}
			},
			want: ctrl.State{Networks: nets[:1], Commands: []ctrl.Command{
				{ID: "startup", Add: "post",
					Env: "NETWORK=10.5.0.0/16\nSUBNET=10.5.1.0/24\nIPV6SUBNET=\nPUBLIC_IP=\nPUBLIC_IPV6="}}},
		},
		{
			name: "a subnet of another network", network: only4(network(t, `{"Type":"host-gw"}`)),
			peers: []lease.Lease{elsewhere(node(2, "host-gw", "", ""))},
			want: ctrl.State{Networks: nets[:1], FlannelRoutes: []ctrl.FlannelRoute{{Dst: prefix("10.99.2.0/24"),
				Via: addr("172.31.0.2")}},
				Unreachable: []ctrl.Unreachable{{Node: "n2", Subnet: prefix("10.99.2.0/24"),
					Reason: "10.99.2.0/24 is not inside network 10.5.0.0/16"}}},
		},
		{
			name: "a node without a name", network: only4(network(t, `{"Type":"host-gw"}`)),
			peers: []lease.Lease{noName(node(2, "", "", ""))},
			want: ctrl.State{Networks: nets[:1], FlannelRoutes: former4(2),
				Unreachable: []ctrl.Unreachable{{Node: "172.31.0.2", Subnet: prefix("10.5.2.0/24"),
					Reason: "backend is udp, this node's is host-gw"}}},
		},
		{
			name: "extension without commands for nodes", network: only4(network(t, `{"Type":"extension"}`)),
			peers: []lease.Lease{node(2, "extension", "", "")},
			want:  ctrl.State{Networks: nets[:1]},
		},
		{
			name: "extension of two families", network: network(t,
				`{"Type":"extension","SubnetAddCommand":"a"}`),
			peers: []lease.Lease{node(2, "extension", "", ""), noPublic6(node(3, "extension", "", ""))},
			want: ctrl.State{Networks: nets,
				Commands: []ctrl.Command{
					{ID: "10.5.2.0/24", Add: "a",
						Env: "SUBNET=10.5.2.0/24\nIPV6SUBNET=fd10:5:0:2::/64\nPUBLIC_IP=172.31.0.2\nPUBLIC_IPV6=fd31::2"},
					{ID: "10.5.3.0/24", Add: "a",
						Env: "SUBNET=10.5.3.0/24\nIPV6SUBNET=fd10:5:0:3::/64\nPUBLIC_IP=172.31.0.3\nPUBLIC_IPV6="},
				},
				Unreachable: []ctrl.Unreachable{{Node: "n3", Subnet: prefix("fd10:5:0:3::/64"),
					Reason: "lease has no public address in this family"}}},
		},
		{
			name: "ipsec", network: network(t, `{"Type":"ipsec","PSK":"`+psk+`"}`),
			self: func(l *LocalNode) { l.Iface.Public = addr("192.0.2.1") },
			peers: []lease.Lease{node(2, "ipsec", "", ""), withoutV6(node(3, "ipsec", "", "")), node(4, "vxlan", "", ""),
				samePublic(node(5, "ipsec", "", ""))},
			want: ctrl.State{Networks: nets, IKE: ctrl.IKE{PSK: psk, ESPProposal: defaultESPProposal},
				FlannelRoutes: former(node(2, "ipsec", "", ""), withoutV6(node(3, "ipsec", "", "")), node(4, "vxlan", "", ""),
					samePublic(node(5, "ipsec", "", ""))),
				Associations: []ctrl.Association{toNode2, toNode2v6, toNode3},
				Policies: []ctrl.Policy{
					esp("out", "10.5.1.0/24", "10.5.2.0/24", "172.31.0.1", "172.31.0.2"),
					esp("in", "10.5.2.0/24", "10.5.1.0/24", "172.31.0.2", "172.31.0.1"),
					esp("fwd", "10.5.2.0/24", "10.5.1.0/24", "172.31.0.2", "172.31.0.1"),
					esp("out", "fd10:5:0:1::/64", "fd10:5:0:2::/64", "fd31::1", "fd31::2"),
					esp("in", "fd10:5:0:2::/64", "fd10:5:0:1::/64", "fd31::2", "fd31::1"),
					esp("fwd", "fd10:5:0:2::/64", "fd10:5:0:1::/64", "fd31::2", "fd31::1"),
					esp("out", "10.5.1.0/24", "10.5.3.0/24", "172.31.0.1", "172.31.0.3"),
					esp("in", "10.5.3.0/24", "10.5.1.0/24", "172.31.0.3", "172.31.0.1"),
					esp("fwd", "10.5.3.0/24", "10.5.1.0/24", "172.31.0.3", "172.31.0.1"),
				},
				Unreachable: []ctrl.Unreachable{
					{Node: "n4", Subnet: prefix("10.5.4.0/24"), Reason: "backend is vxlan, this node's is ipsec"},
					{Node: "n4", Subnet: prefix("fd10:5:0:4::/64"), Reason: "backend is vxlan, this node's is ipsec"},
					{Node: "n5", Subnet: prefix("10.5.5.0/24"), Reason: "has the public address 172.31.0.2 of node n2"},
					{Node: "n5", Subnet: prefix("fd10:5:0:5::/64"), Reason: "has the public address fd31::2 of node n2"},
				}},
		},
		{
			name: "families that only one side has", network: network(t, `{"Type":"host-gw"}`),
			lease: func(l *lease.Lease) { l.Subnet6 = netip.Prefix{} },
			peers: []lease.Lease{node(2, "host-gw", "", "")},
			want: ctrl.State{Networks: nets, FlannelRoutes: former(vxlanPeer),
				Routes: []ctrl.Route{route("10.5.2.0/24", "172.31.0.2", "eth0", false)}},
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
			b, err := New(tt.network, s)
			if err != nil {
				t.Fatal(err)
			}
			got := b.Plan(self, append([]lease.Lease{self}, tt.peers...))
			got.NoTrack = nil // see TestPlanNoTrack
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", dumpState(got), dumpState(tt.want))
			}
		})
	}
}

func dumpState(s ctrl.State) string {
	v := reflect.ValueOf(s)
	var out strings.Builder
	for i := range v.NumField() {
		if v.Field(i).Kind() != reflect.Slice {
			fmt.Fprintf(&out, "  %s %+v\n", v.Type().Field(i).Name, v.Field(i).Interface())
			continue
		}
		for j := range v.Field(i).Len() {
			fmt.Fprintf(&out, "  %s %+v\n", v.Type().Field(i).Name, v.Field(i).Index(j).Interface())
		}
	}
	return out.String()
}

// A node whose subnet is the whole network has no route that hides its own pods.
func TestPlanSubnetIsNetwork(t *testing.T) {
	for _, typ := range []string{"udp", "wireguard"} {
		n := network(t, `{"Type":"`+typ+`"}`)
		n.Network, n.IPv6Network = prefix("10.66.0.0/24"), netip.Prefix{}
		local := LocalNode{Device: "flannel0", PrivateKey: ctrl.Key{1}}
		local.Iface.MTU, local.Iface.Addr = 1500, addr("172.31.0.1")
		local.Iface.Public = local.Iface.Addr
		b, err := New(n, local)
		if err != nil {
			t.Fatal(err)
		}
		self := lease.Lease{Subnet: prefix("10.66.0.0/24")}
		self.PublicIP = local.Iface.Public
		if s := b.Plan(self, nil); len(s.Routes) != 0 {
			t.Errorf("%s: routes %v, want none", typ, s.Routes)
		}
	}
}

// A peer with this node's own public address is unreachable, except where ports tell peers apart.
func TestPlanDuplicatePublicIP(t *testing.T) {
	for typ, leaseType := range map[string]string{"udp": "", "vxlan": "vxlan", "host-gw": "host-gw"} {
		n := network(t, `{"Type":"`+typ+`"}`)
		local := LocalNode{Device: "flannel0"}
		local.Iface.Name, local.Iface.MTU, local.Iface.Addr = "eth0", 1500, addr("172.31.0.1")
		local.Iface.Public = local.Iface.Addr
		b, err := New(n, local)
		if err != nil {
			t.Fatal(err)
		}
		peer := node(2, leaseType, vxlanData2, "")
		peer.Subnet6, peer.PublicIPv6 = netip.Prefix{}, netip.Addr{}
		peer.PublicIP = local.Iface.Public
		self := node(1, leaseType, "", "")
		self.PublicIP = local.Iface.Public
		s := b.Plan(self, []lease.Lease{peer})
		if len(s.Unreachable) != 1 || !strings.Contains(s.Unreachable[0].Reason, "own public address 172.31.0.1") {
			t.Errorf("%s: unreachable %v, want the peer with the reason", typ, s.Unreachable)
		}
	}
}

// TestRouteScope checks that routes of small networks are global, like flannel's, and that those of
// large ones are spread over the scopes that mean the same.
func TestRouteScope(t *testing.T) {
	for _, c := range []struct {
		network, subnet string
		want            uint8
	}{
		{"10.244.0.0/16", "10.244.255.0/24", 0},
		{"10.0.0.0/8", "10.0.255.0/24", 0},
		{"10.0.0.0/8", "10.1.0.0/24", 1},
		{"10.0.0.0/8", "10.127.9.0/24", 127},
		{"10.0.0.0/8", "10.128.9.0/24", 0},
		{"10.244.0.0/16", "10.244.16.16/28", 1},
		{"0.0.0.0/0", "0.0.0.0/0", 0},
		{"fd10::/48", "fd10:0:0:ffff::/64", 0},
	} {
		f := family{network: prefix(c.network), subnet: prefix(c.subnet)}
		f.v6 = f.subnet.Addr().Is6()
		if got := f.routeScope(); got != c.want {
			t.Errorf("scope %d for %s in %s, want %d", got, c.subnet, c.network, c.want)
		}
	}
}
