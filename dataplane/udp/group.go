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

// ErrInUse means that another socket is bound to the address and port.
var ErrInUse = errors.New("address and port already in use")

// Group is a group of sockets that share one address and port (SO_REUSEPORT).
type Group[S io.Closer] struct {
	Sockets     []S
	unavailable map[feature.Name]error
}

// Features returns all features of the sockets. The value is nil if the feature is used, else the
// reason why not.
func (g *Group[S]) Features() map[feature.Name]error {
	all := make(map[feature.Name]error)
	for _, f := range []feature.Name{feature.GSO, feature.GRO, feature.Steering, feature.Buffers} {
		all[f] = g.unavailable[f]
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

// checkBindable returns an error if another socket is bound to an address that the group is going
// to bind. The sockets of the group use SO_REUSEPORT: without this check a second daemon of the
// same user would silently join the group and receive part of the packets.
func (c Config) checkBindable() error {
	if c.ReusePorts || len(c.Inherited) > 0 {
		return nil
	}
	addrs := []netip.AddrPort{c.Bind}
	if c.SourcePort != 0 {
		for i := range c.Sockets {
			addrs = append(addrs, c.sourceAddr(i))
		}
	}
	for _, a := range addrs {
		if err := tryBind(a); err != nil {
			return fmt.Errorf("bind udp %s: %w", a, err)
		}
	}
	return nil
}

// sourceAddr returns the address from which the i-th socket sends.
func (c Config) sourceAddr(i int) netip.AddrPort {
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

// open opens one non-blocking socket of the group and binds it to at.
func (c Config) open(at netip.AddrPort) (fd int, err error) {
	const kind = unix.SOCK_DGRAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	fd, err = unix.Socket(family(at.Addr()), kind, 0)
	if err != nil {
		return 0, fmt.Errorf("create socket: %w", err)
	}
	err = c.setOptions(fd)
	if err == nil {
		err = unix.Bind(fd, sockaddr(at))
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("open udp %s: %w", at, err), unix.Close(fd))
	}
	return fd, nil
}

// openPair opens the receiving and the sending socket. They are the same socket unless
// Config.SourcePort is set.
func (c Config) openPair(i int) (fd, sendFD int, err error) {
	if len(c.Inherited) > 0 {
		fd = c.Inherited[i]
		return fd, fd, c.setOptions(fd)
	}
	fd, err = c.open(c.Bind)
	if err != nil || c.SourcePort == 0 {
		return fd, fd, err
	}
	sendFD, err = c.open(c.sourceAddr(i))
	if err != nil {
		return 0, 0, errors.Join(err, unix.Close(fd))
	}
	return fd, sendFD, nil
}

// Inheritable returns why the sockets cannot be Config.Inherited, or nil.
func (c Config) Inheritable(sockets []int) error {
	switch {
	case c.SourcePort != 0:
		return errors.New("sending from other sockets configured")
	case c.NoGRO:
		return errors.New("sockets join datagrams, which is disabled")
	}
	if len(sockets) != c.Sockets {
		return fmt.Errorf("%d sockets, want %d", len(sockets), c.Sockets)
	}
	for _, fd := range sockets {
		name, err := unix.Getsockname(fd)
		if err != nil {
			return fmt.Errorf("address of inherited socket: %w", err)
		}
		kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if err != nil {
			return fmt.Errorf("type of inherited socket: %w", err)
		}
		if got := addrPortOf(name); kind != unix.SOCK_DGRAM || got != c.Bind {
			return fmt.Errorf("socket of type %d on %s, want type %d on %s", kind, got,
				unix.SOCK_DGRAM, c.Bind)
		}
	}
	return nil
}

// setOptions sets the socket options that every socket of the group needs before bind.
func (c Config) setOptions(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return fmt.Errorf("set SO_REUSEPORT: %w", err)
	}
	// Do not fragment outer packets if the inner sender can be notified instead: losing one
	// fragment loses the packet, and reassembly buffers can be attacked. The kernel then returns
	// EMSGSIZE.
	if err := setMTUDiscovery(fd, c.Bind.Addr().Is4(), unix.IP_PMTUDISC_DO); err != nil {
		return fmt.Errorf("forbid outer fragments: %w", err)
	}
	level, readTOS := unix.IPPROTO_IP, unix.IP_RECVTOS
	if !c.Bind.Addr().Is4() {
		level, readTOS = unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS
		if err := setOptions6(fd); err != nil {
			return err
		}
	}
	if c.ReadTOS {
		if err := unix.SetsockoptInt(fd, level, readTOS, 1); err != nil {
			return fmt.Errorf("enable TOS of received packets: %w", err)
		}
	}
	return nil
}

// setOptions6 sets the options of a socket with an IPv6 address with which it handles packets of
// package fastpath as a socket with an IPv4 address does.
func setOptions6(fd int) error {
	// Accept datagrams without a checksum, which else the kernel drops without a trace: those that
	// the inbound program passes, and those that arrive while it is not attached. The conditions of
	// RFC 6936 section 4 hold: the inner checksums protect the payload, and the source check
	// compares the outer source, which the checksum would protect, with the inner packet.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_RX, 1); err != nil {
		return fmt.Errorf("accept UDP without a checksum: %w", err)
	}
	// Send the flow label 0, as the outbound program does: routers that choose one of several paths
	// by the label must choose the same one for packets of either, or a flow that moves between
	// them is reordered. A label of the kernel depends on the addresses and ports only.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_AUTOFLOWLABEL, 0); err != nil {
		return fmt.Errorf("disable automatic flow labels: %w", err)
	}
	return nil
}

// setMTUDiscovery sets the path MTU discovery mode of a socket: with IP_PMTUDISC_DO datagrams that
// exceed the path MTU are refused, with IP_PMTUDISC_DONT they are fragmented. The values are equal
// in IPv6 (linux/in.h, linux/in6.h).
func setMTUDiscovery(fd int, v4 bool, how int) error {
	if v4 {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, how)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, how)
}

// setBuffers sets the buffer sizes of the receiving and the sending socket. The error is the reason
// why a buffer is smaller than configured: only CAP_NET_ADMIN in the initial user namespace may
// exceed the limit of the kernel.
func (c Config) setBuffers(fd, sendFD int) error {
	if c.Buffer == 0 {
		return feature.ErrDisabled
	}
	var errs []error
	for _, b := range []struct {
		name              string
		fd, force, option int
	}{
		{"rmem", fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF},
		{"wmem", sendFD, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF},
	} {
		forceErr := unix.SetsockoptInt(b.fd, unix.SOL_SOCKET, b.force, c.Buffer)
		if forceErr == nil {
			continue
		}
		if err := unix.SetsockoptInt(b.fd, unix.SOL_SOCKET, b.option, c.Buffer); err != nil {
			errs = append(errs, fmt.Errorf("set socket buffer: %w", err))
		}
		got, err := unix.GetsockoptInt(b.fd, unix.SOL_SOCKET, b.option)
		got /= 2 // the kernel doubles the value that is set, for its own overhead (socket(7))
		if err != nil || got < c.Buffer {
			errs = append(errs, fmt.Errorf("%d bytes instead of %d: limited by net.core.%s_max, "+
				"which only CAP_NET_ADMIN in the initial user namespace may exceed (%w)",
				got, c.Buffer, b.name, forceErr))
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

// overflows returns the number of messages that the kernel dropped because the receive buffer was
// full: the counter of SO_RXQ_OVFL, read with SO_MEMINFO (Linux 4.12), which needs no control
// message per datagram. A train that was joined by GRO or never segmented counts as one message.
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
