package ctrl

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// wireGuards configures WireGuard devices, of the kernel and of this process.
type wireGuards struct {
	log                *slog.Logger
	ctl                *wgctrl.Client              // of the kernel; nil until first used
	userspace          map[string]*userspaceDevice // devices of this process by name
	configuredEndpoint map[PeerID]netip.AddrPort
}

func newWireGuards(log *slog.Logger) wireGuards {
	return wireGuards{
		log: log, userspace: map[string]*userspaceDevice{},
		configuredEndpoint: map[PeerID]netip.AddrPort{},
	}
}

// close stops the devices of this process.
func (w *wireGuards) close() {
	for name := range w.userspace {
		w.stop(name)
	}
	if w.ctl != nil {
		if err := w.ctl.Close(); err != nil {
			w.log.Warn("close wireguard control", "err", err)
		}
	}
}

// inUserspace reports whether this process runs the device.
func (w *wireGuards) inUserspace(dev string) bool { return w.userspace[dev] != nil }

// stop stops and deletes a device of this process.
func (w *wireGuards) stop(dev string) {
	w.userspace[dev].close()
	delete(w.userspace, dev)
}

// stopMissing stops the devices of this process that another program deleted.
func (w *wireGuards) stopMissing(names map[int]string) {
	exists := map[string]bool{}
	for _, n := range names {
		exists[n] = true
	}
	for dev := range w.userspace {
		if !exists[dev] {
			w.stop(dev)
		}
	}
}

// createWireGuard creates the device in the kernel, or in this process if the kernel has no
// WireGuard.
func createWireGuard(k *Kernel, x Link, a netlink.LinkAttrs) error {
	err := k.h.LinkAdd(&netlink.Wireguard{LinkAttrs: a})
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	d, userspaceErr := newUserspaceDevice(x.Name, x.MTU, k.wg.log)
	if userspaceErr != nil {
		return fmt.Errorf("kernel has no wireguard (%w), and userspace wireguard failed: %w", err,
			userspaceErr)
	}
	k.wg.userspace[x.Name] = d
	k.wg.log.Warn("kernel has no wireguard, running it in userspace", "device", x.Name)
	return nil
}

// configure configures a device.
func (w *wireGuards) configure(dev string, c wgtypes.Config) error {
	if d := w.userspace[dev]; d != nil {
		return d.configure(c)
	}
	if err := w.open(); err != nil {
		return err
	}
	return w.ctl.ConfigureDevice(dev, c)
}

func (w *wireGuards) open() error {
	if w.ctl != nil {
		return nil
	}
	ctl, err := wgctrl.New()
	if err != nil {
		return fmt.Errorf("open wireguard control: %w", err)
	}
	w.ctl = ctl
	return nil
}

func (w *wireGuards) setTunnel(t Tunnel) error {
	private := wgtypes.Key(t.PrivateKey)
	return w.configure(t.Dev, wgtypes.Config{PrivateKey: &private, ListenPort: &t.ListenPort})
}

// applyPeers performs operations on peers, those of one device at once. All of them get its error.
func (w *wireGuards) applyPeers(ops []Op) []error {
	errs := make([]error, len(ops))
	for start := 0; start < len(ops); {
		dev := ops[start].Object.device()
		end := start + prefixLen(ops[start:], func(o Op) bool { return o.Object.device() == dev })
		var c wgtypes.Config
		for _, o := range ops[start:end] {
			c.Peers = append(c.Peers, peerConfig(o))
		}
		err := w.configure(dev, c)
		for i, o := range ops[start:end] {
			errs[start+i] = err
			if p, ok := o.Object.(Peer); ok && err == nil {
				w.configuredEndpoint[p.id()] = p.Endpoint
			}
		}
		start = end
	}
	return errs
}

func peerConfig(o Op) wgtypes.PeerConfig {
	p, _ := o.Object.(Peer) // applyPeers gets nothing else
	if o.Verb == Delete {
		return wgtypes.PeerConfig{PublicKey: wgtypes.Key(p.PublicKey), Remove: true}
	}
	psk := wgtypes.Key(p.PSK)
	c := wgtypes.PeerConfig{
		PublicKey: wgtypes.Key(p.PublicKey), PresharedKey: &psk,
		Endpoint:                    net.UDPAddrFromAddrPort(p.Endpoint),
		PersistentKeepaliveInterval: &p.Keepalive, ReplaceAllowedIPs: true,
	}
	for _, a := range []netip.Prefix{p.Allowed, p.Allowed6} {
		if a.IsValid() {
			c.AllowedIPs = append(c.AllowedIPs, *ipNet(a))
		}
	}
	return c
}

// sessionLife is the lifetime of a WireGuard session (REJECT_AFTER_TIME, the WireGuard paper,
// section 6.1).
const sessionLife = 180 * time.Second

// readWireGuard adds the tunnel and the peers of a device.
func (k *Kernel) readWireGuard(s *State, l Link) error {
	t, peers, err := k.wg.read(l.Name)
	if err != nil {
		return fmt.Errorf("read wireguard device %s: %w", l.Name, err)
	}
	s.Tunnels = append(s.Tunnels, t)
	s.Peers = append(s.Peers, peers...)
	return nil
}

// read returns the tunnel and the peers of a device.
func (w *wireGuards) read(dev string) (Tunnel, []Peer, error) {
	d, err := w.device(dev)
	if err != nil {
		return Tunnel{}, nil, err
	}
	t := Tunnel{Dev: dev, PrivateKey: Key(d.PrivateKey), ListenPort: d.ListenPort}
	var peers []Peer
	for _, p := range d.Peers {
		v := Peer{Dev: dev, PublicKey: Key(p.PublicKey), PSK: Key(p.PresharedKey),
			Keepalive: p.PersistentKeepaliveInterval}
		v.Endpoint = w.endpoint(dev, p)
		v.Allowed, v.Allowed6 = allowed(p.AllowedIPs)
		peers = append(peers, v)
	}
	return t, peers, nil
}

// endpoint returns the UDP address of a peer. WireGuard follows peers that roam or are behind NAT.
// During a session the configured endpoint is returned, so that roaming is not "repaired" and only
// a changed lease changes the endpoint.
func (w *wireGuards) endpoint(dev string, p wgtypes.Peer) netip.AddrPort {
	configured, ok := w.configuredEndpoint[PeerID{dev, Key(p.PublicKey)}]
	switch {
	case ok && time.Since(p.LastHandshakeTime) < sessionLife:
		return configured
	case p.Endpoint == nil:
		return netip.AddrPort{}
	}
	a := p.Endpoint.AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// allowed returns the prefix of each family. It is invalid if there is none or more than one, and
// then differs from the wanted one.
func allowed(nets []net.IPNet) (v4, v6 netip.Prefix) {
	count := map[bool]int{}
	for _, n := range nets {
		p := prefixOf(&n)
		if count[p.Addr().Is6()]++; p.Addr().Is6() {
			v6 = p
		} else {
			v4 = p
		}
	}
	if count[false] > 1 {
		v4 = netip.Prefix{}
	}
	if count[true] > 1 {
		v6 = netip.Prefix{}
	}
	return v4, v6
}

func (w *wireGuards) device(dev string) (*wgtypes.Device, error) {
	if d := w.userspace[dev]; d != nil {
		return d.read()
	}
	if err := w.open(); err != nil {
		return nil, err
	}
	return w.ctl.Device(dev)
}
