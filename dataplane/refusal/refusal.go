// Package refusal listens to the ICMP errors that other hosts send about this node's tunnel
// packets: a node whose daemon is down or whose firewall rejects the tunnel's port says so, but the
// kernel tells no socket of a tunnel about it, and the packets count as sent.
//
// It reads copies of the errors, on sockets of its own, so the packet path is not involved. Errors
// are not authenticated: they are for display only.
package refusal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Refusal is an ICMP error about a tunnel packet.
type Refusal struct {
	To     netip.Addr // destination of the packet
	From   netip.Addr // sender of the error: To itself, a router, or this host
	Reason string     // as in RFC 792 and RFC 4443: "port unreachable"
}

// Listener receives the errors of one address family.
type Listener struct {
	conn   *net.IPConn
	family family
	port   uint16
}

// family is an address family's form of ICMP.
type family struct {
	network    string // of package net
	listen     string
	filter     func(fd int) error // lets only destination unreachable through
	headerType uint8              // of destination unreachable
	version    uint8              // of the quoted IP header
	reasons    map[uint8]string   // by code
}

// families returns IPv4 and IPv6.
func families() []family {
	return []family{
		{
			network: "ip4:icmp", listen: "0.0.0.0", filter: filterICMP, headerType: 3, version: 4,
			// Code 4, fragmentation needed, is how path MTU discovery works.
			reasons: map[uint8]string{
				0: "network unreachable", 1: "host unreachable", 2: "protocol unreachable",
				3: "port unreachable", 9: "prohibited", 10: "prohibited", 13: "prohibited",
			},
		},
		{
			network: "ip6:ipv6-icmp", listen: "::", filter: filterICMPv6, headerType: 1, version: 6,
			reasons: map[uint8]string{
				0: "no route", 1: "prohibited", 3: "address unreachable", 4: "port unreachable",
				5: "source address failed policy", 6: "route rejects",
			},
		},
	}
}

// Listen opens a listener per family that this host has, for errors about UDP packets to a port, or
// about IPIP packets if port is 0. It needs CAP_NET_RAW.
func Listen(port uint16) ([]*Listener, error) {
	var all []*Listener
	for _, f := range families() {
		l, err := listen(f, port)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
			continue
		}
		if err != nil {
			for _, open := range all {
				err = errors.Join(err, open.conn.Close())
			}
			return nil, fmt.Errorf("listen to ICMP errors: %w", err)
		}
		all = append(all, l)
	}
	return all, nil
}

func listen(f family, port uint16) (*Listener, error) {
	conn, err := net.ListenIP(f.network, &net.IPAddr{IP: net.ParseIP(f.listen)})
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var optErr error
		err = raw.Control(func(fd uintptr) { optErr = f.filter(int(fd)) })
		err = errors.Join(err, os.NewSyscallError("setsockopt", optErr))
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &Listener{conn: conn, family: f, port: port}, nil
}

// icmpFilter is ICMP_FILTER of SOL_RAW (linux/icmp.h), which package unix lacks.
const icmpFilter = 1

// filterICMP blocks all types but destination unreachable; a set bit blocks.
func filterICMP(fd int) error {
	blocked := ^uint32(1 << 3)
	return unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, int(int32(blocked)))
}

func filterICMPv6(fd int) error {
	f := unix.ICMPv6Filter{}
	for i := range f.Data {
		f.Data[i] = ^uint32(0)
	}
	f.Data[0] &^= 1 << 1
	return unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &f)
}

// Run calls report for each error about a packet of the tunnel until ctx ends; then it closes the
// listener and returns nil.
func (l *Listener) Run(ctx context.Context, report func(Refusal)) error {
	stop := context.AfterFunc(ctx, func() { _ = l.conn.Close() })
	defer stop()
	buf := make([]byte, 2048) // the quoted headers are at the start
	for {
		n, from, err := l.conn.ReadFromIP(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return errors.Join(fmt.Errorf("receive ICMP errors: %w", err), l.conn.Close())
		}
		if r, ok := l.family.parse(buf[:n], l.port); ok {
			if a, ok := netip.AddrFromSlice(from.IP); ok {
				r.From = a.Unmap()
			}
			report(r)
		}
	}
}

const (
	icmpHeaderLen                  = 8
	ipv4HeaderLen, ipv6HeaderLen   = 20, 40
	protoIPIP, protoUDP, udpPortAt = 4, 17, 2
)

// parse parses an ICMP message. It reports false unless that is an error about a packet to the
// port.
func (f family) parse(msg []byte, port uint16) (Refusal, bool) {
	if len(msg) < icmpHeaderLen || msg[0] != f.headerType || f.reasons[msg[1]] == "" {
		return Refusal{}, false
	}
	to, proto, rest, ok := f.parseQuoted(msg[icmpHeaderLen:])
	switch {
	case !ok:
	case port == 0:
		ok = proto == protoIPIP
	default:
		ok = proto == protoUDP && len(rest) >= udpPortAt+2 &&
			binary.BigEndian.Uint16(rest[udpPortAt:]) == port
	}
	return Refusal{To: to, Reason: f.reasons[msg[1]]}, ok
}

// parseQuoted parses the IP header that an error quotes, and returns the bytes after it.
func (f family) parseQuoted(pkt []byte) (to netip.Addr, proto uint8, rest []byte, ok bool) {
	if len(pkt) < ipv4HeaderLen || pkt[0]>>4 != f.version {
		return netip.Addr{}, 0, nil, false
	}
	if f.version == 6 {
		if len(pkt) < ipv6HeaderLen {
			return netip.Addr{}, 0, nil, false
		}
		return netip.AddrFrom16([16]byte(pkt[24:40])), pkt[6], pkt[ipv6HeaderLen:], true
	}
	header := int(pkt[0]&0xf) * 4
	if header < ipv4HeaderLen || len(pkt) < header {
		return netip.Addr{}, 0, nil, false
	}
	return netip.AddrFrom4([4]byte(pkt[16:20])), pkt[9], pkt[header:], true
}
