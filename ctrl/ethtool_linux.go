package ctrl

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands of SIOCETHTOOL (linux/ethtool.h): whether the device computes checksums on sending.
const (
	ethtoolGetTxChecksum = 0x16
	ethtoolSetTxChecksum = 0x17
)

// ethtoolValue is struct ethtool_value.
type ethtoolValue struct{ command, data uint32 }

// ethtoolRequest is struct ifreq with a pointer in it, at least as long as the kernel's on every architecture.
type ethtoolRequest struct {
	name  [unix.IFNAMSIZ]byte
	value *ethtoolValue
	_     [16]byte
}

// ethtool performs one command on a device of this thread's network namespace.
func ethtool(dev string, v *ethtoolValue) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket for ethtool: %w", err)
	}
	defer unix.Close(fd)
	r := &ethtoolRequest{value: v}
	copy(r.name[:unix.IFNAMSIZ-1], dev)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(r)))
	runtime.KeepAlive(v)
	if errno != 0 {
		return fmt.Errorf("ethtool on %s: %w", dev, errno)
	}
	return nil
}

// softwareOffload says whether a device leaves checksums, and with them segmentation, to the kernel before it.
func softwareOffload(dev string) bool {
	v := ethtoolValue{command: ethtoolGetTxChecksum}
	return ethtool(dev, &v) == nil && v.data == 0
}

// setSoftwareOffload makes it so.
func setSoftwareOffload(dev string) error {
	return ethtool(dev, &ethtoolValue{command: ethtoolSetTxChecksum})
}
