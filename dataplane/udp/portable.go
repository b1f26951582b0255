package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
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
	fd       int // of conn; for poll and socket options only
	conn     *net.UDPConn
	batch    *ipv4.PacketConn
	in       []ipv4.Message
	received []Message
	out      []ipv4.Message
	to       []*Destination // of each message in out
	addrs    []net.UDPAddr  // what out's messages point to
	queued   int            // messages of out in use
	sent     int            // of those, how many the kernel has taken or refused
}

// OpenPortable opens a group of portable sockets.
func OpenPortable(c Config) ([]*Portable, error) {
	if !c.Takeover {
		if err := claim(c.Bind); err != nil {
			return nil, err
		}
	}
	var group []*Portable
	for range c.Sockets {
		s, err := openPortable(c)
		if err != nil {
			for _, s := range group {
				err = errors.Join(err, s.Close())
			}
			return nil, err
		}
		group = append(group, s)
	}
	return group, nil
}

func openPortable(c Config) (*Portable, error) {
	fd, err := open(c)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "udp "+c.Bind.String())
	defer file.Close() // FilePacketConn makes its own
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("open udp %s: %w", c.Bind, err)
	}
	s := &Portable{conn: conn.(*net.UDPConn), batch: ipv4.NewPacketConn(conn)}
	if err := s.findFD(); err != nil {
		return nil, errors.Join(fmt.Errorf("open udp %s: %w", c.Bind, err), conn.Close())
	}
	s.in = make([]ipv4.Message, portableBatch)
	s.received = make([]Message, portableBatch)
	s.out = make([]ipv4.Message, portableBatch)
	s.to = make([]*Destination, portableBatch)
	s.addrs = make([]net.UDPAddr, portableBatch)
	for i := range portableBatch {
		s.in[i].Buffers = [][]byte{make([]byte, maxDatagram)}
		s.out[i].Buffers = [][]byte{make([]byte, maxDatagram)}
		s.out[i].Addr = &s.addrs[i]
	}
	return s, nil
}

func (s *Portable) findFD() error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { s.fd = int(fd) })
}

// FD returns the descriptor to poll; it stays the socket's own.
func (s *Portable) FD() int { return s.fd }

// Reserve returns memory for the next datagram of the lane, n bytes, which the caller fills before its next call
// here. It returns nil when a Flush must come first.
func (s *Portable) Reserve(lane Lane, n int) []byte {
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
	s.out[i].Buffers[0] = s.out[i].Buffers[0][:n]
	return s.out[i].Buffers[0]
}

// Flush sends what was reserved, in order, and tells failed of what the kernel refuses. It returns false if the
// kernel's buffer is full: the rest is kept, and the caller polls for room and calls again before it reserves
// more.
func (s *Portable) Flush(failed Undelivered) bool {
	for s.sent < s.queued {
		n, err := s.batch.WriteBatch(s.out[s.sent:s.queued], unix.MSG_DONTWAIT)
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

// Send sends one datagram at once, past what is reserved.
func (s *Portable) Send(to *Destination, datagram []byte) error { return sendOne(s.fd, to, datagram) }

// Receive returns what has arrived, nothing if nothing has. The messages are the caller's until the next call.
func (s *Portable) Receive() ([]Message, error) {
	n, err := s.batch.ReadBatch(s.in, unix.MSG_DONTWAIT)
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
			From:    netip.AddrPortFrom(from.Addr().Unmap(), from.Port()),
			Data:    m.Buffers[0][:m.N],
			Segment: m.N,
		}
	}
	return s.received[:n], nil
}

// Overflows returns how many datagrams the kernel dropped because the receive buffer was full. It may be called
// by any goroutine until Close.
func (s *Portable) Overflows() (uint64, error) { return overflows(s.fd) }

// Close closes the socket.
func (s *Portable) Close() error { return s.conn.Close() }
