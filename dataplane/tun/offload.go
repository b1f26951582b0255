package tun

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
	"weft/encap/offload"
)

// ErrNoVnetHeader says that the kernel cannot put a virtio header before each frame, and never will.
var ErrNoVnetHeader = errors.New("no virtio header")

// OpenOffload makes the device, or attaches to the one of that name, with a virtio header before each frame and
// as many kinds of super-frame as the kernel knows and c allows: TCP in both directions since Linux 2.6.27, UDP
// since 6.2. It fails with ErrNoVnetHeader where the kernel has none; Features says what else is missing.
func OpenOffload(c Config) (*Device, error) {
	d := &Device{name: c.Name, lacks: make(map[feature.Name]error)}
	for range c.Queues {
		q, name, err := openVnet(d.name)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open TUN device %s: %w", d.name, err), d.Close())
		}
		d.name = name // a pattern is filled in by the first queue; the others join that device
		d.queues = append(d.queues, q)
	}
	d.negotiate(c)
	if err := setMTU(d.name, c.MTU); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// openVnet opens one queue with a virtio header before each frame.
func openVnet(name string) (*Queue, string, error) {
	fd, name, err := attach(name, unix.IFF_VNET_HDR)
	if err != nil {
		return nil, "", noHeader(err)
	}
	// The size belongs to the device: one that was there before may have another.
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, offload.HeaderLen); err != nil {
		return nil, "", errors.Join(noHeader(fmt.Errorf("set the size of the virtio header: %w", err)), unix.Close(fd))
	}
	return newQueue(fd, offload.HeaderLen), name, nil
}

// noHeader marks an error by which a kernel refuses an ioctl or a flag that it does not know. Others may go away: EBADFD is
// that of a device which somebody deleted in the middle.
func noHeader(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) || errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("%w: %w", ErrNoVnetHeader, err)
	}
	return err
}

// attach opens one queue of the named device, which is made if there is none, and returns the device's real name.
func attach(name string, flags uint16) (fd int, realName string, err error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, "", fmt.Errorf("device name: %w", err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE | flags)
	fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, "", fmt.Errorf("open /dev/net/tun: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return 0, "", errors.Join(fmt.Errorf("attach to the device: %w", err), unix.Close(fd))
	}
	return fd, req.Name(), nil
}

// negotiate asks for the most kinds of super-frame, then for fewer. The kernel wants both families of a kind
// together, and none without checksums (drivers/net/tun.c, set_offload).
func (d *Device) negotiate(c Config) {
	flags := unix.TUN_F_CSUM
	if c.NoTSO {
		d.lacks[feature.TSO] = feature.ErrDisabled
	} else if err := d.setOffload(flags | tsoFlags); err != nil {
		d.lacks[feature.TSO] = err
	} else {
		flags |= tsoFlags
	}
	if c.NoUSO {
		d.lacks[feature.USO] = feature.ErrDisabled
	} else if err := d.setOffload(flags | usoFlags); err != nil {
		d.lacks[feature.USO] = err
	} else {
		flags |= usoFlags
	}
	if err := d.setOffload(flags); err != nil {
		// Without any offload frames come complete, and ours are written complete.
		d.lacks[feature.TSO], d.lacks[feature.USO] = err, err
		d.lacks[feature.VnetHeader] = err
	}
}

const (
	tsoFlags = unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	usoFlags = unix.TUN_F_USO4 | unix.TUN_F_USO6
)

// setOffload sets what the device gives and takes; the setting is the device's, through any of its queues.
func (d *Device) setOffload(flags int) error {
	if err := unix.IoctlSetInt(d.queues[0].fd, unix.TUNSETOFFLOAD, flags); err != nil {
		return fmt.Errorf("TUNSETOFFLOAD %#x: %w", flags, err)
	}
	return nil
}
