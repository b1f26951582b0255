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
	// portableBatch is the maximum number of datagrams per recvmmsg or sendmmsg of a portable
	// socket.
	portableBatch = 64
	// maxDatagram exceeds the largest UDP payload of both families, so no datagram is truncated.
	maxDatagram = 65536
)

// Portable is a socket that sends and receives one datagram per message, with the batch functions
// of x/net. The only kernel features it needs are recvmmsg and sendmmsg (Linux 3.0). It is the
// reference for Offload.
type Portable struct {
	receiver *batchConn
	sender   *batchConn // same as receiver unless Config.SourcePort is set
	in       []ipv4.Message
	received []Message
	out      []ipv4.Message
	to       []*Destination // destination of each message in out
	addrs    []net.UDPAddr  // addresses of the messages in out
	control  []control      // control messages of each message in out
	tos      tosOption
	queued   int // number of messages in out
	sent     int // number of those sent or refused
}

// OpenPortable opens a group of portable sockets.
func OpenPortable(c Config) (*Group[*Portable], error) {
	if err := c.checkBindable(); err != nil {
		return nil, err
	}
	g := &Group[*Portable]{unavailable: map[feature.Name]error{
		feature.GSO: errPortable, feature.GRO: errPortable, feature.Steering: errPortable,
	}}
	for i := range c.Sockets {
		s, err := openPortable(c, i)
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
		g.Sockets = append(g.Sockets, s)
		if err := c.setBuffers(s.FD(), s.SendFD()); err != nil {
			g.unavailable[feature.Buffers] = err
		}
	}
	return g, nil
}

// errPortable is the reason for not using the features of Offload sockets.
var errPortable = errors.New("portable sockets use one message per datagram")

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
	s.receiver, err = newBatchConn(fd)
	s.sender = s.receiver
	if sendFD != fd {
		s.sender, sendErr = newBatchConn(sendFD)
	}
	if err = errors.Join(err, sendErr); err != nil {
		return nil, errors.Join(fmt.Errorf("open udp %s: %w", c.Bind, err), s.Close())
	}
	return s, nil
}

// batchConn is a socket used through x/net.
type batchConn struct {
	*ipv4.PacketConn
	fd int // for poll and socket options
}

// newBatchConn returns a batchConn for the descriptor fd. It takes ownership of fd, even on error.
func newBatchConn(fd int) (*batchConn, error) {
	file := os.NewFile(uintptr(fd), "udp")
	defer file.Close() // FilePacketConn duplicates the descriptor
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, err
	}
	b := &batchConn{PacketConn: ipv4.NewPacketConn(conn)}
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { b.fd = int(fd) })
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return b, nil
}

// FD returns the descriptor to poll for received messages. The socket keeps ownership.
func (s *Portable) FD() int { return s.receiver.fd }

// SendFD returns the descriptor to poll for free space in the send buffer.
func (s *Portable) SendFD() int { return s.sender.fd }

// Reserve returns n bytes of memory for the next datagram of key. The caller must fill it before it
// calls another method. Reserve returns nil if a Flush is required first.
func (s *Portable) Reserve(key TxKey, n int) []byte {
	if s.queued == len(s.out) || n > maxDatagram {
		return nil
	}
	i := s.queued
	s.queued++
	s.to[i] = key.To
	s.addrs[i] = net.UDPAddr{IP: key.To.ip[:], Port: int(key.To.Addr.Port())}
	if key.To.Addr.Addr().Is4() {
		s.addrs[i].IP = key.To.ip[12:]
	}
	s.out[i].OOB = nil
	if size := s.tos.put(&s.control[i], 0, key.TOS); size > 0 {
		s.out[i].OOB = s.control[i].bytes(size)
	}
	s.out[i].Buffers[0] = s.out[i].Buffers[0][:n]
	return s.out[i].Buffers[0]
}

// Flush sends the reserved datagrams in order, and calls failed for each one that the kernel
// refuses. It returns false if the send buffer is full. The rest is kept: the caller must poll
// SendFD and call Flush again before the next Reserve.
func (s *Portable) Flush(failed UndeliveredFunc) bool {
	for s.sent < s.queued {
		n, err := s.sender.WriteBatch(s.out[s.sent:s.queued], unix.MSG_DONTWAIT)
		for range max(n, 0) {
			s.to[s.sent].count(1, len(s.out[s.sent].Buffers[0]))
			s.sent++
		}
		switch {
		case err == nil, errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return false
		default: // the error is about the first message not sent
			failed(s.to[s.sent], s.out[s.sent].Buffers[0], err)
			s.sent++
		}
	}
	s.queued, s.sent = 0, 0
	return true
}

// Send sends one datagram immediately, before the reserved ones. It may be fragmented.
func (s *Portable) Send(to *Destination, datagram []byte) error {
	return sendOne(s.SendFD(), to, datagram)
}

// Receive returns the messages that have arrived, if any. They are valid until the next call. If
// their number equals the capacity of the slice, more may be waiting.
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

// Overflows returns the number of messages that the kernel dropped because the receive buffer was
// full. It may be called by any goroutine until Close.
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
