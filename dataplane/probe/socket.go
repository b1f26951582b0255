package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	icmpFilter      = 1                        // ICMP_FILTER of linux/icmp.h, at level SOL_RAW
	recvErrLen      = 16                       // struct sock_extended_err of linux/errqueue.h
	originLocal     = unix.SO_EE_ORIGIN_LOCAL  // the kernel's own error
	originICMP      = unix.SO_EE_ORIGIN_ICMP   // a message of a router or host
	originICMP6     = unix.SO_EE_ORIGIN_ICMP6  // likewise
	pmtuProbe4      = unix.IP_PMTUDISC_PROBE   // set DF, ignore the kernel's cached path MTU
	pmtuProbe6      = unix.IPV6_PMTUDISC_PROBE // likewise
	receiveBuffer   = 1 << 20                  // bytes; replies wait for the next tick
	controlCapacity = 512                      // bytes; time stamp or error and its sender
)

// socket is a raw ICMP socket of one family. It never blocks.
type socket struct {
	fd      int
	v6      bool
	nonce   nonce
	current options
	send    []byte // buffer of sendEcho
	receive []byte
	control []byte
}

// openSocket opens a socket that receives echo replies only. source is its source address; if that
// is invalid, the kernel chooses one per packet.
func openSocket(v6 bool, source netip.Addr, n nonce) (*socket, error) {
	family, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	if v6 {
		family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("open ICMP socket: %w: needs the capability CAP_NET_RAW", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open ICMP socket: %w", err)
	}
	s := &socket{fd: fd, v6: v6, nonce: n, send: make([]byte, 1<<16), receive: make([]byte, 1<<16),
		control: make([]byte, controlCapacity)}
	if err := s.configure(); err != nil {
		return nil, errors.Join(fmt.Errorf("configure ICMP socket: %w", err), s.close())
	}
	if source.IsValid() {
		if err := unix.Bind(fd, sockaddr(source)); err != nil {
			return nil, errors.Join(fmt.Errorf("bind ICMP socket to %s: %w", source, err), s.close())
		}
	}
	return s, nil
}

func (s *socket) configure() error {
	// The receive buffer stays at the limit of the host if that is lower.
	_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	errs := []error{unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)}
	if s.v6 {
		filter := &unix.ICMPv6Filter{}
		for i := range filter.Data {
			filter.Data[i] = ^uint32(0) // a set bit blocks a type
		}
		filter.Data[echoReply6/32] &^= 1 << (echoReply6 % 32)
		errs = append(errs,
			unix.SetsockoptICMPv6Filter(s.fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, filter),
			unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, pmtuProbe6),
			unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1),
			unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
	} else {
		blocked := ^uint32(1 << echoReply4)
		errs = append(errs,
			unix.SetsockoptInt(s.fd, unix.SOL_RAW, icmpFilter, int(int32(blocked))),
			unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, pmtuProbe4),
			unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
	}
	return errors.Join(errs...)
}

func (s *socket) close() error { return unix.Close(s.fd) }

// options are the options of a socket that select the way of an echo.
type options struct{ priority, tos int }

// setOptions sets the options of the echoes to send. The priority comes last, as a TOS changes it.
func (s *socket) setOptions(o options) error {
	if s.current == o {
		return nil
	}
	level, option := unix.IPPROTO_IP, unix.IP_TOS
	if s.v6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	err := unix.SetsockoptInt(s.fd, level, option, o.tos)
	if err == nil {
		err = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_PRIORITY, o.priority)
	}
	if err == nil {
		s.current = o
	}
	return err
}

// sendEcho sends an echo request in an IP packet of size bytes.
func (s *socket) sendEcho(to netip.Addr, number uint64, size int) error {
	header := ipv4HeaderLen
	if s.v6 {
		header = ipv6HeaderLen
	}
	msg := s.send[:max(size-header, messageLen)]
	s.nonce.putEcho(msg, number, s.v6)
	return unix.Sendto(s.fd, msg, 0, sockaddr(to))
}

// replies calls f for each reply that has arrived, with the number of its echo and its time of
// arrival.
func (s *socket) replies(f func(number uint64, at time.Time)) {
	for {
		n, oobn, _, _, err := unix.Recvmsg(s.fd, s.receive, s.control, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			continue // an error of the error queue, which is reported once
		}
		msg, ok := s.receive[:n], true
		if !s.v6 {
			msg, ok = payload4(msg)
		}
		if !ok {
			continue
		}
		if number, ok := s.nonce.parseReply(msg, s.v6); ok {
			f(number, arrival(s.control[:oobn]))
		}
	}
}

// arrival returns the kernel's time stamp of a message, or the current time if it has none.
func arrival(control []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return time.Now()
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SO_TIMESTAMPNS {
			continue
		}
		switch len(m.Data) { // struct timespec of 64 and 32 bits
		case 16:
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)),
				int64(binary.NativeEndian.Uint64(m.Data[8:])))
		case 8:
			return time.Unix(int64(binary.NativeEndian.Uint32(m.Data)),
				int64(binary.NativeEndian.Uint32(m.Data[4:])))
		}
	}
	return time.Now()
}

// failure is an error that the kernel or another host reported for an echo.
type failure struct {
	number uint64 // of the echo; 0 for an error of the kernel itself
	err    error
	mtu    int // of the path, if err is EMSGSIZE
}

// failures calls f for each error in the socket's error queue.
func (s *socket) failures(f func(failure)) {
	for {
		n, oobn, _, _, err := unix.Recvmsg(s.fd, s.receive, s.control,
			unix.MSG_DONTWAIT|unix.MSG_ERRQUEUE)
		if err != nil {
			return
		}
		if failed, ok := s.parseFailure(s.receive[:n], s.control[:oobn]); ok {
			f(failed)
		}
	}
}

// parseFailure parses an entry of the error queue: the quoted request and the error.
func (s *socket) parseFailure(quoted, control []byte) (failure, bool) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return failure{}, false
	}
	for _, m := range messages {
		four := m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR
		six := m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if !four && !six || len(m.Data) < recvErrLen {
			continue
		}
		// struct sock_extended_err: errno, origin, type, code, padding, info (the MTU).
		errno := unix.Errno(binary.NativeEndian.Uint32(m.Data))
		f := failure{err: errno}
		if errno == unix.EMSGSIZE {
			f.mtu = int(binary.NativeEndian.Uint32(m.Data[8:]))
		}
		switch m.Data[4] {
		case originLocal:
			return f, true
		case originICMP, originICMP6:
			var ok bool
			f.number, ok = s.nonce.parseQuoted(quoted, s.v6)
			return f, ok
		}
	}
	return failure{}, false
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}
