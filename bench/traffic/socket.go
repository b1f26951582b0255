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

// End is one end of a flow: a network namespace and the address that it has there.
type End struct {
	NS   *lab.NS
	Addr netip.Addr
}

// PodEnd is a pod as the end of an IPv4 flow.
func PodEnd(p *lab.Pod) End { return End{p.NS, p.Addr} }

// socketBuffer is what the generators ask for at both ends, in bytes. A receiver that is scheduled
// late must not count as loss of the network: this holds 100 ms of 200,000 small packets a second
// (about 1 KiB of memory each).
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
func (e End) bound(kind int, port uint16) (fd int, at netip.AddrPort, err error) {
	if fd, err = e.socket(kind); err != nil {
		return 0, at, err
	}
	err = unix.Bind(fd, Sockaddr(netip.AddrPortFrom(e.Addr, port)))
	if err == nil {
		at, err = localAddr(fd)
	}
	if err != nil {
		return 0, at, errors.Join(fmt.Errorf("bind to %s in %s: %w", e.Addr, e.NS.Name, err), unix.Close(fd))
	}
	return fd, at, nil
}

// RaiseBuffers raises a socket's buffers as far as we may: without limit where the namespace is
// ours, else up to the host's net.core limits.
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
		return netip.AddrPort{}, fmt.Errorf("socket of an unknown family: %T", sa)
	}
}

// Sockaddr returns a in the form that the socket calls take.
func Sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// mostThreads is how many generators may wait in the kernel at a time without Go's scheduler
// knowing: two ends of sixteen streams.
const mostThreads = 2 * 16

// RaiseGOMAXPROCS has the kernel alone deal out the CPUs, as it would between processes: a
// generator that comes back from a system call, or is beside threads that keep the CPUs busy, never
// waits for Go's scheduler.
func RaiseGOMAXPROCS() {
	runtime.GOMAXPROCS((1+busyPerCPU)*runtime.NumCPU() + mostThreads)
}

// socketNap is how long a read or write of the generators blocks at most before it looks again. A
// socket with a time limit is one whose calls a signal interrupts (net/core/sock.c,
// sock_intr_errno), and by signals Go's runtime stops threads for the garbage collector.
const socketNap = time.Second

// setNap bounds the socket's reads and writes by socketNap: EAGAIN then.
func setNap(fd int) error {
	nap := unix.NsecToTimeval(int64(socketNap))
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &nap); err != nil {
			return fmt.Errorf("set timeout: %w", err)
		}
	}
	return nil
}

// again says whether a read or write with a time limit is to be repeated.
func again(err error) bool { return errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) }

// RawRead is read(2), invisible to Go's scheduler. Otherwise the scheduler's monitor thread looks
// after every call that blocks for 20 us, which costs up to 7 % of two CPUs that no generator
// written in C would use. The caller is locked to its thread, its socket has a timeout, and
// GOMAXPROCS exceeds the number of such callers ([RaiseGOMAXPROCS]).
func RawRead(fd int, b []byte) (int, error) { return rawIO(unix.SYS_READ, fd, b) }

// RawWrite is write(2), invisible to Go's scheduler; see [RawRead].
func RawWrite(fd int, b []byte) (int, error) { return rawIO(unix.SYS_WRITE, fd, b) }

func rawIO(number uintptr, fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(number, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// hangUp wakes whoever is blocked on the socket, for good. It may be unconnected, which shutdown
// reports after waking.
func hangUp(fd int) { _ = unix.Shutdown(fd, unix.SHUT_RDWR) }

// closeAll closes descriptors; closing a socket that was used for reading only cannot lose
// anything.
func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
