package ctrl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// apply performs the operations in order and returns an error for each, nil where it worked. Deleting what is not
// there works. Runs of routes, neighbours and forwarding entries go to the kernel in batches, and so do runs of
// WireGuard peers.
func (k *Kernel) apply(ctx context.Context, ops []op) []error {
	k.mu.Lock()
	defer k.mu.Unlock()
	errs := make([]error, 0, len(ops))
	for len(ops) > 0 {
		n, apply := 1, k.applyBulk
		switch {
		case bulky(ops[0]):
			n = run(ops, bulky)
		case isPeer(ops[0]):
			n, apply = run(ops, isPeer), k.wg.applyPeers
		default:
			apply = func(ops []op) []error { return []error{again(func() error { return k.applyOne(ctx, ops[0]) })} }
		}
		for i, err := range apply(ops[:n]) {
			if err != nil {
				err = fmt.Errorf("%s: %w", ops[i], err)
			}
			errs = append(errs, err)
		}
		ops = ops[n:]
	}
	return errs
}

// run is how many of the first operations are alike.
func run(ops []op, alike func(op) bool) int {
	n := 1
	for n < len(ops) && alike(ops[n]) {
		n++
	}
	return n
}

func isPeer(o op) bool {
	_, ok := o.object.(Peer)
	return ok
}

// applyOne performs an operation that goes to the kernel alone.
func (k *Kernel) applyOne(ctx context.Context, o op) error {
	switch x := o.object.(type) {
	case Link:
		return k.applyLink(o.verb, x)
	case Addr:
		return k.applyAddr(o.verb, x)
	case FOUPort:
		return k.applyFOU(o.verb, x)
	case Tunnel:
		return k.wg.setTunnel(x)
	case Command:
		return k.applyCommand(ctx, o.verb, x)
	}
	return fmt.Errorf("%w: %T", errors.ErrUnsupported, o.object)
}

func (k *Kernel) applyAddr(v verb, a Addr) error {
	l, err := k.h.LinkByName(a.Dev)
	if err != nil {
		return err
	}
	n := &netlink.Addr{IPNet: ipNet(a.Prefix)}
	if v == doDelete {
		if err := k.h.AddrDel(l, n); !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
		return nil
	}
	return k.h.AddrReplace(l, n)
}

func (k *Kernel) applyFOU(v verb, p FOUPort) error {
	f := netlink.Fou{Family: unix.AF_INET, Port: p.Port, Protocol: unix.IPPROTO_IPIP, EncapType: netlink.FOU_ENCAP_DIRECT}
	if v == doDelete {
		return k.h.FouDel(f)
	}
	return k.h.FouAdd(f)
}

func (k *Kernel) applyLink(v verb, x Link) error {
	if v == doDelete {
		return k.deleteLink(x)
	}
	if v == doCreate {
		if err := k.createLink(x); err != nil {
			return err
		}
	}
	l, err := k.h.LinkByName(x.Name)
	if err != nil {
		return err
	}
	return k.changeLink(l, x)
}

func (k *Kernel) deleteLink(x Link) error {
	if k.wg.local(x.Name) {
		k.wg.stop(x.Name)
		return nil
	}
	l, err := k.h.LinkByName(x.Name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	return k.h.LinkDel(l)
}

// createLink makes the device with what is fixed about it. The attributes that are left zero are those that flannel
// leaves zero, down to the queue length, so that the devices look the same.
func (k *Kernel) createLink(x Link) error {
	a := netlink.LinkAttrs{Name: x.Name, MTU: x.MTU}
	switch x.Kind {
	case KindVXLAN:
		parent, err := k.h.LinkByName(x.VXLAN.Parent)
		if err != nil {
			return fmt.Errorf("underlay device %s: %w", x.VXLAN.Parent, err)
		}
		a.HardwareAddr = x.MAC[:]
		return k.h.LinkAdd(&netlink.Vxlan{
			LinkAttrs: a, VxlanId: x.VXLAN.VNI, VtepDevIndex: parent.Attrs().Index, SrcAddr: x.VXLAN.Local.AsSlice(),
			Port: x.VXLAN.Port, Learning: x.VXLAN.Learning, GBP: x.VXLAN.GBP,
		})
	case KindIPIP:
		a.MTU = 0 // the kernel takes one from the route to the remote end, which there is none of; it is set below
		t := &netlink.Iptun{LinkAttrs: a, Local: x.IPIP.Local.AsSlice(), Ttl: uint8(x.IPIP.TTL)}
		if x.IPIP.PathMTU {
			t.PMtuDisc = 1
		}
		if p := uint16(x.IPIP.FOUPort); p != 0 {
			t.EncapType, t.EncapSport, t.EncapDport = fouEncap, p, p
		}
		return unsupported(k.h.LinkAdd(t), "ipip")
	case KindWireGuard:
		return k.createWireGuard(&netlink.Wireguard{LinkAttrs: a})
	}
	return fmt.Errorf("%w: device type %q", errors.ErrUnsupported, x.Kind)
}

// unsupported says in words what EOPNOTSUPP means for a new device.
func unsupported(err error, module string) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("this kernel has no %s (load the module %s, or choose another backend): %w", module, module, err)
	}
	return err
}

// changeLink sets what is non-zero.
func (k *Kernel) changeLink(l netlink.Link, x Link) error {
	if x.MTU != 0 && x.MTU != l.Attrs().MTU {
		if err := k.h.LinkSetMTU(l, x.MTU); err != nil {
			return fmt.Errorf("set mtu: %w", err)
		}
	}
	if x.TxQueueLen != 0 {
		if err := k.h.LinkSetTxQLen(l, x.TxQueueLen); err != nil {
			return fmt.Errorf("set txqueuelen: %w", err)
		}
	}
	if x.MAC != (MAC{}) && x.MAC.String() != l.Attrs().HardwareAddr.String() {
		if err := k.h.LinkSetHardwareAddr(l, x.MAC[:]); err != nil {
			return fmt.Errorf("set address: %w", err)
		}
	}
	if x.IgnoreRA {
		if err := k.ignoreRA(x.Name); err != nil {
			return err
		}
	}
	if x.Software {
		if err := setSoftwareOffload(x.Name); err != nil {
			return err
		}
	}
	if x.Up && l.Attrs().Flags&net.FlagUp == 0 {
		return k.h.LinkSetUp(l)
	}
	return nil
}

// ignoreRA turns router advertisements off. Where /proc/sys is read-only, as in most containers, they stay as they are:
// on a forwarding host, which a node is, the kernel ignores them by itself.
func (k *Kernel) ignoreRA(dev string) error {
	err := os.WriteFile(raFile(dev), []byte("0"), 0)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		k.noRA[dev] = true
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// applyCommand runs a command of the extension backend and remembers that it has been run.
func (k *Kernel) applyCommand(ctx context.Context, v verb, c Command) error {
	line := c.Add
	if v == doDelete {
		line = c.Remove
	}
	if _, err := runCommand(ctx, line, c.Env, c.Stdin); err != nil {
		return err
	}
	if v == doDelete {
		delete(k.ran, c.ID)
	} else {
		k.ran[c.ID] = c
	}
	return nil
}
