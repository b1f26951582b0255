package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
)

const (
	// portableBatch is how many datagrams one recvmmsg or sendmmsg of the portable socket moves at most.
	portableBatch = 64
	// maxDatagram is above the largest UDP payload of both families, so that nothing is ever cut off.
	maxDatagram = 65536
)

// Portable is a socket that moves one datagram a message through x/net's batches. It asks nothing of the
// kernel but recvmmsg and sendmmsg (3.0), and is the twin that the offload socket is compared with.
type Portable struct {
	receiver *batches
	sender   *batches // the same unless there are source ports
	in       []ipv4.Message
	received []Message
	out      []ipv4.Message
	to       []*Destination // of each message in out
	addrs    []net.UDPAddr  // what out's messages point to
	control  []control      // of each message in out
	tos      tosOption
	queued   int // messages of out in use
	sent     int // of those, how many the kernel has taken or refused
}

// OpenPortable opens a group of portable sockets.
func OpenPortable(c Config) (*Group[*Portable], error) {
	if err := c.claim(); err != nil {
		return nil, err
	}
	g := &Group[*Portable]{lacks: map[feature.Name]error{
		feature.GSO: errPlain, feature.GRO: errPlain, feature.Steering: errPlain,
	}}
	for i := range c.Sockets {
		s, err := openPortable(c, i)
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
		g.Sockets = append(g.Sockets, s)
		if err := c.sizeBuffers(s.FD(), s.SendFD()); err != nil {
			g.lacks[feature.Buffers] = err
		}
	}
	return g, nil
}

// errPlain is the reason for which a group of OpenPortable is without what only offload sockets have.
var errPlain = errors.New("the portable socket moves one datagram a message")

func openPortable(c Config, i int) (*Portable, error) {
	fd, sendFD, err := c.openPair(i)
	if err != nil {
		return nil, err
	}
	s := &Portable{
		in:       make([]ipv4.Message, portableBatch),
		received: make([]Message, portableBatch),
		out:      make([]ipv4.Message, portableBatch),
		to:       make([]*Destination, portableBatch),
		addrs:    make([]net.UDPAddr, portableBatch),
		control:  make([]control, portableBatch),
		tos:      newTOSOption(!c.Bind.Addr().Is4()),
	}
	for i := range portableBatch {
		s.in[i].Buffers = [][]byte{make([]byte, maxDatagram)}
		s.in[i].OOB = make([]byte, unsafe.Sizeof(control{}))
		s.out[i].Buffers = [][]byte{make([]byte, maxDatagram)}
		s.out[i].Addr = &s.addrs[i]
	}
	var sendErr error
	s.receiver, err = newBatches(fd)
	s.sender = s.receiver
	if sendFD != fd {
		s.sender, sendErr = newBatches(sendFD)
	}
	if err = errors.Join(err, sendErr); err != nil {
		return nil, errors.Join(fmt.Errorf("open udp %s: %w", c.Bind, err), s.Close())
	}
	return s, nil
}

// batches is a socket in the hands of x/net.
type batches struct {
	*ipv4.PacketConn
	fd int // for poll and socket options only
}

// newBatches takes over the descriptor fd, also if it fails.
func newBatches(fd int) (*batches, error) {
	file := os.NewFile(uintptr(fd), "udp")
	defer file.Close() // FilePacketConn makes a descriptor of its own
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, err
	}
	b := &batches{PacketConn: ipv4.NewPacketConn(conn)}
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { b.fd = int(fd) })
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return b, nil
}

// FD returns the descriptor to poll for what is received; it stays the socket's own.
func (s *Portable) FD() int { return s.receiver.fd }

// SendFD returns the descriptor to poll for room to send.
func (s *Portable) SendFD() int { return s.sender.fd }

// Reserve returns memory for the next datagram of the lane, n bytes, which the caller fills before its next call
// here. It returns nil when a Flush must come first.
func (s *Portable) Reserve(lane TxKey, n int) []byte {
	if s.queued == len(s.out) || n > maxDatagram {
		return nil
	}
	i := s.queued
	s.queued++
	s.to[i] = lane.To
	s.addrs[i] = net.UDPAddr{IP: lane.To.ip[:], Port: int(lane.To.Addr.Port())}
	if lane.To.Addr.Addr().Is4() {
		s.addrs[i].IP = lane.To.ip[12:]
	}
	s.out[i].OOB = nil
	if size := s.tos.put(&s.control[i], 0, lane.TOS); size > 0 {
		s.out[i].OOB = s.control[i].bytes(size)
	}
	s.out[i].Buffers[0] = s.out[i].Buffers[0][:n]
	return s.out[i].Buffers[0]
}

// Flush sends what was reserved, in order, and tells failed of what the kernel refuses. It returns false if the
// kernel's buffer is full: the rest is kept, and the caller polls for room and calls again before it reserves
// more.
func (s *Portable) Flush(failed UndeliveredFunc) bool {
	for s.sent < s.queued {
		n, err := s.sender.WriteBatch(s.out[s.sent:s.queued], unix.MSG_DONTWAIT)
		for range max(n, 0) {
			s.to[s.sent].sent(1, len(s.out[s.sent].Buffers[0]))
			s.sent++
		}
		switch {
		case err == nil, errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return false
		default: // the first that was not taken is the one refused
			failed(s.to[s.sent], s.out[s.sent].Buffers[0], err)
			s.sent++
		}
	}
	s.queued, s.sent = 0, 0
	return true
}

// Send sends one datagram at once, past what is reserved, in outer fragments if the path carries no more.
func (s *Portable) Send(to *Destination, datagram []byte) error {
	return sendOne(s.SendFD(), to, datagram)
}

// Receive returns what has arrived, nothing if nothing has. The messages are the caller's until the next call; if
// they fill their slice to its capacity, there may be more.
func (s *Portable) Receive() ([]Message, error) {
	n, err := s.receiver.ReadBatch(s.in, unix.MSG_DONTWAIT)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	for i, m := range s.in[:n] {
		from := netip.AddrPort{}
		if a, ok := m.Addr.(*net.UDPAddr); ok {
			from = a.AddrPort()
		}
		s.received[i] = Message{
			From:      netip.AddrPortFrom(from.Addr().Unmap(), from.Port()),
			Data:      m.Buffers[0][:m.N],
			Segment:   m.N,
			Truncated: m.Flags&unix.MSG_TRUNC != 0,
		}
		readControl(m.OOB[:m.NN], &s.received[i])
	}
	return s.received[:n], nil
}

// Overflows returns how many messages the kernel dropped because the receive buffer was full. It may be called by any
// goroutine until Close.
func (s *Portable) Overflows() (uint64, error) { return overflows(s.FD()) }

// Close closes the socket.
func (s *Portable) Close() error {
	var errs []error
	if s.receiver != nil {
		errs = append(errs, s.receiver.Close())
	}
	if s.sender != nil && s.sender != s.receiver {
		errs = append(errs, s.sender.Close())
	}
	return errors.Join(errs...)
}
