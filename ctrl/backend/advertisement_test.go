package backend

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"weft/ctrl"
	"weft/lease"
)

// formatAdvertisement writes an advertisement as one line per part.
func formatAdvertisement(a Advertisement) string {
	s := fmt.Sprintf("%s mtu=%d devices=%s", a.Type, a.MTU, strings.Join(a.Devices, ","))
	if a.Userspace || a.Listen.IsValid() {
		s += fmt.Sprintf(" userspace=%t listen=%v", a.Userspace, a.Listen)
	}
	s += "\nlease " + a.Attrs.BackendType
	if a.Attrs.PublicIP.IsValid() || a.Attrs.BackendData != nil {
		s += fmt.Sprintf("\nIPv4 %v %s", a.Attrs.PublicIP, a.Attrs.BackendData)
	}
	if a.Attrs.PublicIPv6.IsValid() || a.Attrs.BackendV6Data != nil {
		s += fmt.Sprintf("\nIPv6 %v %s", a.Attrs.PublicIPv6, a.Attrs.BackendV6Data)
	}
	return s
}

func TestAdvertisement(t *testing.T) {
	const (
		both      = "\nIPv4 172.31.0.1 \nIPv6 fd31::1 "
		engine    = " devices=flannel0 userspace=true listen=172.31.0.1:8285\nlease " + both
		vxlanData = `{"VNI":1,"VtepMAC":"02:00:00:00:00:0a"}`
		vxlanV6   = `{"VNI":1,"VtepMAC":"02:00:00:00:00:0c"}`
	)
	wg := func(port int) string { return fmt.Sprintf(`{"PublicKey":%q,"Port":%d}`, ownPublic(t), port) }
	withFOU := func(l *LocalNode) { l.FOU = true }
	tests := []struct {
		name    string
		network lease.Network
		local   func(*LocalNode)
		want    string
	}{
		{"udp", network(t, `{"Type":"UDP"}`), nil, "udp mtu=1472" + engine},
		{"udp without a device", network(t, `{"Type":"udp"}`), func(l *LocalNode) { l.Device = "" },
			"udp mtu=1472 devices= userspace=true listen=172.31.0.1:8285\nlease " + both},
		{"udp auto without FOU", only4(network(t, `{"Type":"udp","Carrier":"auto"}`)), nil, "udp mtu=1472" + engine},
		{"udp auto", only4(network(t, `{"Type":"udp","Carrier":"auto"}`)), withFOU,
			"udp mtu=1472 devices=flannel0\nlease " + both},
		{"udp auto with IPv6", network(t, `{"Type":"udp","Carrier":"auto"}`), withFOU, "udp mtu=1472" + engine},
		{"udp over IPv6", network(t, `{"Type":"udp"}`), func(l *LocalNode) { l.Iface.Addr = netip.Addr{} },
			strings.Replace("udp mtu=1452"+engine, "172.31.0.1:8285", "[fd31::1]:8285", 1)},
		{"udp behind NAT", network(t, `{"Type":"udp"}`), func(l *LocalNode) { l.Iface.Public = addr("192.0.2.1") },
			strings.Replace("udp mtu=1472"+engine, "IPv4 172.31.0.1", "IPv4 192.0.2.1", 1)},
		{"udp smallest MTU for IPv6", network(t, `{"Type":"udp"}`), func(l *LocalNode) { l.Iface.MTU = 1308 },
			"udp mtu=1280" + engine},
		{"udp smallest MTU for IPv4", only4(network(t, `{"Type":"udp"}`)), func(l *LocalNode) { l.Iface.MTU = 96 },
			"udp mtu=68" + engine},
		{"alloc", network(t, `{"Type":"alloc"}`), nil, "alloc mtu=1500 devices=\nlease " + both},
		{"aws-vpc", network(t, `{"Type":"AWS-VPC","RouteTableID":"rtb-1"}`), nil, "aws-vpc mtu=1500 devices=\nlease " + both},
		{"gce", network(t, `{"Type":"gce"}`), nil, "gce mtu=1500 devices=\nlease " + both},
		{"ali-vpc", only4(network(t, `{"Type":"ali-vpc"}`)), nil, "ali-vpc mtu=1500 devices=\nlease " + both},
		{"tencent-vpc", only4(network(t, `{"Type":"tencent-vpc"}`)), nil, "tencent-vpc mtu=1500 devices=\nlease " + both},
		{"host-gw", network(t, `{"Type":"host-gw"}`), nil, "host-gw mtu=1500 devices=\nlease host-gw" + both},
		{"ipip", network(t, `{"Type":"ipip"}`), nil, "ipip mtu=1480 devices=flannel.ipip\nlease ipip" + both},
		{"vxlan", network(t, `{"Type":"vxlan","MTU":9000}`), nil,
			"vxlan mtu=1450 devices=flannel.1,flannel-v6.1\nlease vxlan\n" +
				"IPv4 172.31.0.1 " + vxlanData + "\nIPv6 fd31::1 " + vxlanV6},
		{"vxlan IPv4 only", only4(network(t, `{"Type":"vxlan"}`)), nil,
			"vxlan mtu=1450 devices=flannel.1\nlease vxlan\nIPv4 172.31.0.1 " + vxlanData},
		{"vxlan IPv6 only", only6(network(t, `{"Type":"vxlan"}`)), nil,
			"vxlan mtu=1430 devices=flannel-v6.1\nlease vxlan\nIPv6 fd31::1 " + vxlanV6},
		{"wireguard", network(t, `{"Type":"wireguard"}`), nil,
			"wireguard mtu=1420 devices=flannel-wg,flannel-wg-v6\nlease wireguard\n" +
				"IPv4 172.31.0.1 " + wg(51820) + "\nIPv6 fd31::1 " + wg(51821)},
		{"wireguard in one device", network(t, `{"Type":"wireguard","Mode":"ipv4"}`), nil,
			"wireguard mtu=1420 devices=flannel-wg\nlease wireguard\n" +
				"IPv4 172.31.0.1 " + wg(51820) + "\nIPv6 fd31::1 " + wg(51820)},
		{"wireguard IPv4 only", only4(network(t, `{"Type":"wireguard"}`)), nil,
			"wireguard mtu=1420 devices=flannel-wg\nlease wireguard\nIPv4 172.31.0.1 " + wg(51820)},
		{"wireguard IPv6 only", only6(network(t, `{"Type":"wireguard"}`)), nil,
			"wireguard mtu=1420 devices=flannel-wg-v6\nlease wireguard\nIPv6 fd31::1 " + wg(51821)},
		{"ipsec", network(t, `{"Type":"ipsec","PSK":"`+psk+`"}`), nil, "ipsec mtu=1403 devices=\nlease ipsec" + both},
		{"ipsec IPv4 only", only4(network(t, `{"Type":"ipsec","PSK":"`+psk+`"}`)), nil,
			"ipsec mtu=1423 devices=\nlease ipsec" + both},
		{"ipsec in UDP, IPv4 only", only4(network(t, `{"Type":"ipsec","UDPEncap":true,"PSK":"`+psk+`"}`)), nil,
			"ipsec mtu=1415 devices=\nlease ipsec" + both},
		{"extension", network(t, `{"Type":"extension","PreStartupCommand":"p"}`),
			func(l *LocalNode) { l.Startup = `a"b` },
			"extension mtu=1500 devices=\nlease extension\nIPv4 172.31.0.1 \"a\\\"b\"\nIPv6 fd31::1 "},
		{"extension without a command", network(t, `{"Type":"extension"}`), nil,
			"extension mtu=1500 devices=\nlease extension" + both},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := me()
			if tt.local != nil {
				tt.local(&l)
			}
			b, err := New(tt.network, l)
			if err != nil {
				t.Fatal(err)
			}
			if got := formatAdvertisement(b.Advertisement()); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestPlanNoTrack(t *testing.T) {
	for _, tt := range []struct {
		name    string
		network lease.Network
		want    string
	}{
		{"udp", network(t, `{"Type":"udp","Port":1}`), "[172.31.0.1:1]"},
		{"udp in the kernel", only4(network(t, `{"Type":"udp","Carrier":"kernel"}`)), "[172.31.0.1:8285]"},
		{"vxlan", only4(network(t, `{"Type":"vxlan"}`)), "[172.31.0.1:8472]"},
		{"vxlan dual-stack", network(t, `{"Type":"vxlan","Port":4789}`), "[172.31.0.1:4789 [fd31::1]:4789]"},
		{"host-gw", network(t, `{"Type":"host-gw"}`), "[]"},
		{"wireguard", network(t, `{"Type":"wireguard"}`), "[]"},
	} {
		l := me()
		l.FOU = true
		b, err := New(tt.network, l)
		if err != nil {
			t.Fatal(err)
		}
		self := node(1, "", "", "")
		if !tt.network.IPv6Network.IsValid() {
			self = withoutV6(self)
		}
		if got := fmt.Sprint(b.Plan(self, nil).NoTrack); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestRestore(t *testing.T) {
	mac := ctrl.MAC{0x0a, 0, 0, 0, 0, 1}
	vxlan := lease.Attrs{BackendType: "vxlan", BackendData: json.RawMessage(`{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"}`)}
	existing := ctrl.MAC{2, 2, 2, 2, 2, 2}
	for _, tt := range []struct {
		name     string
		have     ctrl.MAC
		previous lease.Attrs
		want, v6 ctrl.MAC
	}{
		{"no device", ctrl.MAC{}, vxlan, mac, ctrl.MAC{}},
		{"existing device", existing, vxlan, existing, ctrl.MAC{}},
		{"data of another backend", ctrl.MAC{}, lease.Attrs{BackendType: "host-gw", BackendData: vxlan.BackendData},
			ctrl.MAC{}, ctrl.MAC{}},
		{"invalid data", ctrl.MAC{}, lease.Attrs{BackendType: "vxlan", BackendData: json.RawMessage(`{"VtepMAC":7}`),
			BackendV6Data: json.RawMessage(`{"VtepMAC":"x"}`)}, ctrl.MAC{}, ctrl.MAC{}},
		{"nothing published", ctrl.MAC{}, lease.Attrs{}, ctrl.MAC{}, ctrl.MAC{}},
		{"IPv6", ctrl.MAC{}, lease.Attrs{BackendType: "vxlan", BackendV6Data: vxlan.BackendData}, ctrl.MAC{}, mac},
	} {
		l := LocalNode{VTEP: tt.have}
		if l.Restore(tt.previous); l.VTEP != tt.want || l.VTEP6 != tt.v6 {
			t.Errorf("%s: got %v and %v, want %v and %v", tt.name, l.VTEP, l.VTEP6, tt.want, tt.v6)
		}
	}
}
