package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrInUse says that another process, or another part of this one, receives on the wanted address and port.
var ErrInUse = errors.New("address and port are in use")

// claim fails if anybody else has a socket on bind. The sockets of a group are bound with SO_REUSEPORT, which
// would let a second daemon of the same user join the group in silence and take part of the packets.
func claim(bind netip.AddrPort) error {
	fd, err := unix.Socket(family(bind.Addr()), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("create socket: %w", err)
	}
	defer unix.Close(fd)
	err = unix.Bind(fd, sockaddr(bind))
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("bind udp %s: %w", bind, ErrInUse)
	}
	if err != nil {
		return fmt.Errorf("bind udp %s: %w", bind, err)
	}
	return nil
}

// open opens one socket of the group, non-blocking and bound.
func open(c Config) (fd int, err error) {
	fd, err = unix.Socket(family(c.Bind.Addr()), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("create socket: %w", err)
	}
	err = prepare(fd, c)
	if err == nil {
		err = unix.Bind(fd, sockaddr(c.Bind))
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("open udp %s: %w", c.Bind, err), unix.Close(fd))
	}
	return fd, nil
}

// prepare sets what every socket of the group needs before it is bound.
func prepare(fd int, c Config) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return fmt.Errorf("set SO_REUSEPORT: %w", err)
	}
	// Outer packets are never fragmented: a piece lost would cost all of them, and reassembly memory is a
	// target. The kernel answers EMSGSIZE instead and the inner sender is told.
	level, option, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	if !c.Bind.Addr().Is4() {
		level, option, value = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
	}
	if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
		return fmt.Errorf("forbid outer fragments: %w", err)
	}
	if c.Buffer > 0 {
		setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, c.Buffer)
		setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, c.Buffer)
	}
	return nil
}

// setBuffer asks for a buffer above the system's limit, which needs CAP_NET_ADMIN in the first user namespace,
// and else for as much as the limit allows. Buffers reports what came of it.
func setBuffer(fd, force, plain, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size) // cannot fail: the kernel cuts it to its limit
	}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// overflows returns how many datagrams the kernel dropped because the socket's receive buffer was full: the
// counter behind SO_RXQ_OVFL, but without a control message on every datagram (SO_MEMINFO, Linux 4.12).
func overflows(fd int) (uint64, error) {
	const drops = 8 // SK_MEMINFO_DROPS of linux/sock_diag.h
	var info [drops + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("read socket overflow counter: %w", errno)
	}
	return uint64(info[drops]), nil
}

// Prober asks the kernel for the MTU of a path. Its methods may be called by many goroutines.
type Prober struct {
	mu     sync.Mutex
	fd     int
	family int
}

// NewProber opens a prober for paths from the address of bind.
func NewProber(bind netip.Addr) (*Prober, error) {
	fd, err := unix.Socket(family(bind), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("create path MTU socket: %w", err)
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(bind, 0))); err != nil {
		return nil, errors.Join(fmt.Errorf("bind path MTU socket to %s: %w", bind, err), unix.Close(fd))
	}
	return &Prober{fd: fd, family: family(bind)}, nil
}

// PathMTU returns the MTU in bytes, outer headers included, that the kernel knows for the path to the node: the
// route's, or a smaller one that a router has told. No packet is sent.
func (p *Prober) PathMTU(to netip.AddrPort) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := unix.Connect(p.fd, sockaddr(to)); err != nil {
		return 0, fmt.Errorf("find the route to %s: %w", to, err)
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if p.family == unix.AF_INET6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	mtu, err := unix.GetsockoptInt(p.fd, level, option)
	if err != nil {
		return 0, fmt.Errorf("read the path MTU to %s: %w", to, err)
	}
	return mtu, nil
}

// Close closes the prober's socket.
func (p *Prober) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return unix.Close(p.fd)
}
