package offload

// Sizes and places of header fields that are changed or compared here, in bytes.
const (
	ipv4HeaderLen = 20 // without options (RFC 791 section 3.1)
	ipv6HeaderLen = 40 // RFC 8200 section 3
	tcpHeaderLen  = 20 // without options (RFC 9293 section 3.1)
	udpHeaderLen  = 8  // RFC 768

	ipv4Length   = 2 // total length
	ipv4ID       = 4
	ipv4Fragment = 6 // flags and fragment offset
	ipv4TTL      = 8
	ipv4Proto    = 9
	ipv4Checksum = 10
	ipv4Addrs    = 12 // source, then destination

	ipv6Length = 4 // payload length
	ipv6Next   = 6
	ipv6Addrs  = 8 // source, then destination

	tcpSeq      = 4
	tcpAck      = 8
	tcpOffset   = 12 // data offset in the upper half, in units of 4; reserved bits and AE below
	tcpFlags    = 13
	tcpWindow   = 14
	tcpChecksum = 16
	tcpUrgent   = 18

	udpLength   = 4
	udpChecksum = 6
)

// Bits of IPv4's flags and fragment offset.
const (
	ipv4DF       = 0x4000
	ipv4IsPiece  = 0x3fff // more fragments, or an offset
	ipv4Reserved = 0x8000
)

// TCP flags (RFC 9293 section 3.1).
const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpACK = 0x10
	tcpECE = 0x40
	tcpCWR = 0x80
)

// Protocol numbers (IANA), and the IPv6 extension headers that may stand before TCP or UDP in a packet that is
// not a fragment (RFC 8200 section 4.1).
const (
	protoTCP       = 6
	protoUDP       = 17
	extHopByHop    = 0
	extRouting     = 43
	extDestination = 60
)

// maxPacket is the largest IP packet in bytes that is handled here: what IPv4's length field can say. IPv6 could
// say 40 more, without a jumbogram; nobody misses them.
const maxPacket = 65535
