package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/deploy/lab"
)

// End is one end of a flow: a network namespace and its address there.
type End struct {
	NS   *lab.NS
	Addr netip.Addr
}

// PodEnd returns a pod as the end of an IPv4 flow.
func PodEnd(p *lab.Pod) End { return End{p.NS, p.Addr} }

// socketBuffer is the size that the generators request for the buffers at both ends, in bytes. A
// receiver that is scheduled late must not look like loss in the network: this holds 100 ms of
// 200,000 small packets per second (about 1 KiB of memory each).
const socketBuffer = 32 << 20

// socket opens a blocking socket in the end's namespace, for the family of its address.
func (e End) socket(kind int) (fd int, err error) {
	family := unix.AF_INET
	if e.Addr.Is6() {
		family = unix.AF_INET6
	}
	err = e.NS.Do(func() error {
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("open socket in %w", err)
	}
	return fd, nil
}

// bound opens a blocking socket at the end's address, on a free port if port is 0.
func (e End) bind(kind int, port uint16) (fd int, at netip.AddrPort, err error) {
	if fd, err = e.socket(kind); err != nil {
		return 0, at, err
	}
	err = unix.Bind(fd, Sockaddr(netip.AddrPortFrom(e.Addr, port)))
	if err == nil {
		at, err = localAddr(fd)
	}
	if err != nil {
		return 0, at, errors.Join(fmt.Errorf("bind to %s in %s: %w", e.Addr, e.NS.Name, err),
			unix.Close(fd))
	}
	return fd, at, nil
}

// RaiseBuffers raises a socket's buffers as far as permitted: without limit with CAP_NET_ADMIN in
// the namespace, else up to the host's net.core limits.
func RaiseBuffers(fd int) error {
	for _, o := range []struct{ force, plain int }{
		{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF},
	} {
		err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.force, socketBuffer)
		if errors.Is(err, unix.EPERM) {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.plain, socketBuffer)
		}
		if err != nil {
			return fmt.Errorf("raise socket buffer: %w", err)
		}
	}
	return nil
}

func localAddr(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)), nil
	default:
		return netip.AddrPort{}, fmt.Errorf("unknown socket address %T", sa)
	}
}

// Sockaddr returns a in the form that the socket calls take.
func Sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// maxGenerators is the number of generator threads that may block in the kernel at the same time,
// unknown to Go's scheduler: both ends of sixteen streams.
const maxGenerators = 2 * 16

// RaiseGOMAXPROCS raises GOMAXPROCS so that only the kernel schedules the generators, as if they
// were processes. A generator that returns from a system call, or runs beside busy threads, never
// waits for Go's scheduler.
func RaiseGOMAXPROCS() {
	runtime.GOMAXPROCS((1+busyPerCPU)*runtime.NumCPU() + maxGenerators)
}

// ioTimeout is the longest time that a read or write of the generators blocks. Signals interrupt
// the calls of a socket with a timeout (net/core/sock.c, sock_intr_errno), and Go's runtime stops
// threads for the garbage collector by signals.
const ioTimeout = time.Second

// setIOTimeout sets ioTimeout for reads and writes, which then fail with EAGAIN.
func setIOTimeout(fd int) error {
	timeout := unix.NsecToTimeval(int64(ioTimeout))
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &timeout); err != nil {
			return fmt.Errorf("set timeout: %w", err)
		}
	}
	return nil
}

// retryable reports whether a read or write with a timeout must be repeated.
func retryable(err error) bool { return errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) }

// RawRead is read(2), invisible to Go's scheduler. Otherwise the scheduler's monitor thread looks
// after every call that blocks for 20 us, which costs up to 7 % of two CPUs that no generator
// written in C would use. The caller is locked to its thread, its socket has a timeout, and
// GOMAXPROCS exceeds the number of such callers ([RaiseGOMAXPROCS]).
func RawRead(fd int, b []byte) (int, error) { return rawIO(unix.SYS_READ, fd, b) }

// RawWrite is write(2), invisible to Go's scheduler; see [RawRead].
func RawWrite(fd int, b []byte) (int, error) { return rawIO(unix.SYS_WRITE, fd, b) }

func rawIO(number uintptr, fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(number, uintptr(fd), uintptr(unsafe.Pointer(&b[0])),
		uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// shutdown wakes all threads that block on the socket, for good. An unconnected socket returns an
// error after waking them.
func shutdown(fd int) { _ = unix.Shutdown(fd, unix.SHUT_RDWR) }

// closeAll closes descriptors. Errors are ignored: no data can be lost here.
func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
