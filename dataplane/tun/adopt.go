package tun

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
	"weft/encap/offload"
)

// NameOf returns the name of the device that the queue belongs to.
func NameOf(queue int) (string, error) {
	name, _, err := attachment(queue)
	return name, err
}

// attachment returns the name and the flags of the device that the descriptor is attached to.
func attachment(fd int) (name string, flags uint16, err error) {
	req, err := unix.NewIfreq("")
	if err != nil {
		return "", 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return "", 0, fmt.Errorf("TUNGETIFF: %w", err)
	}
	return req.Name(), req.Uint16(), nil
}

// Adopt returns the existing device of the given queues, which must be all of its queues and be of
// the kind that OpenOffload opens. The device owns them. If they do not fit c, Adopt closes them: a
// queue without a reader would swallow a part of the packets.
func Adopt(c Config, queues []int) (*Device, error) {
	d := &Device{name: c.Name, unavailable: make(map[feature.Name]error)}
	for _, fd := range queues {
		d.queues = append(d.queues, newQueue(fd, offload.HeaderLen))
	}
	err := d.checkAdopted(c)
	if err == nil {
		d.negotiateOffload(c)
		err = setMTU(d.name, c.MTU)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("adopt TUN device %s: %w", c.Name, err), d.Close())
	}
	return d, nil
}

// checkAdopted returns why the queues do not fit c, or nil.
func (d *Device) checkAdopted(c Config) error {
	if len(d.queues) != c.Queues {
		return fmt.Errorf("%d queues, want %d", len(d.queues), c.Queues)
	}
	const want = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE | unix.IFF_VNET_HDR
	for _, q := range d.queues {
		name, flags, err := attachment(q.fd)
		if err != nil {
			return err
		}
		if flags&want != want || name != c.Name {
			return fmt.Errorf("queue of %s with flags %#x, want %s and %#x", name, flags, c.Name, want)
		}
		err = unix.IoctlSetPointerInt(q.fd, unix.TUNSETVNETHDRSZ, offload.HeaderLen)
		if err != nil {
			return fmt.Errorf("set virtio header size: %w", err)
		}
	}
	return nil
}
