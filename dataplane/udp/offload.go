package udp

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"weft/encap"
)

// Feature is an ability of a socket that not every kernel has, by its name in status and metrics.
type Feature string

// All features of a socket.
const (
	FeatureGSO Feature = "udp-gso" // many datagrams in one message to the kernel
	FeatureGRO Feature = "udp-gro" // and from it

	// FeatureSteering gives each inner flow to one socket of the group, the same in both directions, instead
	// of each pair of nodes.
	FeatureSteering Feature = "flow-steering"
)

// errSwitchedOff is the reason for which a socket is without a feature that its Config refused.
var errSwitchedOff = errors.New("switched off")

// Offload is a socket that moves trains of datagrams with UDP_SEGMENT and UDP_GRO through raw sendmmsg and
// recvmmsg, out of and into memory that is all allocated when it is opened: 4 MiB to send, of which bulk traffic
// touches one, and 1 MiB to receive.
type Offload struct {
	fd     int
	trains trains
	sender sender
	receiver
}

// Group is a group of sockets that share one port.
type Group struct {
	Sockets []*Offload
	lacks   map[Feature]error
}

// Features returns all features; each with the reason for which the group is without it, nil if it has it.
func (g *Group) Features() map[Feature]error {
	all := make(map[Feature]error, len(g.lacks))
	for _, f := range []Feature{FeatureGSO, FeatureGRO, FeatureSteering} {
		all[f] = g.lacks[f]
	}
	return all
}

// OpenOffload opens a group of offload sockets. What the kernel cannot do is left out: see Features.
func OpenOffload(c Config) (*Group, error) {
	if !c.Takeover {
		if err := claim(c.Bind); err != nil {
			return nil, err
		}
	}
	g := &Group{lacks: make(map[Feature]error)}
	if c.NoGSO {
		g.lacks[FeatureGSO] = errSwitchedOff
	}
	if c.NoGRO {
		g.lacks[FeatureGRO] = errSwitchedOff
	}
	for range c.Sockets {
		s, err := g.open(c)
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
		g.Sockets = append(g.Sockets, s)
	}
	if c.NoSteering {
		g.lacks[FeatureSteering] = errSwitchedOff
	} else if err := steer(g.Sockets[0].fd, c.Sockets); err != nil {
		g.lacks[FeatureSteering] = err
	}
	return g, nil
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

// Close closes all sockets of the group.
func (g *Group) Close() error {
	var errs []error
	for _, s := range g.Sockets {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

func (g *Group) open(c Config) (*Offload, error) {
	fd, err := open(c)
	if err != nil {
		return nil, err
	}
	s := &Offload{fd: fd, trains: newTrains()}
	if g.lacks[FeatureGSO] == nil {
		// 0 changes nothing: it only asks whether the kernel knows the option (Linux 4.18).
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0); err != nil {
			g.lacks[FeatureGSO] = fmt.Errorf("set UDP_SEGMENT: %w", err)
		}
	}
	if g.lacks[FeatureGRO] == nil {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil {
			g.lacks[FeatureGRO] = fmt.Errorf("set UDP_GRO: %w", err)
		}
	}
	s.sender = newSender(fd, !c.Bind.Addr().Is4(), g.lacks[FeatureGSO] == nil)
	s.receiver = newReceiver(fd)
	return s, nil
}

// FD returns the descriptor to poll; it stays the socket's own.
func (s *Offload) FD() int { return s.fd }

// Reserve returns memory for the next datagram of the lane, n bytes, which the caller fills before its next call
// here. It returns nil when a Flush must come first.
func (s *Offload) Reserve(lane Lane, n int) []byte { return s.trains.reserve(lane, n) }

// Flush sends what was reserved, in order, and tells failed of what the kernel refuses. It returns false if the
// kernel's buffer is full: the rest is kept, and the caller polls for room and calls again before it reserves
// more.
func (s *Offload) Flush(failed Undelivered) bool {
	if s.trains.n == 0 {
		return true
	}
	if !s.sender.run(&s.trains, failed) {
		return false
	}
	s.trains.reset()
	return true
}

// Send sends one datagram at once, past what is reserved.
func (s *Offload) Send(to *Destination, datagram []byte) error {
	return sendOne(s.fd, to, datagram)
}

func sendOne(fd int, to *Destination, datagram []byte) error {
	if err := unix.Sendto(fd, datagram, unix.MSG_DONTWAIT, sockaddr(to.Addr)); err != nil {
		return fmt.Errorf("send to %s: %w", to.Addr, err)
	}
	to.sent(1, len(datagram))
	return nil
}

// Overflows returns how many datagrams the kernel dropped because the receive buffer was full. It may be called
// by any goroutine until Close.
func (s *Offload) Overflows() (uint64, error) { return overflows(s.fd) }

// Close closes the socket.
func (s *Offload) Close() error { return unix.Close(s.fd) }

// plainAge is how long trains to a destination go out one by one after GSO has failed on its path. The cause may
// go away (a route moved to another device, a policy removed), and a further failure costs one replay.
const plainAge = time.Minute
