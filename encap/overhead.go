package encap

// Overhead of each encapsulation in bytes. The MTU of a device is the MTU of its underlay less
// this.
const (
	// OverheadUDP4 is an outer IPv4 header (20, RFC 791) and a UDP header (8, RFC 768).
	OverheadUDP4 = ipv4HeaderLen + udpHeaderLen
	// OverheadUDP6 is an outer IPv6 header (40, RFC 8200) and a UDP header (8).
	OverheadUDP6 = ipv6HeaderLen + udpHeaderLen
	// OverheadVXLAN4 is an inner Ethernet header (14), VXLAN (8, RFC 7348 section 5), UDP (8) and
	// IPv4 (20).
	OverheadVXLAN4 = ethernetHeaderLen + vxlanHeaderLen + OverheadUDP4
	// OverheadVXLAN6 is the same with an outer IPv6 header.
	OverheadVXLAN6 = ethernetHeaderLen + vxlanHeaderLen + OverheadUDP6
	// OverheadIPIP is one outer IPv4 header (RFC 2003).
	OverheadIPIP = ipv4HeaderLen
	// OverheadWireGuard is the largest overhead of WireGuard: IPv6 (40), UDP (8), its data header
	// (16) and the authentication tag (16) (WireGuard paper, section 5.4.6). It is used for IPv4
	// too, so that one device can have peers of both families.
	OverheadWireGuard = OverheadUDP6 + 16 + 16
	// OverheadESP4 is flannel's: an outer IPv4 header (20), an ESP header (8, RFC 4303 section 2),
	// an initialization vector (16, AES-CBC), up to 15 bytes of padding, the trailer (2) and an
	// integrity check value (16, SHA-256). The default proposal, AES-GCM, has 57 to 60 bytes.
	OverheadESP4 = ipv4HeaderLen + 8 + 16 + 15 + 2 + 16
	// OverheadESP6 is the same with an outer IPv6 header.
	OverheadESP6 = ipv6HeaderLen + 8 + 16 + 15 + 2 + 16
	// OverheadUDPEncap is the UDP header of ESP in UDP (8, RFC 3948 section 2.1).
	OverheadUDPEncap = udpHeaderLen
)

// Largest UDP payload in bytes: 65,535 less the headers that the 16-bit length field includes.
const (
	MaxUDPPayload4 = 65535 - OverheadUDP4 // the IPv4 total length includes the header (RFC 791)
	MaxUDPPayload6 = 65535 - udpHeaderLen // the IPv6 payload length does not (RFC 8200)
)

const (
	ethernetHeaderLen = 14
	vxlanHeaderLen    = 8
	ipv4HeaderLen     = 20
	ipv6HeaderLen     = 40
	udpHeaderLen      = 8
)

// MinMTU4 and MinMTU6 are the smallest link MTUs of each family (RFC 791, RFC 8200 section 5).
const (
	MinMTU4 = 68
	MinMTU6 = 1280
)
