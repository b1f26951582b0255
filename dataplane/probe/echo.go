package probe

import (
	"encoding/binary"

	"weft/encap/checksum"
)

// ICMP types (RFC 792, RFC 4443).
const (
	echoReply4, echoRequest4 = 0, 8
	echoReply6, echoRequest6 = 129, 128
)

// Sizes in bytes.
const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	icmpHeaderLen = 8
	// messageLen is the ICMP header, the nonce and the number: the shortest message.
	messageLen = icmpHeaderLen + 8 + 8
)

// nonce tells the echoes of one process from those of others. It is random, so that a host that
// does not see the echoes cannot forge replies.
type nonce uint64

// putEcho makes msg an echo request. The kernel computes the checksum of ICMPv6.
func (n nonce) putEcho(msg []byte, number uint64, v6 bool) {
	clear(msg)
	msg[0] = echoRequest4
	if v6 {
		msg[0] = echoRequest6
	}
	binary.BigEndian.PutUint16(msg[4:], uint16(n))
	binary.BigEndian.PutUint16(msg[6:], uint16(number))
	binary.BigEndian.PutUint64(msg[8:], uint64(n))
	binary.BigEndian.PutUint64(msg[16:], number)
	if !v6 {
		binary.BigEndian.PutUint16(msg[2:], ^checksum.Sum(msg, 0))
	}
}

// parseReply returns the number of the echo that the ICMP message answers; ok is false if it is not
// a reply to an echo of this process. The kernel has verified the checksum.
func (n nonce) parseReply(msg []byte, v6 bool) (number uint64, ok bool) {
	if v6 {
		return n.parse(msg, echoReply6)
	}
	return n.parse(msg, echoReply4)
}

// parseQuoted is parseReply for the request in an ICMP error, which may be truncated.
func (n nonce) parseQuoted(msg []byte, v6 bool) (number uint64, ok bool) {
	if v6 {
		return n.parse(msg, echoRequest6)
	}
	return n.parse(msg, echoRequest4)
}

func (n nonce) parse(msg []byte, typ uint8) (number uint64, ok bool) {
	if len(msg) < messageLen || msg[0] != typ || msg[1] != 0 ||
		binary.BigEndian.Uint64(msg[8:]) != uint64(n) {
		return 0, false
	}
	return binary.BigEndian.Uint64(msg[16:]), true
}

// payload4 returns the ICMP message of an IPv4 packet; ok is false if the packet is malformed.
func payload4(packet []byte) (msg []byte, ok bool) {
	if len(packet) < ipv4HeaderLen {
		return nil, false
	}
	header := int(packet[0]&0x0f) * 4
	if packet[0]>>4 != 4 || header < ipv4HeaderLen || header > len(packet) {
		return nil, false
	}
	return packet[header:], true
}
