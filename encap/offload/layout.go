package offload

// Header lengths and field offsets in bytes.
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
	tcpOffset   = 12 // upper 4 bits: data offset in units of 4; lower: reserved bits and AE
	tcpFlags    = 13
	tcpWindow   = 14
	tcpChecksum = 16
	tcpUrgent   = 18

	udpLength   = 4
	udpChecksum = 6
)

// Bits of the IPv4 flags and fragment offset field.
const (
	ipv4DF           = 0x4000
	ipv4FragmentMask = 0x3fff // more fragments, or an offset: nonzero in fragments
	ipv4Reserved     = 0x8000
)

// TCP flags (RFC 9293 section 3.1).
const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpACK = 0x10
	tcpECE = 0x40
	tcpCWR = 0x80
)

// Protocol numbers (IANA), and the IPv6 extension headers that may precede TCP or UDP in an
// unfragmented packet (RFC 8200 section 4.1).
const (
	protoTCP       = 6
	protoUDP       = 17
	extHopByHop    = 0
	extRouting     = 43
	extDestination = 60
)

// maxPacket is the size in bytes of the largest IP packet that is cut or merged: the maximum of the
// IPv4 length field. IPv6 allows 40 bytes more without a jumbogram; such packets are not merged.
const maxPacket = 65535
