package ctrl

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SIOCETHTOOL commands for transmit checksum offload (linux/ethtool.h).
const (
	ethtoolGetTxChecksum = 0x16
	ethtoolSetTxChecksum = 0x17
)

// ethtoolValue is struct ethtool_value.
type ethtoolValue struct{ command, data uint32 }

// ethtoolRequest is struct ifreq with a pointer, at least as long as the kernel's on every
// architecture.
type ethtoolRequest struct {
	name  [unix.IFNAMSIZ]byte
	value *ethtoolValue
	_     [16]byte
}

// ethtool performs one command on a device of the calling thread's network namespace.
func ethtool(dev string, v *ethtoolValue) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket for ethtool: %w", err)
	}
	defer unix.Close(fd)
	r := &ethtoolRequest{value: v}
	copy(r.name[:unix.IFNAMSIZ-1], dev)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL,
		uintptr(unsafe.Pointer(r)))
	runtime.KeepAlive(v)
	if errno != 0 {
		return fmt.Errorf("ethtool on %s: %w", dev, errno)
	}
	return nil
}

// txOffloadDisabled reports whether the kernel computes checksums, and thus segments packets,
// before the device.
func txOffloadDisabled(dev string) bool {
	v := ethtoolValue{command: ethtoolGetTxChecksum}
	return ethtool(dev, &v) == nil && v.data == 0
}

// disableTxOffload makes the kernel compute checksums and segment packets before the device.
func disableTxOffload(dev string) error {
	return ethtool(dev, &ethtoolValue{command: ethtoolSetTxChecksum})
}
