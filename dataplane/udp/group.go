package udp

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
)

// ErrInUse says that another process, or another part of this one, receives on the wanted address and port.
var ErrInUse = errors.New("address and port are in use")

// Group is a group of sockets that share one address and port.
type Group[S io.Closer] struct {
	Sockets []S
	lacks   map[feature.Name]error
}

// Features returns all features; each with the reason for which the group is without it, nil if it has it.
func (g *Group[S]) Features() map[feature.Name]error {
	all := make(map[feature.Name]error)
	for _, f := range []feature.Name{feature.GSO, feature.GRO, feature.Steering, feature.Buffers} {
		all[f] = g.lacks[f]
	}
	return all
}

// Close closes all sockets of the group.
func (g *Group[S]) Close() error {
	var errs []error
	for _, s := range g.Sockets {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// claim fails if anybody else has a socket on one of the addresses that the group is going to bind. Its sockets
// are bound with SO_REUSEPORT, which would let a second daemon of the same user join the group in silence and
// take part of the packets.
func (c Config) claim() error {
	if c.ReusePorts {
		return nil
	}
	addrs := []netip.AddrPort{c.Bind}
	if c.SourcePort != 0 {
		for i := range c.Sockets {
			addrs = append(addrs, c.source(i))
		}
	}
	for _, a := range addrs {
		if err := tryBind(a); err != nil {
			return fmt.Errorf("bind udp %s: %w", a, err)
		}
	}
	return nil
}

// source is where the i-th socket sends from.
func (c Config) source(i int) netip.AddrPort {
	if c.SourcePort == 0 {
		return c.Bind
	}
	return netip.AddrPortFrom(c.Bind.Addr(), c.SourcePort+uint16(i))
}

func tryBind(a netip.AddrPort) error {
	fd, err := unix.Socket(family(a.Addr()), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("create socket: %w", err)
	}
	defer unix.Close(fd)
	if err = unix.Bind(fd, sockaddr(a)); errors.Is(err, unix.EADDRINUSE) {
		return ErrInUse
	}
	return err
}

// open opens one socket of the group on the address, non-blocking.
func (c Config) open(at netip.AddrPort) (fd int, err error) {
	fd, err = unix.Socket(family(at.Addr()), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("create socket: %w", err)
	}
	err = c.prepare(fd)
	if err == nil {
		err = unix.Bind(fd, sockaddr(at))
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("open udp %s: %w", at, err), unix.Close(fd))
	}
	return fd, nil
}

// openPair opens the socket that receives and the one that sends, which are the same unless there are source ports.
func (c Config) openPair(i int) (fd, sendFD int, err error) {
	fd, err = c.open(c.Bind)
	if err != nil || c.SourcePort == 0 {
		return fd, fd, err
	}
	sendFD, err = c.open(c.source(i))
	if err != nil {
		return 0, 0, errors.Join(err, unix.Close(fd))
	}
	return fd, sendFD, nil
}

// prepare sets what every socket of the group needs before it is bound.
func (c Config) prepare(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return fmt.Errorf("set SO_REUSEPORT: %w", err)
	}
	// Outer packets are not fragmented where the inner sender can be told instead: a piece lost would cost all of them,
	// and reassembly memory is a target. The kernel answers EMSGSIZE then.
	if err := discoverPathMTU(fd, c.Bind.Addr().Is4(), unix.IP_PMTUDISC_DO); err != nil {
		return fmt.Errorf("forbid outer fragments: %w", err)
	}
	level, readTOS := unix.IPPROTO_IP, unix.IP_RECVTOS
	if !c.Bind.Addr().Is4() {
		level, readTOS = unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS
	}
	if c.ReadTOS {
		if err := unix.SetsockoptInt(fd, level, readTOS, 1); err != nil {
			return fmt.Errorf("ask for the TOS of what is received: %w", err)
		}
	}
	return nil
}

// discoverPathMTU sets how a socket treats what is longer than its path carries: IP_PMTUDISC_DO refuses it,
// IP_PMTUDISC_DONT cuts it. The values are the same in IPv6 (linux/in.h, linux/in6.h).
func discoverPathMTU(fd int, v4 bool, how int) error {
	if v4 {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, how)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, how)
}

// sizeBuffers sets the buffers of the socket that receives and of the one that sends, and says why one is smaller than
// wanted. The kernel's limit can be passed only with CAP_NET_ADMIN in the first user namespace.
func (c Config) sizeBuffers(fd, sendFD int) error {
	if c.Buffer == 0 {
		return feature.ErrDisabled
	}
	var errs []error
	for _, b := range []struct {
		name             string
		fd, force, plain int
	}{{"rmem", fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {"wmem", sendFD, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		forceErr := unix.SetsockoptInt(b.fd, unix.SOL_SOCKET, b.force, c.Buffer)
		if forceErr == nil {
			continue
		}
		if err := unix.SetsockoptInt(b.fd, unix.SOL_SOCKET, b.plain, c.Buffer); err != nil {
			errs = append(errs, fmt.Errorf("set socket buffer: %w", err))
		}
		got, err := unix.GetsockoptInt(b.fd, unix.SOL_SOCKET, b.plain)
		if got /= 2; err != nil || got < c.Buffer { // the kernel doubles what is set, for its own use (socket(7))
			errs = append(errs, fmt.Errorf("%d bytes instead of %d: net.core.%s_max is lower, and without CAP_NET_ADMIN "+
				"in the first user namespace it binds (%w)", got, c.Buffer, b.name, forceErr))
		}
	}
	return errors.Join(errs...)
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

// overflows returns how many messages the kernel dropped because the socket's receive buffer was full: the counter
// behind SO_RXQ_OVFL, but without a control message on every datagram (SO_MEMINFO, Linux 4.12). A train that the kernel
// has joined, or never cut, is one of them.
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
