package ctrl

import (
	"crypto/ecdh"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"weft/encap"
	"weft/lease"
)

const (
	wireGuardDevice   = "flannel-wg"
	wireGuardDeviceV6 = "flannel-wg-v6"
	defaultWGPort     = 51820
	defaultWGPortV6   = 51821
)

// wireGuard carries each family in a device of its own (mode separate) or both in one.
type wireGuard struct {
	network        lease.Network
	self           Self
	port, portV6   int
	psk, publicKey Key
	keepalive      time.Duration
	mode           string // separate, auto, ipv4, ipv6
	mtu            int
}

// wireGuardData is what a node publishes.
type wireGuardData struct {
	PublicKey string
	Port      int
}

// newWireGuard reads ListenPort, ListenPortV6, MTU, PSK, PersistentKeepaliveInterval and Mode.
func newWireGuard(n lease.Network, s Self) (Backend, error) {
	c := struct {
		ListenPort, ListenPortV6, MTU int
		PSK                           string
		PersistentKeepaliveInterval   int
		Mode                          string
	}{ListenPort: defaultWGPort, ListenPortV6: defaultWGPortV6, Mode: "separate"}
	if err := decode(n, &c); err != nil {
		return nil, err
	}
	err := errors.Join(inRange("ListenPort", c.ListenPort, 1, 65535), inRange("ListenPortV6", c.ListenPortV6, 1, 65535),
		inRange("MTU", c.MTU, 0, 65535), inRange("PersistentKeepaliveInterval", c.PersistentKeepaliveInterval, 0, 65535))
	if err != nil {
		return nil, err
	}
	w := &wireGuard{network: n, self: s, port: c.ListenPort, portV6: c.ListenPortV6,
		keepalive: time.Duration(c.PersistentKeepaliveInterval) * time.Second, mode: strings.ToLower(c.Mode)}
	switch w.mode {
	case "separate", "auto", "ipv4", "ipv6":
	default:
		return nil, fmt.Errorf("config key Mode is %q, allowed are separate, auto, ipv4, ipv6", c.Mode)
	}
	if c.PSK != "" {
		if w.psk, err = ParseKey(c.PSK); err != nil {
			return nil, fmt.Errorf("config key PSK: %w", err)
		}
	}
	if w.publicKey, err = s.PrivateKey.public(); err != nil {
		return nil, err
	}
	w.mtu, err = deviceMTU(n, s, c.MTU, encap.OverheadWireGuard)
	return w, err
}

// public is the public key of a private one.
func (k Key) public() (Key, error) {
	if k == (Key{}) {
		return Key{}, errors.New("no private key")
	}
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return Key{}, fmt.Errorf("private key: %w", err)
	}
	return Key(private.PublicKey().Bytes()), nil
}

// device gives the name and port of the device for a family.
func (w *wireGuard) device(v6 bool) (string, int) {
	if v6 && w.mode == "separate" {
		return wireGuardDeviceV6, w.portV6
	}
	return wireGuardDevice, w.port
}

// Plan makes the devices, a route of the whole network for each family, and a peer per node (and family, if separate).
func (w *wireGuard) Plan(self lease.Lease, all []lease.Lease) State {
	s, paths := newPlan(w.network, "wireguard", self, all)
	made := map[string]bool{}
	for _, f := range families(w.network, self) {
		dev, port := w.device(f.v6)
		if !made[dev] {
			made[dev] = true
			s.Links = append(s.Links, Link{Name: dev, Kind: KindWireGuard, MTU: w.mtu, Up: true})
			s.Tunnels = append(s.Tunnels, Tunnel{Dev: dev, PrivateKey: w.self.PrivateKey, ListenPort: port})
		}
		s.Addrs = append(s.Addrs, Addr{Dev: dev, Prefix: hostPrefix(gatewayAddr(f.subnet))})
		s.Routes = append(s.Routes, Route{Dst: f.network.Masked(), Dev: dev, LinkOnly: !f.v6, Protocol: RouteProtocol})
	}
	index := map[peerKey]int{}
	for _, p := range paths {
		if err := w.peer(&s, p, index); err != nil {
			s.unreachable(p, err)
		}
	}
	return s
}

// peerKey is what WireGuard tells peers apart by.
type peerKey struct {
	dev string
	key Key
}

// peer adds one path: a new peer, or the second family of a node that is a peer of the one device already. index
// finds a peer in s.Peers.
func (w *wireGuard) peer(s *State, p path, index map[peerKey]int) error {
	dev, port := w.device(p.v6)
	var d wireGuardData
	if err := json.Unmarshal(p.data, &d); err != nil {
		return fmt.Errorf("its lease has no readable wireguard data: %w", err)
	}
	key, err := ParseKey(d.PublicKey)
	if err != nil {
		return fmt.Errorf("its lease has no usable PublicKey: %w", err)
	}
	k := peerKey{dev, key}
	i, there := index[k]
	if there && (w.mode == "separate" || s.Peers[i].Allowed6.IsValid() || !w.same(s.Peers[i], p.lease)) {
		return errors.New("its PublicKey is also that of another node")
	}
	if key == w.publicKey {
		return errors.New("its PublicKey is ours")
	}
	if there {
		s.Peers[i].Allowed6 = p.subnet.Masked()
		return nil
	}
	end, err := w.endpoint(p, d.Port, port)
	if err != nil {
		return err
	}
	peer := Peer{Dev: dev, PublicKey: key, PSK: w.psk, Endpoint: end, Keepalive: w.keepalive}
	if p.v6 {
		peer.Allowed6 = p.subnet.Masked()
	} else {
		peer.Allowed = p.subnet.Masked()
	}
	index[k] = len(s.Peers)
	s.Peers = append(s.Peers, peer)
	return nil
}

// same says whether the peer is of this lease.
func (w *wireGuard) same(p Peer, l lease.Lease) bool { return p.Allowed == l.Subnet.Masked() }

// endpoint is where the peer is sent to. published is the port of its data, ours stands in for none. With one device
// for both families the port is that of the IPv4 data, if there is any: flannel publishes another in the IPv6 data than
// the one its device listens on.
func (w *wireGuard) endpoint(p path, published, ours int) (netip.AddrPort, error) {
	addr := p.public
	if w.mode != "separate" {
		addr = w.outer(p.lease.PublicIP, p.lease.PublicIPv6)
		var d wireGuardData
		if json.Unmarshal(p.lease.BackendData, &d) == nil && d.Port != 0 {
			published = d.Port
		}
	}
	if !addr.IsValid() {
		return netip.AddrPort{}, fmt.Errorf("its lease has no address for mode %s", w.mode)
	}
	if published == 0 {
		published = ours
	}
	if published < 1 || published > 65535 {
		return netip.AddrPort{}, fmt.Errorf("its port %d is not in 1 to 65535", published)
	}
	return netip.AddrPortFrom(addr, uint16(published)), nil
}

// outer chooses the family of the tunnel for a node with both. In mode auto that is IPv4 unless only the IPv6
// addresses of both ends are public ones.
func (w *wireGuard) outer(v4, v6 netip.Addr) netip.Addr {
	switch {
	case w.mode == "ipv4":
		return v4
	case w.mode == "ipv6":
		return v6
	case !v4.IsValid():
		return v6
	case !v6.IsValid():
		return v4
	}
	ours := w.self.Iface.Public6
	if v4.IsPrivate() && !v6.IsPrivate() && ours.IsValid() && !ours.IsPrivate() {
		return v6
	}
	return v4
}

// Spec publishes our public key and ports.
func (w *wireGuard) Spec() Spec {
	s := Spec{Type: "wireguard", LeaseType: "wireguard", MTU: w.mtu}
	for _, f := range []struct {
		on   bool
		v6   bool
		data *json.RawMessage
	}{
		{w.network.Network.IsValid(), false, &s.Data},
		{w.network.IPv6Network.IsValid(), true, &s.DataV6},
	} {
		if !f.on {
			continue
		}
		_, port := w.device(f.v6)
		*f.data = fmt.Appendf(nil, `{"PublicKey":"%s","Port":%d}`, w.publicKey.Base64(), port)
	}
	return s
}
