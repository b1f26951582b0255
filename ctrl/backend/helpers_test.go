package backend

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"weft/ctrl"
	"weft/ctrl/underlay"
	"weft/lease"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

var (
	macA = ctrl.MAC{2, 0, 0, 0, 0, 0xa}
	macB = ctrl.MAC{2, 0, 0, 0, 0, 0xb}
	nets = []netip.Prefix{prefix("10.5.0.0/16"), prefix("fd10:5::/48")}
)

// network returns a dual-stack config with a Backend object.
func network(t *testing.T, backend string) lease.Network {
	t.Helper()
	n, err := lease.ParseNetwork([]byte(
		`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd10:5::/48","Backend":` + backend + `}`))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// only4 returns the config without IPv6.
func only4(n lease.Network) lease.Network {
	n.IPv6Network, n.EnableIPv6 = netip.Prefix{}, false
	return n
}

// only6 returns the config without IPv4.
func only6(n lease.Network) lease.Network {
	n.Network, n.EnableIPv4 = netip.Prefix{}, false
	return n
}

// node returns the lease of node i with backend data.
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

// me returns the LocalNode of node 1.
func me() LocalNode {
	return LocalNode{
		Iface: underlay.Iface{Name: "eth0", Index: 2, MTU: 1500, Addr: addr("172.31.0.1"), Addr6: addr("fd31::1"),
			Public: addr("172.31.0.1"), Public6: addr("fd31::1"),
			OnLink: underlay.NewPrefixSet(prefix("172.31.0.0/24"), prefix("fd31::/64"))},
		VTEP: macA, VTEP6: ctrl.MAC{2, 0, 0, 0, 0, 0xc}, PrivateKey: ctrl.Key{1}, Device: "flannel0",
	}
}

func ours(dst, via, dev string) ctrl.Route {
	r := ctrl.Route{Dst: prefix(dst), Dev: dev, Protocol: ctrl.RouteProtocol}
	if via != "" {
		r.Via = addr(via)
	}
	return r
}

func route(dst, via, dev string, onLink bool) ctrl.Route {
	r := ours(dst, via, dev)
	r.OnLink = onLink
	return r
}

// former returns the routes that flannel would leave for nodes.
func former(ls ...lease.Lease) []ctrl.FlannelRoute {
	var out []ctrl.FlannelRoute
	for _, l := range ls {
		out = append(out, ctrl.FlannelRoute{Dst: l.Subnet, Via: l.PublicIP})
		if l.Subnet6.IsValid() {
			out = append(out, ctrl.FlannelRoute{Dst: l.Subnet6, Via: l.PublicIPv6})
		}
	}
	return out
}

const vxlanData2 = `{"VNI":1,"VtepMAC":"02:00:00:00:00:0b"}`
const vxlanData2v6 = `{"VNI":1,"VtepMAC":"02:00:00:00:00:0d"}`

// publicKeyOf returns a made-up public key in base64.
func publicKeyOf(b byte) string { return ctrl.Key{b}.Base64() }

func wgData(b byte, port int) string {
	return fmt.Sprintf(`{"PublicKey":%q,"Port":%d}`, publicKeyOf(b), port)
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

func former4(is ...int) []ctrl.FlannelRoute {
	var out []ctrl.FlannelRoute
	for _, i := range is {
		l := node(i, "", "", "")
		out = append(out, ctrl.FlannelRoute{Dst: l.Subnet, Via: l.PublicIP})
	}
	return out
}

func ownPublic(t *testing.T) string {
	t.Helper()
	k, err := ctrl.Key{1}.Public()
	if err != nil {
		t.Fatal(err)
	}
	return k.Base64()
}
