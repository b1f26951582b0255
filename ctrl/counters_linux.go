package ctrl

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Volume is an amount of traffic as the kernel counts it: a GSO frame is one packet.
type Volume struct{ Packets, Bytes uint64 }

// DeviceCounters are the counters of an overlay device since its creation. Out is towards other
// nodes.
type DeviceCounters struct {
	Dev     string
	Out, In Volume
	// OutDropped and InDropped count packets that the device dropped or that were faulty.
	OutDropped, InDropped uint64
}

// PeerCounters are the counters of a WireGuard peer, which count bytes only, with WireGuard's
// headers.
type PeerCounters struct {
	Allowed           []netip.Prefix // the peer's subnets
	OutBytes, InBytes uint64
}

// Counters reads the counters of the devices that exist, and of the peers of those that are
// WireGuard's.
func (k *Kernel) Counters(devices []string) ([]DeviceCounters, []PeerCounters, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, nil, errors.New("read counters: the connection to the kernel is closed")
	}
	var counters []DeviceCounters
	var peers []PeerCounters
	for _, dev := range devices {
		l, err := k.h.LinkByName(dev)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read counters of %s: %w", dev, err)
		}
		counters = append(counters, deviceCounters(l))
		if l.Type() != string(KindWireGuard) && !k.wg.inUserspace(dev) {
			continue
		}
		d, err := k.wg.device(dev)
		if err != nil {
			return nil, nil, fmt.Errorf("read counters of wireguard device %s: %w", dev, err)
		}
		for _, p := range d.Peers {
			peers = append(peers, peerCounters(p))
		}
	}
	return counters, peers, nil
}

func deviceCounters(l netlink.Link) DeviceCounters {
	c := DeviceCounters{Dev: l.Attrs().Name}
	if s := l.Attrs().Statistics; s != nil {
		c.Out = Volume{s.TxPackets, s.TxBytes}
		c.In = Volume{s.RxPackets, s.RxBytes}
		c.OutDropped, c.InDropped = s.TxDropped+s.TxErrors, s.RxDropped+s.RxErrors
	}
	return c
}

func peerCounters(p wgtypes.Peer) PeerCounters {
	c := PeerCounters{OutBytes: uint64(p.TransmitBytes), InBytes: uint64(p.ReceiveBytes)}
	for _, n := range p.AllowedIPs {
		c.Allowed = append(c.Allowed, prefixOf(&n))
	}
	return c
}
