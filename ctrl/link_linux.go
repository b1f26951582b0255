package ctrl

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkDriver is the Linux part of a link kind.
type linkDriver struct {
	// create creates the device with the fixed settings of x. Attributes that are zero are zero in
	// flannel, too, the queue length included, so that the devices look the same.
	create func(k *Kernel, x Link, a netlink.LinkAttrs) error
	// read fills in the fixed settings of v; nil if there are none.
	read func(v *Link, l netlink.Link, names map[int]string)
	// readDetail fills in the settings of v that cost further system calls; nil if there are none.
	readDetail func(k *Kernel, v *Link)
	// readObjects adds the objects on the device to s; nil if there are none.
	readObjects func(k *Kernel, s *State, l Link) error
}

func linkDrivers() map[LinkKind]linkDriver {
	return map[LinkKind]linkDriver{
		KindVXLAN: {
			create: createVXLAN,
			read:   readVXLAN,
			readDetail: func(k *Kernel, v *Link) {
				v.AcceptRAOff = k.raFixed[v.Name] ||
					acceptRAOff(v.Name)
			},
			readObjects: (*Kernel).readEntries,
		},
		KindIPIP: {
			create:     createIPIP,
			read:       readIPIP,
			readDetail: func(_ *Kernel, v *Link) { v.NoTxOffload = txOffloadDisabled(v.Name) },
		},
		KindWireGuard: {
			create:      createWireGuard,
			readObjects: (*Kernel).readWireGuard,
		},
	}
}

// Links lists the devices, without the settings that cost further system calls.
func (k *Kernel) Links() ([]Link, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, _, err := k.readLinks(func(string) bool { return false })
	return s.Links, err
}

// readLinks lists the devices and their names by index.
func (k *Kernel) readLinks(detail func(dev string) bool) (State, map[int]string, error) {
	links, err := dump("devices", k.h.LinkList)
	if err != nil {
		return State{}, nil, err
	}
	var s State
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	k.wg.stopMissing(names)
	drivers := linkDrivers()
	for _, l := range links {
		v := linkValue(l)
		if k.wg.inUserspace(v.Name) {
			v.Kind, v.Userspace = KindWireGuard, true
		}
		d := drivers[v.Kind]
		if d.read != nil {
			d.read(&v, l, names)
		}
		if d.readDetail != nil && detail(v.Name) {
			d.readDetail(k, &v)
		}
		s.Links = append(s.Links, v)
	}
	return s, names, nil
}

// linkValue converts the library's link, without the settings of its kind.
func linkValue(l netlink.Link) Link {
	a := l.Attrs()
	v := Link{
		Name: a.Name, Index: a.Index, Kind: LinkKind(l.Type()), MTU: a.MTU,
		TxQueueLen: max(a.TxQLen, 0),
		Up:         a.Flags&net.FlagUp != 0,
	}
	if len(a.HardwareAddr) == len(v.MAC) {
		v.MAC = MAC(a.HardwareAddr)
	}
	switch l.(type) {
	case *netlink.Device:
		v.Kind = ""
	case *netlink.Tuntap:
		v.Kind = KindTUN
		// Without a queue, a TUN device has no carrier (drivers/net/tun.c).
		v.Idle = v.Up && a.RawFlags&unix.IFF_LOWER_UP == 0
	}
	return v
}

func createVXLAN(k *Kernel, x Link, a netlink.LinkAttrs) error {
	parent, err := k.h.LinkByName(x.VXLAN.Parent)
	if err != nil {
		return fmt.Errorf("underlay device %s: %w", x.VXLAN.Parent, err)
	}
	a.HardwareAddr = x.MAC[:]
	return missingModule("vxlan", k.h.LinkAdd(&netlink.Vxlan{
		LinkAttrs: a, VxlanId: x.VXLAN.VNI, VtepDevIndex: parent.Attrs().Index,
		SrcAddr: x.VXLAN.Local.AsSlice(),
		Port:    x.VXLAN.Port, Learning: x.VXLAN.Learning, GBP: x.VXLAN.GBP,
	}))
}

func readVXLAN(v *Link, l netlink.Link, names map[int]string) {
	if x, ok := l.(*netlink.Vxlan); ok {
		v.VXLAN = VXLAN{
			VNI: x.VxlanId, Port: x.Port, Local: addrOf(x.SrcAddr), Parent: names[x.VtepDevIndex],
			Learning: x.Learning, GBP: x.GBP,
		}
	}
}

func createIPIP(k *Kernel, x Link, a netlink.LinkAttrs) error {
	// the kernel derives it from the route to the remote end, which does not exist; changeLink sets
	// it
	a.MTU = 0
	t := &netlink.Iptun{LinkAttrs: a, Local: x.IPIP.Local.AsSlice(), Ttl: uint8(x.IPIP.TTL)}
	if x.IPIP.PathMTU {
		t.PMtuDisc = 1
	}
	if p := uint16(x.IPIP.FOUPort); p != 0 {
		t.EncapType, t.EncapSport, t.EncapDport = fouEncap, p, p
	}
	return missingModule("ipip", k.h.LinkAdd(t))
}

func readIPIP(v *Link, l netlink.Link, _ map[int]string) {
	x, ok := l.(*netlink.Iptun)
	if !ok {
		return
	}
	v.IPIP = IPIP{Local: addrOf(x.Local), TTL: int(x.Ttl), PathMTU: x.PMtuDisc != 0}
	if x.EncapType == fouEncap {
		v.IPIP.FOUPort = int(x.EncapDport)
	}
	if remote := addrOf(x.Remote); remote.IsValid() && !remote.IsUnspecified() {
		v.Kind = "ipip with a remote" // never created by Weft
	}
}

// missingModule explains EOPNOTSUPP for a new device and names the remedies.
func missingModule(module string, err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("kernel has no %s (load the module %s, or use another backend such as udp): %w",
			module, module, err)
	}
	return err
}

func (k *Kernel) applyLink(v Verb, x Link) error {
	if v == Delete {
		return k.deleteLink(x)
	}
	if x.FormerName != "" {
		return k.renameLink(x)
	}
	if v == Create {
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

// renameLink gives a device its name back. Before Linux 6.2 it has to be down for that; then the
// next diff sets it up again.
func (k *Kernel) renameLink(x Link) error {
	l, err := k.h.LinkByName(x.FormerName)
	if err != nil {
		return err
	}
	err = k.h.LinkSetName(l, x.Name)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	if err := k.h.LinkSetDown(l); err != nil {
		return err
	}
	return k.h.LinkSetName(l, x.Name)
}

func (k *Kernel) createLink(x Link) error {
	d := linkDrivers()[x.Kind]
	if d.create == nil {
		return fmt.Errorf("%w: device type %q", errors.ErrUnsupported, x.Kind)
	}
	return d.create(k, x, netlink.LinkAttrs{Name: x.Name, MTU: x.MTU})
}

func (k *Kernel) deleteLink(x Link) error {
	if k.wg.inUserspace(x.Name) {
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

// changeLink sets the non-zero fields of x.
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
	if x.AcceptRAOff {
		if err := k.disableRA(x.Name); err != nil {
			return err
		}
	}
	if x.NoTxOffload {
		if err := disableTxOffload(x.Name); err != nil {
			return err
		}
	}
	if x.Up && l.Attrs().Flags&net.FlagUp == 0 {
		return k.h.LinkSetUp(l)
	}
	return nil
}

// acceptRAFile controls whether a device accepts router advertisements.
func acceptRAFile(dev string) string { return "/proc/sys/net/ipv6/conf/" + dev + "/accept_ra" }

// acceptRAOff reports whether the device ignores router advertisements. Without IPv6 it does.
func acceptRAOff(dev string) bool {
	b, err := os.ReadFile(acceptRAFile(dev))
	return errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(b)) == "0"
}

// disableRA makes the device ignore router advertisements. If /proc/sys is read-only, as in most
// containers, the setting stays: the kernel ignores router advertisements on a forwarding host
// anyway, and a node is one.
func (k *Kernel) disableRA(dev string) error {
	err := os.WriteFile(acceptRAFile(dev), []byte("0"), 0)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		k.raFixed[dev] = true
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
