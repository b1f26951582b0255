package backend

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"weft/ctrl"
	"weft/encap"
	"weft/lease"
)

const (
	wireGuardDevice   = "flannel-wg"
	wireGuardDeviceV6 = "flannel-wg-v6"
	defaultWGPort     = 51820
	defaultWGPortV6   = 51821
)

// wireGuard carries each family in its own device (mode separate) or both in one.
type wireGuard struct {
	network        lease.Network
	local          LocalNode
	port, portV6   int
	psk, publicKey ctrl.Key
	keepalive      time.Duration
	mode           string // separate, auto, ipv4 or ipv6
	mtu            int
}

// wireGuardData is the published data of a node.
type wireGuardData struct {
	PublicKey string
	Port      int
}

// wireGuardConfig holds the backend's keys.
type wireGuardConfig struct {
	ListenPort, ListenPortV6, MTU int
	PSK                           string
	PersistentKeepaliveInterval   int
	Mode                          string
}

func readWireGuardConfig(n lease.Network) (wireGuardConfig, error) {
	c := wireGuardConfig{
		ListenPort: defaultWGPort, ListenPortV6: defaultWGPortV6, Mode: "separate",
	}
	if err := decode(n, &c); err != nil {
		return c, err
	}
	return c, errors.Join(
		inRange("ListenPort", c.ListenPort, 1, 65535),
		inRange("ListenPortV6", c.ListenPortV6, 1, 65535),
		inRange("MTU", c.MTU, 0, 65535), inRange("PersistentKeepaliveInterval",
			c.PersistentKeepaliveInterval, 0, 65535))
}

// newWireGuard checks Mode and PSK.
func newWireGuard(n lease.Network, l LocalNode) (Backend, error) {
	c, err := readWireGuardConfig(n)
	if err != nil {
		return nil, err
	}
	w := &wireGuard{
		network: n, local: l, port: c.ListenPort, portV6: c.ListenPortV6,
		keepalive: time.Duration(c.PersistentKeepaliveInterval) * time.Second,
		mode:      strings.ToLower(c.Mode),
	}
	switch w.mode {
	case "separate", "auto", "ipv4", "ipv6":
	default:
		return nil, fmt.Errorf("config key Mode is %q, want separate, auto, ipv4 or ipv6", c.Mode)
	}
	if c.PSK != "" {
		if w.psk, err = ctrl.ParseKey(c.PSK); err != nil {
			return nil, fmt.Errorf("config key PSK: %w", err)
		}
	}
	if w.publicKey, err = l.PrivateKey.Public(); err != nil {
		return nil, err
	}
	w.mtu, err = deviceMTU(n, l, c.MTU, encap.OverheadWireGuard)
	return w, err
}

// prepareWireGuard reads or creates the private key.
func prepareWireGuard(_ kernel, _ lease.Network, l *LocalNode, o LocalOptions) (err error) {
	l.PrivateKey, err = privateKey(o.KeyFile)
	return err
}

// privateKey reads the key file, or creates it. The exclusive create keeps two daemons that start
// at once from using two keys.
func privateKey(path string) (ctrl.Key, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createPrivateKey(path)
	}
	if err != nil {
		return ctrl.Key{}, fmt.Errorf("read wireguard key: %w", err)
	}
	k, err := ctrl.ParseKey(strings.TrimSpace(string(b)))
	if err != nil {
		return ctrl.Key{}, fmt.Errorf("wireguard key file %s: %w", path, err)
	}
	return k, nil
}

func createPrivateKey(path string) (ctrl.Key, error) {
	k := ctrl.NewPrivateKey()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return ctrl.Key{}, fmt.Errorf("create directory of wireguard key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return ctrl.Key{}, fmt.Errorf("create wireguard key file: %w", err)
	}
	_, err = f.WriteString(k.Base64())
	if err := errors.Join(err, f.Close()); err != nil {
		return ctrl.Key{}, fmt.Errorf("write wireguard key: %w", err)
	}
	return k, nil
}

// device returns the name and port of the device of a family.
func (w *wireGuard) device(v6 bool) (string, int) {
	if v6 && w.mode == "separate" {
		return wireGuardDeviceV6, w.portV6
	}
	return wireGuardDevice, w.port
}

// Plan returns the devices, a route of the whole network per family, and a peer per node (and
// family, in mode separate).
func (w *wireGuard) Plan(self lease.Lease, all []lease.Lease) ctrl.State {
	s, peers := startPlan(w.network, "wireguard", self, all)
	planned := map[string]bool{}
	for _, f := range families(w.network, self) {
		dev, port := w.device(f.v6)
		if !planned[dev] {
			planned[dev] = true
			s.Links = append(s.Links, ctrl.Link{Name: dev, Kind: ctrl.KindWireGuard, MTU: w.mtu,
				Up: true})
			s.Tunnels = append(s.Tunnels, ctrl.Tunnel{Dev: dev, PrivateKey: w.local.PrivateKey,
				ListenPort: port})
		}
		s.Addrs = append(s.Addrs, gatewayOn(dev, f.subnet))
		for _, r := range f.networkRoute(dev) {
			if !f.v6 {
				r.Scope = ctrl.ScopeLink
			}
			s.Routes = append(s.Routes, r)
		}
	}
	index := map[ctrl.PeerID]int{}
	for _, p := range peers {
		if err := w.addPeer(&s, p, index); err != nil {
			unreachable(&s, p, err)
		}
	}
	return s
}

// addPeer adds a new peer, or the second family of a node that is already a peer of the shared
// device. index holds the positions of the peers in s.Peers.
func (w *wireGuard) addPeer(s *ctrl.State, p peerSubnet, index map[ctrl.PeerID]int) error {
	dev, port := w.device(p.v6)
	var d wireGuardData
	if err := json.Unmarshal(p.data, &d); err != nil {
		return fmt.Errorf("lease has invalid wireguard data: %w", err)
	}
	key, err := ctrl.ParseKey(d.PublicKey)
	if err != nil {
		return fmt.Errorf("lease has an invalid PublicKey: %w", err)
	}
	id := ctrl.PeerID{Dev: dev, PublicKey: key}
	i, exists := index[id]
	if exists && (w.mode == "separate" || s.Peers[i].Allowed6.IsValid() ||
		s.Peers[i].Allowed != p.lease.Subnet.Masked()) {
		return errors.New("PublicKey is also used by another node")
	}
	if key == w.publicKey {
		return errors.New("PublicKey is this node's own")
	}
	if exists {
		s.Peers[i].Allowed6 = p.subnet.Masked()
		return nil
	}
	endpoint, err := w.endpoint(p, d.Port, port)
	if err != nil {
		return err
	}
	peer := ctrl.Peer{Dev: dev, PublicKey: key, PSK: w.psk, Endpoint: endpoint,
		Keepalive: w.keepalive}
	if p.v6 {
		peer.Allowed6 = p.subnet.Masked()
	} else {
		peer.Allowed = p.subnet.Masked()
	}
	index[id] = len(s.Peers)
	s.Peers = append(s.Peers, peer)
	return nil
}

// endpoint returns the UDP address of a peer. published is the port in its data; if that is 0, the
// local device's port is used. If one device carries both families, the port of the IPv4 data comes
// first: flannel publishes a port in the IPv6 data that its device does not listen on.
func (w *wireGuard) endpoint(p peerSubnet, published, local int) (netip.AddrPort, error) {
	addr := p.public
	if w.mode != "separate" {
		addr = w.outer(p.lease.PublicIP, p.lease.PublicIPv6)
		var d wireGuardData
		if json.Unmarshal(p.lease.BackendData, &d) == nil && d.Port != 0 {
			published = d.Port
		}
	}
	if !addr.IsValid() {
		return netip.AddrPort{}, fmt.Errorf("lease has no public address for mode %s", w.mode)
	}
	if published == 0 {
		published = local
	}
	if published < 1 || published > 65535 {
		return netip.AddrPort{}, fmt.Errorf("port %d is not in 1 to 65535", published)
	}
	return netip.AddrPortFrom(addr, uint16(published)), nil
}

// outer chooses the outer family for a node with both. Mode auto takes IPv4, unless only the IPv6
// addresses of both ends are public.
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
	local := w.local.Iface.Public6
	if v4.IsPrivate() && !v6.IsPrivate() && local.IsValid() && !local.IsPrivate() {
		return v6
	}
	return v4
}

// Advertisement publishes the public key and the ports. A family without a device has no public
// address.
func (w *wireGuard) Advertisement() Advertisement {
	a := Advertisement{Type: "wireguard", Attrs: lease.Attrs{BackendType: "wireguard"}, MTU: w.mtu}
	if w.network.Network.IsValid() {
		a.Attrs.PublicIP = w.local.Iface.Public
		a.Attrs.BackendData = w.advertise(&a, false)
	}
	if w.network.IPv6Network.IsValid() {
		a.Attrs.PublicIPv6 = w.local.Iface.Public6
		a.Attrs.BackendV6Data = w.advertise(&a, true)
	}
	return a
}

// advertise adds the device of a family to a and returns the family's data.
func (w *wireGuard) advertise(a *Advertisement, v6 bool) json.RawMessage {
	dev, port := w.device(v6)
	if !slices.Contains(a.Devices, dev) {
		a.Devices = append(a.Devices, dev)
	}
	return fmt.Appendf(nil, `{"PublicKey":"%s","Port":%d}`, w.publicKey.Base64(), port)
}
