package conntest

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// workerTOS is the TOS of packets that the fast path of the udp backend leaves to the workers, at
// both ends (PROBE_DSCP in dataplane/fastpath/bpf/fastpath.c).
const workerTOS = 0xfc

// setTOS sets the TOS of a socket, or its traffic class.
func setTOS(c syscall.RawConn, tos int) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		var domain int
		if domain, failed = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); failed != nil {
			return
		}
		// A socket of both families has both.
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, tos)
		if domain == unix.AF_INET6 {
			failed = errors.Join(failed, unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tos))
		}
	})
	return errors.Join(err, failed)
}

func setTOSOf(c syscall.Conn, tos int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return setTOS(raw, tos)
}
