package tun

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
	"weft/encap/offload"
)

// ErrNoVnetHeader means that the kernel does not support virtio headers on TUN devices.
var ErrNoVnetHeader = errors.New("kernel has no virtio headers for TUN devices")

// OpenOffload creates the TUN device, or attaches to an existing one of that name, with a virtio
// header per frame. It enables the GSO types that both the kernel and c allow: TCP in both
// directions (Linux 2.6.27) and UDP (6.2). It fails with ErrNoVnetHeader if the kernel has no
// virtio headers. Features reports which other features are unavailable.
func OpenOffload(c Config) (*Device, error) {
	d := &Device{name: c.Name, unavailable: make(map[feature.Name]error)}
	for range c.Queues {
		q, name, err := openVnet(d.name)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open TUN device %s: %w", d.name, err), d.Close())
		}
		d.name = name // the first queue expands a pattern; the others attach to that device
		d.queues = append(d.queues, q)
	}
	d.negotiateOffload(c)
	if err := setMTU(d.name, c.MTU); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// openVnet opens one queue with a virtio header per frame.
func openVnet(name string) (*Queue, string, error) {
	fd, name, err := attach(name, unix.IFF_VNET_HDR)
	if err != nil {
		return nil, "", wrapNoVnetHeader(err)
	}
	// The header size is a property of the device: an existing device may have another.
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, offload.HeaderLen); err != nil {
		err = wrapNoVnetHeader(fmt.Errorf("set virtio header size: %w", err))
		return nil, "", errors.Join(err, unix.Close(fd))
	}
	return newQueue(fd, offload.HeaderLen), name, nil
}

// wrapNoVnetHeader adds ErrNoVnetHeader to the errors that a kernel returns for an unknown ioctl or
// flag. Other errors may be temporary: EBADFD means that the device was deleted meanwhile.
func wrapNoVnetHeader(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) ||
		errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("%w: %w", ErrNoVnetHeader, err)
	}
	return err
}

// attach opens one queue of the named device, creating the device if necessary, and returns its
// actual name.
func attach(name string, flags uint16) (fd int, realName string, err error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, "", fmt.Errorf("device name: %w", err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE | flags)
	fd, err = unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, "", openError(err)
	}
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return 0, "", errors.Join(fmt.Errorf("attach to device: %w", err), unix.Close(fd))
	}
	return fd, req.Name(), nil
}

// clonePath is the device that creates TUN devices and attaches to them.
const clonePath = "/dev/net/tun"

// openError adds the remedy to an error of opening clonePath.
func openError(err error) error {
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("open %[1]s: %[2]w: its usual mode is 0666 (chmod 0666 %[1]s); "+
			"a container needs the device too (docker run --device=%[1]s)", clonePath, err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("open %[1]s: %[2]w: the tun driver is not loaded (modprobe tun), "+
			"or the container lacks the device (docker run --device=%[1]s)", clonePath, err)
	}
	return fmt.Errorf("open %s: %w", clonePath, err)
}

// negotiateOffload enables as many GSO types as possible. The kernel requires both families of a
// type together, and checksum offload with any type (drivers/net/tun.c, set_offload).
func (d *Device) negotiateOffload(c Config) {
	flags := unix.TUN_F_CSUM
	if c.NoTSO {
		d.unavailable[feature.TSO] = feature.ErrDisabled
	} else if err := d.setOffload(flags | tsoFlags); err != nil {
		d.unavailable[feature.TSO] = err
	} else {
		flags |= tsoFlags
	}
	if c.NoUSO {
		d.unavailable[feature.USO] = feature.ErrDisabled
	} else if err := d.setOffload(flags | usoFlags); err != nil {
		d.unavailable[feature.USO] = err
	} else {
		flags |= usoFlags
	}
	if err := d.setOffload(flags); err != nil {
		// Without offloads, all frames have complete checksums in both directions.
		d.unavailable[feature.TSO], d.unavailable[feature.USO] = err, err
		d.unavailable[feature.VnetHeader] = err
	}
}

const (
	tsoFlags = unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	usoFlags = unix.TUN_F_USO4 | unix.TUN_F_USO6
)

// setOffload sets the offloads of the device. The setting applies to all queues.
func (d *Device) setOffload(flags int) error {
	if err := unix.IoctlSetInt(d.queues[0].fd, unix.TUNSETOFFLOAD, flags); err != nil {
		return fmt.Errorf("TUNSETOFFLOAD %#x: %w", flags, err)
	}
	return nil
}
