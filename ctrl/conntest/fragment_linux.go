package conntest

import (
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// allowFragments lets the kernel fragment the datagrams of a connected socket, for the path MTU
// that it knows.
func allowFragments(c *net.UDPConn, to netip.Addr) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	level, option, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_WANT
	if to.Is6() {
		level, option, value = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_WANT
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, option, value) })
	return errors.Join(err, failed)
}
