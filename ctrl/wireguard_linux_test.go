package ctrl

import (
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// TestSetField parses the lines of the configuration protocol and rejects invalid ones.
func TestSetField(t *testing.T) {
	hex := strings.Repeat("0a", 32)
	var d wgtypes.Device
	for _, l := range [][2]string{{"private_key", hex}, {"listen_port", "7"}, {"fwmark", "1"}, {"public_key", hex},
		{"preshared_key", hex},
		{"protocol_version", "1"}, {"endpoint", "[fd00::1]:5"}, {"last_handshake_time_sec", "100"},
		{"persistent_keepalive_interval", "25"},
		{"tx_bytes", "300"}, {"rx_bytes", "200"}, {"allowed_ip", "10.5.2.0/24"}, {"allowed_ip", "fd00::/64"}} {
		if err := setField(&d, l[0], l[1]); err != nil {
			t.Errorf("%s: %v", l, err)
		}
	}
	p := d.Peers[0]
	if d.ListenPort != 7 || d.PrivateKey[31] != 0xa || p.Endpoint.String() != "[fd00::1]:5" ||
		p.PersistentKeepaliveInterval != 25*time.Second ||
		p.LastHandshakeTime.Unix() != 100 || p.TransmitBytes != 300 || p.ReceiveBytes != 200 || len(p.AllowedIPs) != 2 {
		t.Errorf("got %+v", d)
	}
	for _, l := range [][2]string{{"private_key", "0a"}, {"private_key", "zz"}, {"listen_port", "x"},
		{"public_key", "0"}, {"endpoint", "x"},
		{"tx_bytes", "x"}, {"rx_bytes", "-"}, {"allowed_ip", "x"}, {"persistent_keepalive_interval", "x"}, {"last_handshake_time_sec", ""}} {
		if err := setField(&d, l[0], l[1]); err == nil {
			t.Errorf("%s is taken", l)
		}
	}
}

// TestEndpointRoaming checks that a roaming peer has its configured endpoint until the session
// ends.
func TestEndpointRoaming(t *testing.T) {
	given, roamed := netip.MustParseAddrPort("172.31.0.2:51820"), netip.MustParseAddrPort("192.0.2.9:1024")
	w := newWireGuards(slog.New(slog.DiscardHandler))
	w.configuredEndpoint[PeerID{"flannel-wg", Key{2}}] = given
	for _, tt := range []struct {
		name      string
		key       Key
		handshake time.Duration // ago
		at        *net.UDPAddr
		want      netip.AddrPort
	}{
		{"in a session", Key{2}, sessionLife - time.Minute, net.UDPAddrFromAddrPort(roamed), given},
		{"in no session any more", Key{2}, sessionLife + time.Minute, net.UDPAddrFromAddrPort(roamed), roamed},
		{"of an earlier run", Key{3}, time.Second, &net.UDPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 1024}, roamed},
		{"nowhere", Key{3}, time.Second, nil, netip.AddrPort{}},
	} {
		p := wgtypes.Peer{PublicKey: wgtypes.Key(tt.key), LastHandshakeTime: time.Now().Add(-tt.handshake),
			Endpoint: tt.at}
		if got := w.endpoint("flannel-wg", p); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestAllowed checks that a peer with several prefixes of a family has no valid one.
func TestAllowed(t *testing.T) {
	for _, tt := range []struct {
		in     []string
		v4, v6 netip.Prefix
	}{
		{nil, netip.Prefix{}, netip.Prefix{}},
		{[]string{"10.0.0.0/24"}, prefix("10.0.0.0/24"), netip.Prefix{}},
		{[]string{"10.0.0.0/24", "fd00::/64"}, prefix("10.0.0.0/24"), prefix("fd00::/64")},
		{[]string{"10.0.0.0/24", "10.0.1.0/24", "fd00::/64", "fd01::/64"}, netip.Prefix{}, netip.Prefix{}},
	} {
		var in []net.IPNet
		for _, s := range tt.in {
			in = append(in, *ipNet(prefix(s)))
		}
		v4, v6 := allowed(in)
		if v4 != tt.v4 || v6 != tt.v6 {
			t.Errorf("%q: got %v, %v", tt.in, v4, v6)
		}
	}
}
