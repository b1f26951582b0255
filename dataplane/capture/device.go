package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"weft/dataplane/capture/filter"
)

// Source is a network device whose packets the kernel carries.
type Source struct {
	Device string
	Point  Point
	// Only selects the packets of the overlay among those of the device; nil means all.
	Only *filter.Filter
	// Node returns the name of the node that has an inner address, at the inner point, or an outer
	// one. At the outer point, only packets of nodes are recorded.
	Node func(netip.Addr) string
}

const (
	// deviceBuffer is the size of a packet socket's buffer in bytes. As with sockets of the
	// overlay, it bridges a pause of the reader of about 5 ms at 10 Gb/s.
	deviceBuffer = 8 << 20
	// deviceTimeout limits the wait for a packet, and so the time until a capture ends.
	deviceTimeout = 100 * time.Millisecond
)

// Listener records the packets of a device with a packet socket: the kernel passes a copy of each,
// so that traffic does not wait for the capture.
type Listener struct {
	source Source
	ring   *Ring
	only   *filter.Matcher
	fd     int
	buf    []byte
	meta   Meta
}

// Listen opens a packet socket on a device in the calling thread's network namespace. Its records
// are those of the ring, which must have no other writer. The caller runs the listener and closes
// it.
func (s *Session) Listen(ring int, source Source) (*Listener, error) {
	fd, err := openPacketSocket(source.Device)
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", source.Device, err)
	}
	only := source.Only
	if only == nil {
		only = &filter.Filter{}
	}
	return &Listener{
		source: source, ring: s.rings[ring], only: only.Matcher(), fd: fd,
		buf:  make([]byte, MaxSnapLen),
		meta: Meta{Worker: -1, Device: source.Device},
	}, nil
}

// openPacketSocket returns a socket that receives all packets of a device without their link layer.
func openPacketSocket(device string) (int, error) {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return -1, err
	}
	// Protocol 0 receives nothing until bind has selected the device.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	timeout := unix.NsecToTimeval(deviceTimeout.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, deviceBuffer),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifi.Index}),
	)
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// htons converts a number to network byte order.
func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16([]byte{byte(v >> 8), byte(v)})
}

// Run records packets until ctx is done, which is a success, or the device is deleted.
func (l *Listener) Run(ctx context.Context) error {
	for stated := time.Now(); ctx.Err() == nil; {
		n, from, err := unix.Recvfrom(l.fd, l.buf, unix.MSG_TRUNC)
		switch {
		case err == nil:
			l.record(n, from)
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENETDOWN): // the device is down; packets come when it is up again
		default:
			return fmt.Errorf("capture on %s: %w", l.source.Device, err)
		}
		if now := time.Now(); err != nil || now.Sub(stated) > deviceTimeout {
			stated = now
			l.countMissed()
		}
	}
	return nil
}

// record passes a packet of n bytes to the ring, if it is one of the overlay.
func (l *Listener) record(n int, from unix.Sockaddr) {
	link, ok := from.(*unix.SockaddrLinklayer)
	pkt := l.buf[:min(n, len(l.buf))]
	if !ok || len(pkt) == 0 || !l.only.Match(pkt, link.Pkttype == unix.PACKET_OUTGOING) {
		return
	}
	m := &l.meta
	m.Time, m.Outbound = time.Now(), link.Pkttype == unix.PACKET_OUTGOING
	far := farAddr(pkt, m.Outbound)
	m.Node = l.source.Node(far)
	if m.Outer = (netip.Addr{}); l.source.Point == Outer {
		if m.Outer = far; m.Node == "" {
			return
		}
	}
	l.ring.add(l.source.Point, m, pkt)
}

// farAddr returns the address of a packet that is not this node's.
func farAddr(pkt []byte, outbound bool) netip.Addr {
	switch {
	case len(pkt) >= ipv4HeaderLen && pkt[0]>>4 == 4 && outbound:
		return netip.AddrFrom4([4]byte(pkt[16:]))
	case len(pkt) >= ipv4HeaderLen && pkt[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(pkt[12:]))
	case len(pkt) >= ipv6HeaderLen && outbound:
		return netip.AddrFrom16([16]byte(pkt[24:]))
	case len(pkt) >= ipv6HeaderLen:
		return netip.AddrFrom16([16]byte(pkt[8:]))
	}
	return netip.Addr{}
}

// countMissed adds the packets that found the socket's buffer full. Some of them might not have
// matched.
func (l *Listener) countMissed() {
	// Reading resets the kernel's counter. An error leaves it for the next time.
	if stats, err := unix.GetsockoptTpacketStats(l.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		l.ring.missed[l.source.Point].Add(uint64(stats.Drops))
	}
}

// Close closes the socket. Run must have returned or never been called.
func (l *Listener) Close() error { return unix.Close(l.fd) }
