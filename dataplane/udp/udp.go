// Package udp sends and receives the datagrams of the overlay.
//
// A group of sockets, one per worker, shares one address and port. A socket is not safe for
// concurrent use, except for Overflows. Close may be called by another goroutine once its owner has
// stopped. No call blocks: the owner polls FD together with its other descriptors.
//
// Terms of the offload socket, from small to large:
//
//	datagram   one UDP payload: one inner packet
//	key        destination node, TOS and shard (TxKey); order is kept within a key
//	train      datagrams of one key and one size, contiguous in memory; the last may be shorter.
//	           The kernel segments it as late as possible (UDP_SEGMENT). If that does not work, its
//	           datagrams are sent one by one
//	message    one entry of sendmmsg or recvmmsg: a train or a datagram
//	flush      all trains, sent by one sendmmsg
package udp

import (
	"encoding/binary"
	"errors"
	"iter"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Config configures a group of sockets.
type Config struct {
	Bind       netip.AddrPort // address and port shared by all sockets of the group
	Sockets    int            // number of sockets, at least 1
	SourcePort uint16         // the i-th socket sends from SourcePort+i; 0: the port of Bind
	Buffer     int            // receive and send buffer size in bytes; 0 means the kernel's default
	ReadTOS    bool           // set Message.TOS
	ReusePorts bool           // allow ports in use by a group of this process that will be closed
	NoGSO      bool           // OpenOffload: send one datagram per message
	NoGRO      bool           // OpenOffload: receive one datagram per message
	NoSteering bool           // OpenOffload: select sockets by the outer addresses and ports
	// Inherited are sockets on Bind that another process kept open, to be used in place of new
	// ones. They must be usable: see Inheritable. The group owns them.
	Inherited []int
}

// Destination is a node to send to. It is shared by all workers and must not be copied.
type Destination struct {
	Addr    netip.AddrPort
	Packets atomic.Uint64 // datagrams that the kernel accepted
	Bytes   atomic.Uint64 // payload bytes of those

	ip          [16]byte                  // Addr as IPv6 or IPv4-mapped address
	rawAddr     [28]byte                  // Addr as struct sockaddr_in or sockaddr_in6
	rawAddrLen  uint32                    // length of rawAddr
	gsoOffUntil atomic.Pointer[time.Time] // GSO failed on this path: send one by one until then

	lastErrno   atomic.Uint32 // of the last refused datagram; 0: none
	lastRefused atomic.Int64  // its time in Unix nanoseconds
}

// Refused records that the kernel refused a datagram because of err.
func (d *Destination) Refused(err error, now time.Time) {
	d.lastErrno.Store(uint32(errnoOf(err)))
	d.lastRefused.Store(now.UnixNano())
}

// LastError returns when the kernel refused a datagram last, and for which reason; nil if it has
// refused none. If two are refused at the same time, it may mix them up.
func (d *Destination) LastError() (at time.Time, err error) {
	errno := unix.Errno(d.lastErrno.Load())
	if errno == 0 {
		return time.Time{}, nil
	}
	return time.Unix(0, d.lastRefused.Load()), errno
}

// errnoOf returns the system call's error in err, without allocating. An error without one is EIO.
func errnoOf(err error) unix.Errno {
	for ; err != nil; err = errors.Unwrap(err) {
		if errno, ok := err.(unix.Errno); ok {
			return errno
		}
	}
	return unix.EIO
}

// NewDestination returns the Destination for the UDP address of a node.
func NewDestination(addr netip.AddrPort) *Destination {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	d := &Destination{Addr: addr, ip: addr.Addr().As16()}
	if addr.Addr().Is4() {
		binary.NativeEndian.PutUint16(d.rawAddr[:], unix.AF_INET)
		copy(d.rawAddr[4:], d.ip[12:])
		d.rawAddrLen = unix.SizeofSockaddrInet4
	} else {
		binary.NativeEndian.PutUint16(d.rawAddr[:], unix.AF_INET6)
		copy(d.rawAddr[8:], d.ip[:])
		d.rawAddrLen = unix.SizeofSockaddrInet6
	}
	binary.BigEndian.PutUint16(d.rawAddr[2:], addr.Port())
	return d
}

// count adds datagrams accepted by the kernel to the counters.
func (d *Destination) count(datagrams, bytes int) {
	d.Packets.Add(uint64(datagrams))
	d.Bytes.Add(uint64(bytes))
}

// TxKey identifies datagrams that may share a train. Datagrams of one key are sent in the order in
// which they were reserved. Those of different keys may be reordered.
type TxKey struct {
	To    *Destination
	TOS   uint8 // DSCP and ECN of the outer header
	Shard uint8 // flow shard; datagrams of different shards are never in one train
}

// Message is one received message: a train of datagrams from one sender.
type Message struct {
	From      netip.AddrPort
	Data      []byte // contiguous datagrams; the caller may also use the capacity after them
	Segment   int    // size of each datagram in bytes; the last may be shorter
	TOS       uint8  // of the outer header, if Config.ReadTOS is set
	Truncated bool   // the end or the segment size is lost
}

// Datagrams returns the number of datagrams in the message. An empty message is one empty datagram.
func (m *Message) Datagrams() int {
	if m.Segment <= 0 || len(m.Data) <= m.Segment {
		return 1
	}
	return (len(m.Data) + m.Segment - 1) / m.Segment
}

// All returns an iterator over the datagrams of the message.
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

// UndeliveredFunc is called for each datagram that the kernel refused, before the sending call
// returns. The datagram is valid only during the call.
type UndeliveredFunc func(to *Destination, datagram []byte, err error)

// rawAddrPort converts a sockaddr_in or sockaddr_in6 written by the kernel to an AddrPort.
func rawAddrPort(name *unix.RawSockaddrInet6) netip.AddrPort {
	switch name.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), ntohs(v4.Port))
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(name.Addr).Unmap(), ntohs(name.Port))
	}
	return netip.AddrPort{}
}

// ntohs converts a port from network to host byte order.
func ntohs(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}
