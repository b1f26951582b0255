package ctrl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"weft/lease"
)

// SelfOptions tell where to find what a backend keeps.
type SelfOptions struct {
	// KeyFile holds WireGuard's private key in base64; it is made if it is not there.
	KeyFile   string
	Blackhole bool // --ip-blackhole-route
}

// Self finds what the network's backend has to know of this node: what it keeps over restarts, and what this kernel
// can do. Of the extension backend it runs the PreStartupCommand.
//
// Call it once for a network config and keep the result: a backend made anew for another interface address has to
// publish the same keys and addresses as before. Iface and Device are the caller's to change, and VTEP and VTEP6 to fill
// in with what is first published where there is no device yet.
func (k *Kernel) Self(n lease.Network, i Iface, o SelfOptions) (Self, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := Self{Iface: i, Blackhole: o.Blackhole}
	var err error
	switch strings.ToLower(n.Backend.Type) {
	case "vxlan":
		s.VTEP, s.VTEP6, err = k.vteps(n, s)
	case "wireguard":
		s.PrivateKey, err = privateKey(o.KeyFile)
	case "udp":
		s.FOU, s.NoFOU, err = k.probeFOU(n)
	case "extension":
		s.Startup, err = startup(n, s)
	}
	return s, err
}

// vteps reads the Ethernet addresses of VXLAN devices of an earlier run.
func (k *Kernel) vteps(n lease.Network, s Self) (v4, v6 MAC, err error) {
	b, err := newVXLAN(n, s)
	if err != nil {
		return MAC{}, MAC{}, err
	}
	v, _ := b.(*vxlan) // newVXLAN makes no other
	for _, d := range []struct {
		v6  bool
		mac *MAC
	}{{false, &v4}, {true, &v6}} {
		l, err := k.h.LinkByName(v.device(d.v6))
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue
		}
		if err != nil {
			return MAC{}, MAC{}, fmt.Errorf("find %s: %w", v.device(d.v6), err)
		}
		if a := l.Attrs().HardwareAddr; len(a) == len(MAC{}) && l.Type() == string(KindVXLAN) {
			*d.mac = MAC(a)
		}
	}
	return v4, v6, nil
}

// privateKey reads the key file or makes one. An exclusive create keeps two starting daemons from having two keys.
func privateKey(path string) (Key, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newPrivateKey(path)
	}
	if err != nil {
		return Key{}, fmt.Errorf("read wireguard key: %w", err)
	}
	k, err := ParseKey(strings.TrimSpace(string(b)))
	if err != nil {
		return Key{}, fmt.Errorf("wireguard key file %s: %w", path, err)
	}
	return k, nil
}

func newPrivateKey(path string) (Key, error) {
	k, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return Key{}, fmt.Errorf("make wireguard key: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return Key{}, fmt.Errorf("make folder of wireguard key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return Key{}, fmt.Errorf("make wireguard key file: %w", err)
	}
	_, err = f.WriteString(k.String())
	if err := errors.Join(err, f.Close()); err != nil {
		return Key{}, fmt.Errorf("write wireguard key: %w", err)
	}
	return Key(k), nil
}

// probeFOU finds out whether the kernel can carry the udp backend, if the config's Carrier asks for that: it makes a
// device as it would be used and removes it. The module fou has no alias by which the kernel would load it by itself.
func (k *Kernel) probeFOU(n lease.Network) (ok bool, why string, err error) {
	c := struct{ Carrier string }{}
	if err := decode(n, &c); err != nil {
		return false, "", err
	}
	if c.Carrier == "" || strings.EqualFold(c.Carrier, "userspace") {
		return false, "not asked for", nil
	}
	if !k.hasFOU() {
		modprobe := exec.Command("modprobe", "fou").Run()
		if err := askFOU(); err != nil {
			return false, fmt.Sprintf("no foo over UDP (module fou): %v; modprobe: %v", err, modprobe), nil
		}
		k.isFOU = true
	}
	const name = "flannel-probe"
	// A local address of its own, as the kernel has one device for each pair of ends.
	probe := Link{Name: name, Kind: KindIPIP,
		IPIP: IPIP{Local: netip.AddrFrom4([4]byte{127, 0, 0, 1}), FOUPort: defaultUDPPort, PathMTU: true, TTL: outerTTL}}
	if err := k.deleteLink(probe); err != nil { // of a run that was killed here
		return false, "", err
	}
	if err := k.createLink(probe); err != nil {
		return false, fmt.Sprintf("no IPIP over it: %v", err), nil
	}
	return true, "", k.deleteLink(probe)
}

// startup runs the PreStartupCommand.
func startup(n lease.Network, s Self) (string, error) {
	b, err := newExtension(n, s)
	if err != nil {
		return "", err
	}
	e, _ := b.(*extension) // newExtension makes no other
	out, err := runCommand(context.Background(), e.PreStartupCommand, "", "")
	if err != nil {
		return "", fmt.Errorf("PreStartupCommand: %w", err)
	}
	return out, nil
}
