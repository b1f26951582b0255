package ctrl

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// userspaceDevice is a WireGuard device that runs in this process over a TUN.
type userspaceDevice struct{ d *device.Device }

// newUserspaceDevice creates the TUN and starts WireGuard on it. Packets flow once the TUN is up.
func newUserspaceDevice(name string, mtu int, log *slog.Logger) (*userspaceDevice, error) {
	t, err := tun.CreateTUN(name, mtu)
	if err != nil {
		return nil, fmt.Errorf("create tun %s: %w", name, err)
	}
	filter := &repeatFilter{log: log}
	bind := wireguardBind{conn.NewDefaultBind()}
	return &userspaceDevice{device.NewDevice(t, bind, &device.Logger{
		Verbosef: func(string, ...any) {},
		Errorf: func(format string, a ...any) {
			filter.warn("wireguard: "+fmt.Sprintf(format, a...), "device", name)
		},
	})}, nil
}

// close stops WireGuard and deletes the TUN.
func (u *userspaceDevice) close() { u.d.Close() }

// configure uses WireGuard's cross-platform configuration protocol
// (https://www.wireguard.com/xplatform/).
func (u *userspaceDevice) configure(c wgtypes.Config) error {
	var b strings.Builder
	if c.PrivateKey != nil {
		fmt.Fprintf(&b, "private_key=%x\n", c.PrivateKey[:])
	}
	if c.ListenPort != nil {
		fmt.Fprintf(&b, "listen_port=%d\n", *c.ListenPort)
	}
	for _, p := range c.Peers {
		fmt.Fprintf(&b, "public_key=%x\n", p.PublicKey[:])
		if p.Remove {
			b.WriteString("remove=true\n")
			continue
		}
		fmt.Fprintf(&b,
			"preshared_key=%x\nendpoint=%v\npersistent_keepalive_interval=%d\nreplace_allowed_ips=true\n",
			p.PresharedKey[:], p.Endpoint, int(p.PersistentKeepaliveInterval.Seconds()))
		for _, a := range p.AllowedIPs {
			fmt.Fprintf(&b, "allowed_ip=%v\n", &a)
		}
	}
	return u.d.IpcSet(b.String())
}

// read returns the configuration, in the same protocol.
func (u *userspaceDevice) read() (*wgtypes.Device, error) {
	text, err := u.d.IpcGet()
	if err != nil {
		return nil, err
	}
	var d wgtypes.Device
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		if err := setField(&d, name, value); err != nil {
			return nil, fmt.Errorf("parse wireguard setting %s: %w", name, err)
		}
	}
	return &d, lines.Err()
}

// setField parses one line into d. Lines after a public_key belong to that peer.
func setField(d *wgtypes.Device, name, value string) error {
	var err error
	switch name {
	case "private_key":
		err = hexKey(&d.PrivateKey, value)
		return err
	case "listen_port":
		d.ListenPort, err = strconv.Atoi(value)
		return err
	case "public_key":
		d.Peers = append(d.Peers, wgtypes.Peer{})
	}
	if len(d.Peers) == 0 {
		return nil
	}
	p := &d.Peers[len(d.Peers)-1]
	var n int64
	switch name {
	case "public_key":
		err = hexKey(&p.PublicKey, value)
	case "preshared_key":
		err = hexKey(&p.PresharedKey, value)
	case "endpoint":
		var a netip.AddrPort
		if a, err = netip.ParseAddrPort(value); err == nil {
			p.Endpoint = net.UDPAddrFromAddrPort(a)
		}
	case "persistent_keepalive_interval":
		n, err = strconv.ParseInt(value, 10, 64)
		p.PersistentKeepaliveInterval = time.Duration(n) * time.Second
	case "last_handshake_time_sec":
		n, err = strconv.ParseInt(value, 10, 64)
		p.LastHandshakeTime = time.Unix(n, 0)
	case "tx_bytes":
		p.TransmitBytes, err = strconv.ParseInt(value, 10, 64)
	case "rx_bytes":
		p.ReceiveBytes, err = strconv.ParseInt(value, 10, 64)
	case "allowed_ip":
		var a netip.Prefix
		if a, err = netip.ParsePrefix(value); err == nil {
			p.AllowedIPs = append(p.AllowedIPs, *ipNet(a))
		}
	}
	return err
}

func hexKey(k *wgtypes.Key, s string) error {
	n, err := hex.Decode(k[:], []byte(s))
	if err == nil && n != len(k) {
		err = fmt.Errorf("key has %d bytes", n)
	}
	return err
}
