// Package udp sends and receives the datagrams of the overlay.
//
// A group of sockets, one a worker, shares one address and port. All methods of a socket but Close and
// Overflows belong to the goroutine that owns it. No call blocks: the owner polls FD together with its other
// descriptors.
//
// Words of the offload socket, from small to large:
//
//	datagram   one UDP payload: one inner packet
//	lane       where a datagram goes and with what: node, TOS, share of the flows. Order is kept within one
//	train      datagrams of one lane and one size, contiguous in memory; only the last may be shorter. The kernel
//	           cuts it up as late as it can (UDP_SEGMENT), or it goes out one by one where that does not work
//	message    what one entry of sendmmsg or recvmmsg carries: a train, or a datagram
//	flush      all trains, in one sendmmsg
package udp

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Config is what opening a group of sockets needs to know.
type Config struct {
	Bind       netip.AddrPort // the address and port that all sockets of the group share
	Sockets    int            // how many, at least 1
	SourcePort uint16         // the i-th socket sends from this port plus i; 0 is from that of Bind
	Buffer     int            // wanted size of each socket's receive and send buffer in bytes; 0 leaves the kernel's default
	ReadTOS    bool           // Message.TOS is wanted
	ReusePorts bool           // the ports may be in use by a group of this process that is about to be closed
	NoGSO      bool           // OpenOffload: every datagram is a message of its own
	NoGRO      bool           // OpenOffload: the same for what is received
	NoSteering bool           // OpenOffload: the kernel chooses the socket by the outer addresses and ports
}

// Destination is a node to send to. It is shared by all workers and must not be copied.
type Destination struct {
	Addr    netip.AddrPort
	Packets atomic.Uint64 // datagrams that the kernel accepted
	Bytes   atomic.Uint64 // their payload

	ip      [16]byte                  // Addr's address, IPv4 mapped into IPv6
	name    [28]byte                  // Addr as the kernel's struct sockaddr_in or sockaddr_in6
	nameLen uint32                    // of name
	plain   atomic.Pointer[time.Time] // until then trains are sent one by one: GSO failed on this path; nil: never
}

// NewDestination returns the destination with the address of a node's socket.
func NewDestination(addr netip.AddrPort) *Destination {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	d := &Destination{Addr: addr, ip: addr.Addr().As16()}
	if addr.Addr().Is4() {
		binary.NativeEndian.PutUint16(d.name[:], unix.AF_INET)
		copy(d.name[4:], d.ip[12:])
		d.nameLen = unix.SizeofSockaddrInet4
	} else {
		binary.NativeEndian.PutUint16(d.name[:], unix.AF_INET6)
		copy(d.name[8:], d.ip[:])
		d.nameLen = unix.SizeofSockaddrInet6
	}
	binary.BigEndian.PutUint16(d.name[2:], addr.Port())
	return d
}

// sent counts datagrams that the kernel has accepted.
func (d *Destination) sent(datagrams, bytes int) {
	d.Packets.Add(uint64(datagrams))
	d.Bytes.Add(uint64(bytes))
}

// TxKey is where a datagram goes and with what. Datagrams of one lane arrive in the order in which they were
// reserved, as far as the network between keeps it; those of different lanes may overtake each other.
type TxKey struct {
	To    *Destination
	TOS   uint8 // DSCP and ECN of the outer header
	Shard uint8 // flows of different shares never travel in one train
}

// Message is what one receive operation gave: a train of datagrams of one sender.
type Message struct {
	From      netip.AddrPort
	Data      []byte // the datagrams, one after the other; the capacity behind them is the receiver's to use, too
	Segment   int    // size of each datagram; the last may be shorter
	TOS       uint8  // of the outer headers, if Config.ReadTOS asked for it
	Truncated bool   // the end is lost, or where to cut is
}

// Datagrams returns how many datagrams the message holds; an empty datagram is one.
func (m *Message) Datagrams() int {
	if m.Segment <= 0 || len(m.Data) <= m.Segment {
		return 1
	}
	return (len(m.Data) + m.Segment - 1) / m.Segment
}

// All gives the datagrams of the message one by one.
func (m *Message) All() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for i := range m.Datagrams() {
			from := i * m.Segment
			if !yield(m.Data[from:min(from+m.Segment, len(m.Data))]) {
				return
			}
		}
	}
}

// UndeliveredFunc is told of each datagram that the kernel refused, while the sending call runs. The datagram is
// borrowed until it returns.
type UndeliveredFunc func(to *Destination, datagram []byte, err error)

// addrPort reads a sockaddr_in or sockaddr_in6 that the kernel wrote.
func addrPort(name *unix.RawSockaddrInet6) netip.AddrPort {
	switch name.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), ntohs(v4.Port))
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(name.Addr).Unmap(), ntohs(name.Port))
	}
	return netip.AddrPort{}
}

// ntohs reads a port that lies in memory in network byte order.
func ntohs(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}
