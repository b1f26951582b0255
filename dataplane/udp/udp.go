// Package udp sends and receives the datagrams of the overlay.
//
// A group of sockets, one a worker, shares one address and port. All methods of a socket but Close and
// Overflows belong to the goroutine that owns it. No call blocks: the owner polls FD together with its other
// descriptors.
package udp

import (
	"net/netip"
	"sync/atomic"
)

// Config is what opening a group of sockets needs to know.
type Config struct {
	Bind     netip.AddrPort // the address and port that all sockets of the group share
	Sockets  int            // how many, at least 1
	Buffer   int            // wanted size of each socket's receive and send buffer in bytes; 0 leaves the kernel's default
	Takeover bool           // the port may be in use by a group of this process that is about to be closed
}

// Destination is a node to send to. It is shared by all workers and must not be copied.
type Destination struct {
	Addr    netip.AddrPort
	Packets atomic.Uint64 // datagrams that the kernel accepted
	Bytes   atomic.Uint64 // their payload

	ip [16]byte // Addr's address, IPv4 mapped into IPv6
}

// NewDestination returns the destination with the address of a node's socket.
func NewDestination(addr netip.AddrPort) *Destination {
	return &Destination{Addr: addr, ip: addr.Addr().As16()}
}

// Message is what one receive operation gave: a train of datagrams of one sender.
type Message struct {
	From    netip.AddrPort
	Data    []byte // the datagrams, one after the other
	Segment int    // size of each datagram; the last may be shorter
}

// Undelivered is told of each datagram that the kernel refused, while the sending call runs. The datagram is
// borrowed until it returns.
type Undelivered func(to *Destination, datagram []byte, err error)

// Datagrams returns how many datagrams the message holds; an empty datagram is one.
func (m *Message) Datagrams() int {
	if m.Segment <= 0 || len(m.Data) <= m.Segment {
		return 1
	}
	return (len(m.Data) + m.Segment - 1) / m.Segment
}
