package tun

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
)

// errPlain is the reason for which a device of OpenPortable is without every feature.
var errPlain = errors.New("the device was opened without a virtio header")

// OpenPortable makes the device, or attaches to the one of that name, with one inner packet a frame: it asks
// nothing of the kernel but multi-queue (3.8).
func OpenPortable(c Config) (*Device, error) {
	// A queue of our own comes first and goes last: water does not close its descriptor when it fails, and with a
	// device that is there it rarely does. One that is deleted while water sets it up costs a descriptor.
	holder, name, err := attach(c.Name, 0)
	if err != nil {
		return nil, fmt.Errorf("open TUN device %s: %w", c.Name, err)
	}
	defer unix.Close(holder)
	d := &Device{name: name, lacks: map[feature.Name]error{
		feature.VnetHeader: errPlain, feature.TSO: errPlain, feature.USO: errPlain,
	}}
	for range c.Queues {
		q, err := openWater(name)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open TUN device %s: %w", name, err), d.Close())
		}
		d.queues = append(d.queues, q)
	}
	if err := setMTU(name, c.MTU); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// openWater opens one queue. It takes a duplicate of the descriptor and lets water's own go: that one sits in
// Go's network poller, which would wake a thread for every packet although nobody waits there.
func openWater(name string) (*Queue, error) {
	device, err := water.New(water.Config{
		DeviceType:             water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name, MultiQueue: true},
	})
	if err != nil {
		return nil, err
	}
	defer device.Close()
	conn, err := device.ReadWriteCloser.(*os.File).SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, err := duplicate(conn)
	if err != nil {
		return nil, err
	}
	return newQueue(fd, 0), nil
}

func duplicate(conn syscall.RawConn) (fd int, err error) {
	if ctlErr := conn.Control(func(f uintptr) {
		fd, err = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 0)
	}); ctlErr != nil {
		return 0, ctlErr
	}
	return fd, err
}

// setMTU sets the MTU of the named device in the calling thread's network namespace.
func setMTU(name string, mtu int) error {
	if mtu == 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set MTU of %s: %w", name, err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("set MTU of %s: %w", name, err)
	}
	req.SetUint32(uint32(mtu))
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, req); err != nil {
		return fmt.Errorf("set MTU of %s to %d: %w", name, mtu, err)
	}
	return nil
}
