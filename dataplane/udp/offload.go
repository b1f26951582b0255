package udp

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
	"weft/encap"
)

// Offload is a socket that sends and receives trains of datagrams with UDP_SEGMENT and UDP_GRO, by
// raw sendmmsg and recvmmsg. All its memory is allocated when it is opened: 4 MiB for sending, of
// which bulk traffic uses 256 KiB, and 1 MiB for receiving.
type Offload struct {
	fd     int
	trains trains
	sender sender
	receiver
}

// OpenOffload opens a group of offload sockets. Features that the kernel does not have, or that do
// not work, are not used: see Group.Features.
func OpenOffload(c Config) (*Group[*Offload], error) {
	if err := c.checkBindable(); err != nil {
		return nil, err
	}
	probed := probe(c)
	g := &Group[*Offload]{unavailable: probed.unavailable}
	for i := range c.Sockets {
		s, err := openOffload(c, i, probed)
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
		g.Sockets = append(g.Sockets, s)
		if err := c.setBuffers(s.FD(), s.SendFD()); err != nil {
			g.unavailable[feature.Buffers] = err
		}
	}
	if c.NoSteering {
		g.unavailable[feature.Steering] = feature.ErrDisabled
	} else if err := steer(g.Sockets[0].fd, c.Sockets); err != nil {
		g.unavailable[feature.Steering] = err
	}
	return g, nil
}

func openOffload(c Config, i int, probed probeResult) (*Offload, error) {
	fd, sendFD, err := c.openPair(i)
	if err != nil {
		return nil, err
	}
	s := &Offload{fd: fd, trains: newTrains(maxTrains, probed.segments)}
	s.sender = newSender(sendFD, !c.Bind.Addr().Is4(), probed.unavailable[feature.GSO] == nil)
	s.receiver = newReceiver(fd)
	if probed.unavailable[feature.GRO] == nil {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil {
			return nil, errors.Join(fmt.Errorf("set UDP_GRO: %w", err), s.Close())
		}
	}
	return s, nil
}

// steer attaches a program that selects the socket of the group by the inner flow. It applies to
// the whole group of the socket fd.
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

// FD returns the descriptor to poll for received messages. The socket keeps ownership.
func (s *Offload) FD() int { return s.fd }

// SendFD returns the descriptor to poll for free space in the send buffer.
func (s *Offload) SendFD() int { return s.sender.fd }

// Reserve returns n bytes of memory for the next datagram of key. The caller must fill it before it
// calls another method. Reserve returns nil if a Flush is required first.
func (s *Offload) Reserve(key TxKey, n int) []byte { return s.trains.reserve(key, n) }

// Flush sends the reserved datagrams in order, and calls failed for each one that the kernel
// refuses. It returns false if the send buffer is full. The rest is kept: the caller must poll
// SendFD and call Flush again before the next Reserve.
func (s *Offload) Flush(failed UndeliveredFunc) bool {
	if s.trains.n == 0 {
		return true
	}
	if !s.sender.sendAll(&s.trains, failed) {
		return false
	}
	s.trains.reset()
	return true
}

// Send sends one datagram immediately, before the reserved ones. It may be fragmented.
func (s *Offload) Send(to *Destination, datagram []byte) error {
	return sendOne(s.sender.fd, to, datagram)
}

// sendOne sends one datagram and allows fragmentation of the outer packet.
func sendOne(fd int, to *Destination, datagram []byte) (err error) {
	v4 := to.Addr.Addr().Is4()
	if err := setMTUDiscovery(fd, v4, unix.IP_PMTUDISC_DONT); err != nil {
		return fmt.Errorf("allow outer fragments: %w", err)
	}
	defer func() {
		if restoreErr := setMTUDiscovery(fd, v4, unix.IP_PMTUDISC_DO); restoreErr != nil {
			err = errors.Join(err, restoreErr)
		}
	}()
	if err := unix.Sendto(fd, datagram, unix.MSG_DONTWAIT, sockaddr(to.Addr)); err != nil {
		return fmt.Errorf("send to %s: %w", to.Addr, err)
	}
	to.count(1, len(datagram))
	return nil
}

// Overflows returns the number of messages that the kernel dropped because the receive buffer was
// full. It may be called by any goroutine until Close.
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

// gsoRetryAfter is the time for which datagrams to a destination are sent one by one after GSO
// failed on its path. The cause may be temporary (a route through another device, an IPsec policy),
// and another failure costs only one replay.
const gsoRetryAfter = time.Minute
