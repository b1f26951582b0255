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

// wireGuards is the one door to WireGuard devices, whether the kernel runs them or this process does.
type wireGuards struct {
	log   *slog.Logger
	ctl   *wgctrl.Client          // to the kernel; nil until first used
	mine  map[string]*localDevice // run by this process, by device name
	given map[peerKey]netip.AddrPort
}

func newWireGuards() wireGuards {
	return wireGuards{log: slog.New(slog.DiscardHandler), mine: map[string]*localDevice{}, given: map[peerKey]netip.AddrPort{}}
}

// close ends the devices of this process.
func (w *wireGuards) close() {
	for name := range w.mine {
		w.stop(name)
	}
	if w.ctl != nil {
		if err := w.ctl.Close(); err != nil {
			w.log.Warn("close wireguard control", "error", err)
		}
	}
}

// local says whether this process runs the device.
func (w *wireGuards) local(dev string) bool { return w.mine[dev] != nil }

// stop ends a device of this process, which removes it.
func (w *wireGuards) stop(dev string) {
	w.mine[dev].close()
	delete(w.mine, dev)
}

// forgetMissing ends what this process runs for devices that someone else has deleted.
func (w *wireGuards) forgetMissing(names map[int]string) {
	there := map[string]bool{}
	for _, n := range names {
		there[n] = true
	}
	for dev := range w.mine {
		if !there[dev] {
			w.stop(dev)
		}
	}
}

// createWireGuard makes the device in the kernel, or where that has no WireGuard, in this process.
func (k *Kernel) createWireGuard(l *netlink.Wireguard) error {
	err := k.h.LinkAdd(l)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	d, localErr := newLocalDevice(l.Name, l.MTU, k.wg.log)
	if localErr != nil {
		return fmt.Errorf("this kernel has no wireguard (%w), nor does it run in this process: %w", err, localErr)
	}
	k.wg.mine[l.Name] = d
	k.wg.log.Info("the kernel has no wireguard, so this process carries the packets", "device", l.Name)
	return nil
}

// configure gives a device its configuration.
func (w *wireGuards) configure(dev string, c wgtypes.Config) error {
	if d := w.mine[dev]; d != nil {
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

// applyPeers performs operations on peers, all those of one device at once. They share its error.
func (w *wireGuards) applyPeers(ops []op) []error {
	errs := make([]error, len(ops))
	for start := 0; start < len(ops); {
		dev := ops[start].object.device()
		end := start + run(ops[start:], func(o op) bool { return o.object.device() == dev })
		var c wgtypes.Config
		for _, o := range ops[start:end] {
			c.Peers = append(c.Peers, peerConfig(o))
		}
		err := w.configure(dev, c)
		for i, o := range ops[start:end] {
			errs[start+i] = err
			if p, ok := o.object.(Peer); ok && err == nil {
				w.given[peerKey{dev, p.PublicKey}] = p.Endpoint
			}
		}
		start = end
	}
	return errs
}

func peerConfig(o op) wgtypes.PeerConfig {
	p, _ := o.object.(Peer) // applyPeers gets no others
	if o.verb == doDelete {
		return wgtypes.PeerConfig{PublicKey: wgtypes.Key(p.PublicKey), Remove: true}
	}
	psk := wgtypes.Key(p.PSK)
	c := wgtypes.PeerConfig{
		PublicKey: wgtypes.Key(p.PublicKey), PresharedKey: &psk, Endpoint: net.UDPAddrFromAddrPort(p.Endpoint),
		PersistentKeepaliveInterval: &p.Keepalive, ReplaceAllowedIPs: true,
	}
	for _, a := range []netip.Prefix{p.Allowed, p.Allowed6} {
		if a.IsValid() {
			c.AllowedIPs = append(c.AllowedIPs, *ipNet(a))
		}
	}
	return c
}

// sessionLife is how long a WireGuard session lasts (REJECT_AFTER_TIME, the WireGuard paper, section 6.1).
const sessionLife = 180 * time.Second

// read gives a device's tunnel and peers.
func (w *wireGuards) read(dev string) (Tunnel, []Peer, error) {
	d, err := w.device(dev)
	if err != nil {
		return Tunnel{}, nil, err
	}
	t := Tunnel{Dev: dev, PrivateKey: Key(d.PrivateKey), ListenPort: d.ListenPort}
	var peers []Peer
	for _, p := range d.Peers {
		v := Peer{Dev: dev, PublicKey: Key(p.PublicKey), PSK: Key(p.PresharedKey), Keepalive: p.PersistentKeepaliveInterval}
		v.Endpoint = w.endpoint(dev, p)
		v.Allowed, v.Allowed6 = allowed(p.AllowedIPs)
		peers = append(peers, v)
	}
	return t, peers, nil
}

// endpoint is where a peer is. One behind NAT, or with several addresses, is followed by WireGuard itself. While that
// works, its endpoint counts as the one we gave, so that it is changed only when its lease says something new.
func (w *wireGuards) endpoint(dev string, p wgtypes.Peer) netip.AddrPort {
	given, ok := w.given[peerKey{dev, Key(p.PublicKey)}]
	switch {
	case ok && time.Since(p.LastHandshakeTime) < sessionLife:
		return given
	case p.Endpoint == nil:
		return netip.AddrPort{}
	}
	a := p.Endpoint.AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// allowed gives the one prefix of each family; with more than one, or none, it is invalid, which no wanted peer has.
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
	if d := w.mine[dev]; d != nil {
		return d.read()
	}
	if err := w.open(); err != nil {
		return nil, err
	}
	return w.ctl.Device(dev)
}
