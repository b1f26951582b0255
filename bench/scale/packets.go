package scale

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/deploy/lab"
)

// sink receives the packets to all other nodes. Its methods are safe for concurrent use.
type sink struct {
	conn    *net.UDPConn
	cluster *cluster
	inner   int // offset of the inner IPv4 header in a datagram
	bytes   atomic.Int64

	mu       sync.Mutex
	arrivals map[int]arrival // last packet to each lease
	counts   [3]int          // by verdict
	firstBad string
}

type arrival struct {
	outer netip.Addr
	at    time.Time
}

// Offsets of the inner IPv4 header: the udp backend sends nothing else, VXLAN a header of 8 bytes
// (RFC 7348, section 5) and an Ethernet header.
const (
	innerUDP   = 0
	innerVXLAN = 8 + 14
)

// socketBuffer holds the packets to 10,000 nodes.
const socketBuffer = 32 << 20

// newSink opens the sink for a backend.
func newSink(root *lab.Node, c *cluster) (*sink, error) {
	s := &sink{cluster: c, arrivals: map[int]arrival{}}
	port := uint16(8285)
	if c.backend == "vxlan" {
		s.inner, port = innerVXLAN, 8472
	}
	if err := root.AddLocalRoute(publicRange()); err != nil {
		return nil, err
	}
	var err error
	if s.conn, err = root.ListenUDP(netip.IPv4Unspecified(), port); err != nil {
		return nil, err
	}
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, s.conn.Close())
	}
	var optErr error
	err = raw.Control(func(fd uintptr) { optErr = setOptions(int(fd)) })
	if err := errors.Join(err, optErr); err != nil {
		return nil, errors.Join(err, s.conn.Close())
	}
	go s.receive()
	return s, nil
}

// setOptions sets the options of the sink's socket.
func setOptions(fd int) error {
	// Without UDP_GRO, each packet arrives alone.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer))
}

func (s *sink) close() error { return s.conn.Close() }

// receive records packets until the socket is closed.
func (s *sink) receive() {
	buf, oob := make([]byte, 64<<10), make([]byte, 256)
	for {
		n, oobn, _, _, err := s.conn.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return
		}
		s.bytes.Add(int64(n))
		outer, size := describe(oob[:oobn])
		if size == 0 {
			size = max(n, 1)
		}
		now := time.Now()
		for datagram := range slices.Chunk(buf[:n], size) {
			ip := datagram[min(s.inner, len(datagram)):]
			if len(ip) >= 20 && outer.IsValid() && ip[9] == unix.IPPROTO_UDP {
				s.record(netip.AddrFrom4([4]byte(ip[16:20])), outer, now)
			}
		}
	}
}

// describe returns the destination address in the control messages of a train of datagrams, and the
// size of each; 0 for a single one.
func describe(oob []byte) (outer netip.Addr, size int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}, 0
	}
	for _, m := range messages {
		switch h := m.Header; {
		// struct in_pktinfo: the interface index, the local address, the destination.
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(m.Data) >= 12:
			outer = netip.AddrFrom4([4]byte(m.Data[8:12]))
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(m.Data) >= 4:
			size = int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return outer, size
}

func (s *sink) record(dst, outer netip.Addr, at time.Time) {
	i := leaseOf(dst)
	v := s.cluster.judge(i, outer, at)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arrivals[i] = arrival{outer, at}
	s.counts[v]++
	if v == wrong && s.firstBad == "" {
		s.firstBad = fmt.Sprintf("packet to %s sent to %s", dst, outer)
	}
}

// last returns the last packet to a lease.
func (s *sink) last(i int) arrival {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.arrivals[i]
}

// sender sends packets from the daemon's node.
type sender struct{ conn *net.UDPConn }

func newSender(n *lab.Node) (sender, error) {
	c, err := n.ListenUDP(netip.IPv4Unspecified(), 0)
	return sender{c}, err
}

// send sends one packet to a pod of lease i. An unreachable pod is not an error: there may be no
// route yet.
func (s sender) send(i int) {
	_, _ = s.conn.WriteToUDPAddrPort([]byte("scale"), netip.AddrPortFrom(pod(i), 9))
}

// sendTrain sends packets to a pod of lease i with one system call.
func (s sender) sendTrain(i int, train []byte) error {
	_, err := s.conn.WriteToUDPAddrPort(train, netip.AddrPortFrom(pod(i), 9))
	return err
}

// probeInterval is the time between two packets to a lease that is awaited.
const probeInterval = 2 * time.Millisecond

// awaitOwner sends packets to lease i until one arrives at its node, and returns how long that took
// since a moment.
func (r *run) awaitOwner(ctx context.Context, i int, since time.Time) (time.Duration, error) {
	limit := time.Now().Add(r.Patience)
	want := publicAddr(i, r.cluster.version(i))
	for time.Now().Before(limit) && ctx.Err() == nil {
		r.sender.send(i)
		time.Sleep(probeInterval)
		if a := r.sink.last(i); a.outer == want && a.at.After(since) {
			return a.at.Sub(since), nil
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("no packet to %s arrived at %s within %s", subnet(i), want, r.Patience)
}
