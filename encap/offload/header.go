// Package offload is the arithmetic of segmentation offload on a TUN with IFF_VNET_HDR: the virtio header
// before each frame, cutting one large frame into equal segments ([Splitter]), and joining segments into large
// frames again ([Merger]).
//
// A frame is what one read or write of the TUN moves, without the virtio header: one IPv4 or IPv6 packet, which
// may be up to 64 KiB long and stand for many. A segment is one packet cut out of it, or to be joined into it.
//
// Out of scope: descriptors, and the decision where a packet goes. Nothing here allocates after construction.
package offload

import (
	"encoding/binary"
	"errors"
)

// HeaderLen is the size in bytes of struct virtio_net_hdr, the default of TUNSETVNETHDRSZ.
const HeaderLen = 10

// Flags of a Header (include/uapi/linux/virtio_net.h).
const (
	// NeedsChecksum: the checksum at ChecksumStart+ChecksumOffset holds the pseudo-header's sum only; whoever
	// reads the frame has to finish it over everything from ChecksumStart on.
	NeedsChecksum = 1
	// DataValid: the checksum was verified. A TUN ignores it on frames that are written.
	DataValid = 2
)

// GSOType says how a frame is to be cut (include/uapi/linux/virtio_net.h, VIRTIO_NET_HDR_GSO_*).
type GSOType uint8

const (
	GSONone  GSOType = 0 // a single packet
	GSOTCPv4 GSOType = 1 // TSO4
	GSOTCPv6 GSOType = 4 // TSO6
	GSOUDP   GSOType = 5 // UDP_L4 (USO): datagrams over IPv4 or IPv6. UFO (3), which is fragments, is not this
	// GSOECN may be set besides a TCP type: CWR belongs to the first segment only (RFC 3168 section 6.1.2).
	// Without it a CWR flag is part of Accurate ECN's counter (RFC 9768) and belongs to every segment.
	GSOECN GSOType = 0x80
)

// Header is struct virtio_net_hdr: what has to be done to the frame behind it. Its zero value is a frame that
// is complete as it is.
type Header struct {
	Flags          uint8
	GSO            GSOType
	HeaderLen      uint16 // bytes of all headers of the frame; what the kernel gives is a hint only
	SegmentSize    uint16 // payload bytes of each segment but the last, which may be shorter (gso_size)
	ChecksumStart  uint16 // where the checksummed bytes begin: the TCP or UDP header
	ChecksumOffset uint16 // the checksum's place, counted from ChecksumStart
}

// What can be wrong with a frame or its header. The functions here return these very values.
var (
	ErrShortHeader    = errors.New("shorter than a virtio header")
	ErrGSOType        = errors.New("unknown GSO type")
	ErrIPVersion      = errors.New("IP version does not fit the GSO type")
	ErrShortFrame     = errors.New("frame ends within its headers")
	ErrLength         = errors.New("length field and frame length differ")
	ErrSegmentSize    = errors.New("GSO frame without a segment size")
	ErrNoChecksum     = errors.New("GSO frame without NEEDS_CSUM")
	ErrChecksumOffset = errors.New("checksum place is not that of the upper-layer header")
	ErrExtension      = errors.New("IPv6 extension header that cannot stand in a GSO frame")
	ErrFragment       = errors.New("GSO frame is a fragment")
)

// DecodeHeader reads a Header from the start of b. Fields are in the machine's byte order, which is what a TUN
// uses unless TUNSETVNETLE or TUNSETVNETBE was asked for. The only error is ErrShortHeader.
func DecodeHeader(b []byte) (Header, error) {
	if len(b) < HeaderLen {
		return Header{}, ErrShortHeader
	}
	return Header{
		Flags:          b[0],
		GSO:            GSOType(b[1]),
		HeaderLen:      binary.NativeEndian.Uint16(b[2:]),
		SegmentSize:    binary.NativeEndian.Uint16(b[4:]),
		ChecksumStart:  binary.NativeEndian.Uint16(b[6:]),
		ChecksumOffset: binary.NativeEndian.Uint16(b[8:]),
	}, nil
}

// Encode writes the header to the first HeaderLen bytes of b, in the machine's byte order.
func (h Header) Encode(b []byte) {
	_ = b[HeaderLen-1]
	b[0] = h.Flags
	b[1] = uint8(h.GSO)
	binary.NativeEndian.PutUint16(b[2:], h.HeaderLen)
	binary.NativeEndian.PutUint16(b[4:], h.SegmentSize)
	binary.NativeEndian.PutUint16(b[6:], h.ChecksumStart)
	binary.NativeEndian.PutUint16(b[8:], h.ChecksumOffset)
}

// Segments is the number of packets that a frame of n bytes with this header of a Merger's stands for. What comes from a
// TUN has a HeaderLen that is a hint only: there Split tells.
func (h Header) Segments(n int) int {
	if h.GSO == GSONone || h.SegmentSize == 0 || n <= int(h.HeaderLen) {
		return 1
	}
	return (n - int(h.HeaderLen) + int(h.SegmentSize) - 1) / int(h.SegmentSize)
}
