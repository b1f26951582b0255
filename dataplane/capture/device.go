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
	// FastPath is the UDP port of the overlay, to record the inner packets that the kernel's fast
	// path sends and receives on an interface to other nodes; 0 means the packets of the device.
	FastPath uint16
	// Lengths selects packets by their whole length in bytes, at most 200 different ones; nil means
	// all.
	Lengths []int
	// Received selects what the device passes to this host, of the family of Received; the zero
	// value also what is sent. Other than that, it does not pause the fast path of a TUN device.
	Received netip.Addr
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
	kernel selection

	lengths string // of source, encoded
}

// Listen opens a packet socket on a device in the calling thread's network namespace, as the i-th
// listener of the session. The caller runs the listener and closes it.
//
// In a Partial session, the kernel takes the sample and copies no more than the snapshot length.
func (s *Session) Listen(i int, source Source) (*Listener, error) {
	fd, err := openPacketSocket(source.Device, source.protocol())
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", source.Device, err)
	}
	only := source.Only
	if only == nil {
		only = &filter.Filter{}
	}
	l := &Listener{
		source: source, ring: s.rings[s.workers+i], only: only.Matcher(), fd: fd,
		buf:  make([]byte, MaxSnapLen),
		meta: Meta{Worker: -1, Device: source.Device}, lengths: lengthsOf(source.Lengths),
	}
	if err := l.choose(); err != nil {
		return nil, errors.Join(fmt.Errorf("capture on %s: %w", source.Device, err), l.Close())
	}
	return l, nil
}

// choose makes the kernel select packets, if that has changed.
func (l *Listener) choose() error {
	session := l.ring.session
	want := selection{fastPath: l.source.FastPath, lengths: l.lengths, sample: 1, snapLen: MaxSnapLen}
	if session.Partial() {
		want.sample = int(session.sample.Load())
		want.snapLen = session.options.SnapLen + maxOuterHeader
		l.ring.chosen = want.sample
	}
	if want == l.kernel || want == (selection{sample: 1, snapLen: MaxSnapLen}) {
		return nil
	}
	if err := want.attach(l.fd); err != nil {
		return fmt.Errorf("attach a filter: %w", err)
	}
	l.kernel = want
	return nil
}

// protocol returns the protocol that a packet socket is to receive.
func (s Source) protocol() uint16 {
	switch {
	case s.Received.Is4():
		return unix.ETH_P_IP
	case s.Received.Is6():
		return unix.ETH_P_IPV6
	}
	return unix.ETH_P_ALL
}

// openPacketSocket returns a socket that receives the packets of a device without their link layer:
// those of all protocols, sent and received, or those of one protocol that are received.
func openPacketSocket(device string, protocol uint16) (int, error) {
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
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(protocol), Ifindex: ifi.Index}),
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
			if err := l.choose(); err != nil {
				return fmt.Errorf("capture on %s: %w", l.source.Device, err)
			}
		}
	}
	return nil
}

// record passes a packet of n bytes to the ring, if it is one of the overlay.
func (l *Listener) record(n int, from unix.Sockaddr) {
	link, ok := from.(*unix.SockaddrLinklayer)
	pkt := l.buf[:min(n, len(l.buf))]
	if l.source.FastPath != 0 {
		pkt = inDatagram(pkt)
	}
	if !ok || len(pkt) == 0 || !l.only.Match(pkt, link.Pkttype == unix.PACKET_OUTGOING) {
		return
	}
	m := &l.meta
	m.Time, m.Outbound = time.Now(), link.Pkttype == unix.PACKET_OUTGOING
	far := farAddr(pkt, m.Outbound)
	m.Node = l.source.Node(far)
	if l.source.FastPath != 0 && m.Node == "" {
		return
	}
	if m.Outer = (netip.Addr{}); l.source.Point == Outer {
		if m.Outer = far; m.Node == "" {
			return
		}
	}
	l.ring.add(l.source.Point, m, pkt, max(len(pkt), ipLength(pkt)))
}

// maxOuterHeader is the length of the longest headers before an inner packet.
const maxOuterHeader = ipv6HeaderLen + udpHeaderLen

// inDatagram returns the payload of a UDP packet, which may be only its beginning; nil if it has
// none.
func inDatagram(pkt []byte) []byte {
	header := ipv6HeaderLen
	if len(pkt) > 0 && pkt[0]>>4 == 4 {
		header = int(pkt[0]&0x0f) * 4
	}
	if header += udpHeaderLen; len(pkt) <= header {
		return nil
	}
	return pkt[header:]
}

// ipLength returns the length of an IP packet by its header; 0 if that is unknown.
func ipLength(pkt []byte) int {
	switch {
	case len(pkt) >= ipv4HeaderLen && pkt[0]>>4 == 4:
		return int(binary.BigEndian.Uint16(pkt[2:]))
	case len(pkt) >= ipv6HeaderLen && pkt[0]>>4 == 6:
		return ipv6HeaderLen + int(binary.BigEndian.Uint16(pkt[4:]))
	}
	return 0
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
