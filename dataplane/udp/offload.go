package udp

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
	"weft/encap"
)

// Offload is a socket that moves trains of datagrams with UDP_SEGMENT and UDP_GRO through raw sendmmsg and
// recvmmsg, out of and into memory that is all allocated when it is opened: 4 MiB to send, of which bulk traffic
// touches a quarter of one, and 1 MiB to receive.
type Offload struct {
	fd     int
	trains trains
	sender sender
	receiver
}

// OpenOffload opens a group of offload sockets. What the kernel cannot do, or does wrong, is left out: Features
// says what and why.
func OpenOffload(c Config) (*Group[*Offload], error) {
	if err := c.claim(); err != nil {
		return nil, err
	}
	can := probe(c)
	g := &Group[*Offload]{lacks: can.lacks}
	for i := range c.Sockets {
		s, err := openOffload(c, i, can)
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
		g.Sockets = append(g.Sockets, s)
		if err := c.sizeBuffers(s.FD(), s.SendFD()); err != nil {
			g.lacks[feature.Buffers] = err
		}
	}
	if c.NoSteering {
		g.lacks[feature.Steering] = feature.ErrDisabled
	} else if err := steer(g.Sockets[0].fd, c.Sockets); err != nil {
		g.lacks[feature.Steering] = err
	}
	return g, nil
}

func openOffload(c Config, i int, can abilities) (*Offload, error) {
	fd, sendFD, err := c.openPair(i)
	if err != nil {
		return nil, err
	}
	s := &Offload{fd: fd, trains: newTrains(maxTrains, can.segments)}
	s.sender = newSender(sendFD, !c.Bind.Addr().Is4(), can.lacks[feature.GSO] == nil)
	s.receiver = newReceiver(fd)
	if can.lacks[feature.GRO] == nil {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil {
			return nil, errors.Join(fmt.Errorf("set UDP_GRO: %w", err), s.Close())
		}
	}
	return s, nil
}

// steer has the kernel choose the socket of the group by the inner flow. One of its sockets speaks for all.
func steer(fd, sockets int) error {
	program, err := encap.FlowProgram(sockets)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, 0, len(program))
	for _, i := range program {
		filter = append(filter, unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	if err != nil {
		return fmt.Errorf("attach SO_ATTACH_REUSEPORT_CBPF: %w", err)
	}
	return nil
}

// FD returns the descriptor to poll for what is received; it stays the socket's own.
func (s *Offload) FD() int { return s.fd }

// SendFD returns the descriptor to poll for room to send.
func (s *Offload) SendFD() int { return s.sender.fd }

// Reserve returns memory for the next datagram of the lane, n bytes, which the caller fills before its next call
// here. It returns nil when a Flush must come first.
func (s *Offload) Reserve(lane TxKey, n int) []byte { return s.trains.reserve(lane, n) }

// Flush sends what was reserved, in order, and tells failed of what the kernel refuses. It returns false if the
// kernel's buffer is full: the rest is kept, and the caller polls for room and calls again before it reserves
// more.
func (s *Offload) Flush(failed UndeliveredFunc) bool {
	if s.trains.n == 0 {
		return true
	}
	if !s.sender.run(&s.trains, failed) {
		return false
	}
	s.trains.reset()
	return true
}

// Send sends one datagram at once, past what is reserved, in outer fragments if the path carries no more.
func (s *Offload) Send(to *Destination, datagram []byte) error {
	return sendOne(s.sender.fd, to, datagram)
}

// sendOne allows outer fragments for one datagram.
func sendOne(fd int, to *Destination, datagram []byte) (err error) {
	v4 := to.Addr.Addr().Is4()
	if err := discoverPathMTU(fd, v4, unix.IP_PMTUDISC_DONT); err != nil {
		return fmt.Errorf("allow outer fragments: %w", err)
	}
	defer func() { err = errors.Join(err, discoverPathMTU(fd, v4, unix.IP_PMTUDISC_DO)) }()
	if err := unix.Sendto(fd, datagram, unix.MSG_DONTWAIT, sockaddr(to.Addr)); err != nil {
		return fmt.Errorf("send to %s: %w", to.Addr, err)
	}
	to.sent(1, len(datagram))
	return nil
}

// Overflows returns how many messages the kernel dropped because the receive buffer was full. It may be called by any
// goroutine until Close.
func (s *Offload) Overflows() (uint64, error) { return overflows(s.fd) }

// Close closes the socket.
func (s *Offload) Close() error { return closePair(s.fd, s.sender.fd) }

func closePair(fd, sendFD int) error {
	err := unix.Close(fd)
	if sendFD != fd {
		err = errors.Join(err, unix.Close(sendFD))
	}
	return err
}

// plainAge is how long trains to a destination go out one by one after GSO has failed on its path. The cause may
// go away (a route moved to another device, a policy removed), and a further failure costs one replay.
const plainAge = time.Minute
