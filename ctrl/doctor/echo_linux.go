package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"weft/encap/checksum"
)

// echoSize is the size of a small echo request in bytes, that of the ping program.
const echoSize = 84

// Echo is the result of ICMP echo requests.
type Echo struct {
	Size           int // of the IP packet, bytes
	Sent, Received int
	RTT            time.Duration // of the last answer
	TooBig         int           // MTU of an ICMP error, bytes; 0 without one
	Err            error         // the last error of sending, or another ICMP error
}

// echoRequest describes a series of echo requests, which ends with the first answer.
type echoRequest struct {
	src, dst netip.Addr // src invalid: chosen by the kernel
	size     int        // of the IP packet, bytes
	tries    int
	wait     time.Duration // for an answer to each
	// whole forbids fragmentation, whatever path MTU the kernel knows.
	whole    bool
	row      bool   // do not end with the first answer
	priority int    // of the socket (SO_PRIORITY)
	tos      int    // TOS or traffic class
	mark     []byte // in the packets and their answers; nil means none
}

// ICMP types (RFC 792, RFC 4443) and header sizes in bytes.
const (
	echoType4, replyType4  = 8, 0
	echoType6, replyType6  = 128, 129
	header4, header6, icmp = 20, 40, 8
)

// echo sends the requests.
func echo(ctx context.Context, r echoRequest) Echo {
	e := Echo{Size: r.size}
	fd, err := r.open()
	if err != nil {
		e.Err = err
		return e
	}
	defer unix.Close(fd)
	id := uint16(fd) ^ uint16(time.Now().UnixNano())
	for seq := range uint16(r.tries) {
		if ctx.Err() != nil {
			return e
		}
		e.Sent++
		begin := time.Now()
		if err := unix.Send(fd, r.packet(id, seq), 0); err != nil {
			if errors.Is(err, unix.EMSGSIZE) {
				e.TooBig = max(e.TooBig, pathMTU(fd, r.dst))
			}
			e.Err = err
			pause(ctx, r.wait/4)
			continue
		}
		answered := e.Received
		if e.await(ctx, fd, id, begin.Add(r.wait), r.dst.Is6()); e.Received > answered {
			e.RTT, e.Err = time.Since(begin), nil
			if !r.row {
				return e
			}
		}
	}
	return e
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// open returns a raw socket that is connected to the destination.
func (r echoRequest) open() (fd int, err error) {
	domain, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	if r.dst.Is6() {
		domain, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return -1, fmt.Errorf("open a raw socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	level, discover, recvErr, probe := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_RECVERR, unix.IP_PMTUDISC_PROBE
	tos := unix.IP_TOS
	if r.dst.Is6() {
		level, discover, recvErr, probe = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_RECVERR,
			unix.IPV6_PMTUDISC_PROBE
		tos = unix.IPV6_TCLASS
	}
	err = unix.SetsockoptInt(fd, level, recvErr, 1)
	if err == nil && r.whole {
		err = unix.SetsockoptInt(fd, level, discover, probe)
	}
	if err == nil && r.tos != 0 { // sets the priority, too
		err = unix.SetsockoptInt(fd, level, tos, r.tos)
	}
	if err == nil && r.priority != 0 {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, r.priority)
	}
	if err == nil && r.src.IsValid() {
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(r.src, 0)))
	}
	if err == nil {
		err = unix.Connect(fd, sockaddr(netip.AddrPortFrom(r.dst, 0)))
	}
	return fd, err
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// packet returns an ICMP echo request. The kernel computes the checksum of ICMPv6.
func (r echoRequest) packet(id, seq uint16) []byte {
	header, typ := header4, byte(echoType4)
	if r.dst.Is6() {
		header, typ = header6, echoType6
	}
	b := make([]byte, max(r.size-header, icmp))
	copy(b[icmp:], r.mark)
	b[0] = typ
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	if r.dst.Is4() {
		binary.BigEndian.PutUint16(b[2:], ^checksum.Sum(b, 0))
	}
	return b
}

// await waits for the answer, until the deadline.
func (e *Echo) await(ctx context.Context, fd int, id uint16, deadline time.Time, v6 bool) {
	buf := make([]byte, 1<<16)
	for ctx.Err() == nil {
		left := time.Until(deadline)
		if left <= 0 {
			return
		}
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		const step = 100 * time.Millisecond // ctx is looked at between
		if _, err := unix.Poll(ready, int(min(left, step).Milliseconds())+1); err != nil &&
			!errors.Is(err, unix.EINTR) {
			e.Err = err
			return
		}
		if ready[0].Revents&unix.POLLERR != 0 {
			e.readError(fd)
		}
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == nil && isReply(buf[:n], id, v6) {
			e.Received++
			return
		}
	}
}

// isReply reports whether a packet is an echo reply with the identifier. Raw IPv4 sockets receive
// the IP header, too.
func isReply(b []byte, id uint16, v6 bool) bool {
	want := byte(replyType6)
	if !v6 {
		if len(b) < header4 {
			return false
		}
		b = b[min(len(b), int(b[0]&0xf)*4):]
		want = replyType4
	}
	return len(b) >= icmp && b[0] == want && binary.BigEndian.Uint16(b[4:]) == id
}

// readError reads one ICMP error from the socket's error queue.
func (e *Echo) readError(fd int) {
	oob := make([]byte, 512)
	_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 64), oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return // empty
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		e.Err = err
		return
	}
	for _, m := range messages {
		if len(m.Data) < 16 { // struct sock_extended_err in linux/errqueue.h
			continue
		}
		errno := unix.Errno(binary.NativeEndian.Uint32(m.Data))
		if errno == unix.EMSGSIZE {
			e.TooBig = int(binary.NativeEndian.Uint32(m.Data[8:]))
			continue
		}
		e.Err = errno
	}
}

// pathMTU returns the path MTU that the kernel knows for a connected socket, 0 if it does not tell.
func pathMTU(fd int, dst netip.Addr) int {
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if dst.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	mtu, err := unix.GetsockoptInt(fd, level, option)
	if err != nil {
		return 0
	}
	return mtu
}

// pokePort sends a datagram of one byte to a UDP port and returns the error that it causes, nil if
// there is none for as long as wait. A failure to look counts as none.
func pokePort(
	ctx context.Context, to netip.AddrPort, payload []byte, wait time.Duration,
) (answer error) {
	domain, level, option := unix.AF_INET, unix.IPPROTO_IP, unix.IP_RECVERR
	if to.Addr().Is6() {
		domain, level, option = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil || unix.SetsockoptInt(fd, level, option, 1) != nil {
		return nil
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		return err
	}
	if err := unix.Send(fd, payload, 0); err != nil {
		return err
	}
	deadline := time.Now().Add(wait)
	for ctx.Err() == nil && time.Now().Before(deadline) {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(ready, 50); err != nil && !errors.Is(err, unix.EINTR) {
			return nil
		}
		value, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && value != 0 {
			return unix.Errno(value)
		}
	}
	return nil
}
