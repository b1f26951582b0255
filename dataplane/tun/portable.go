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

// errPortable is the reason for not using any feature on a device of OpenPortable.
var errPortable = errors.New("device was opened without virtio headers")

// OpenPortable creates the TUN device, or attaches to an existing one of that name, with one inner
// packet per frame. The only kernel feature it needs is multi-queue (Linux 3.8).
func OpenPortable(c Config) (*Device, error) {
	// Hold an extra queue while water opens its own. water leaks its descriptor on failure, and
	// rarely fails if the device exists. The leak remains possible if the device is deleted
	// meanwhile.
	holder, name, err := attach(c.Name, 0)
	if err != nil {
		return nil, fmt.Errorf("open TUN device %s: %w", c.Name, err)
	}
	defer unix.Close(holder)
	d := &Device{name: name, unavailable: map[feature.Name]error{
		feature.VnetHeader: errPortable, feature.TSO: errPortable, feature.USO: errPortable,
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

// openWater opens one queue. It duplicates the descriptor and closes the original, which is
// registered with the Go netpoller. That would wake a thread at each packet.
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
