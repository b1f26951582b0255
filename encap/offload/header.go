package offload

import (
	"encoding/binary"
	"errors"
)

// HeaderLen is the size in bytes of struct virtio_net_hdr, the default of TUNSETVNETHDRSZ.
const HeaderLen = 10

// Flags of a Header (include/uapi/linux/virtio_net.h).
const (
	// NeedsChecksum means that the checksum at ChecksumStart+ChecksumOffset is partial: it holds
	// only the sum of the pseudo-header. The reader must complete it over all bytes from
	// ChecksumStart.
	NeedsChecksum = 1
	// DataValid means that the checksum was verified. The TUN driver ignores it on written frames.
	DataValid = 2
)

// GSOType is the segmentation type of a frame (include/uapi/linux/virtio_net.h,
// VIRTIO_NET_HDR_GSO_*).
type GSOType uint8

const (
	GSONone  GSOType = 0 // a single packet
	GSOTCPv4 GSOType = 1 // TSO4
	GSOTCPv6 GSOType = 4 // TSO6
	GSOUDP   GSOType = 5 // UDP_L4 (USO): datagrams over IPv4 or IPv6; not UFO (3)
	// GSOECN may be combined with a TCP type: only the first segment gets CWR (RFC 3168 section
	// 6.1.2). Without it, CWR is part of the counter of Accurate ECN (RFC 9768) and is set in every
	// segment.
	GSOECN GSOType = 0x80
)

// Header is struct virtio_net_hdr, which precedes each frame. The zero value describes a single
// packet with a complete checksum.
type Header struct {
	Flags          uint8
	GSO            GSOType
	HeaderLen      uint16 // bytes of all headers; only a hint in frames from the kernel
	SegmentSize    uint16 // payload bytes per segment; the last may be shorter (gso_size)
	ChecksumStart  uint16 // first checksummed byte: the TCP or UDP header
	ChecksumOffset uint16 // offset of the checksum from ChecksumStart
}

// Errors of DecodeHeader and Split, which return them unwrapped.
var (
	ErrShortHeader    = errors.New("shorter than a virtio header")
	ErrGSOType        = errors.New("unknown GSO type")
	ErrIPVersion      = errors.New("IP version does not match the GSO type")
	ErrShortFrame     = errors.New("frame ends within its headers")
	ErrLength         = errors.New("length field and frame length differ")
	ErrSegmentSize    = errors.New("GSO frame without a segment size")
	ErrNoChecksum     = errors.New("GSO frame without NEEDS_CSUM")
	ErrChecksumOffset = errors.New("checksum offset does not match the upper-layer header")
	ErrExtension      = errors.New("IPv6 extension header not allowed in a GSO frame")
	ErrFragment       = errors.New("GSO frame is a fragment")
)

// DecodeHeader decodes a Header from the start of b. Fields are in native byte order, the default
// of a TUN without TUNSETVNETLE or TUNSETVNETBE. The only error is ErrShortHeader.
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

// Encode writes the header to the first HeaderLen bytes of b, in native byte order.
func (h Header) Encode(b []byte) {
	_ = b[HeaderLen-1]
	b[0] = h.Flags
	b[1] = uint8(h.GSO)
	binary.NativeEndian.PutUint16(b[2:], h.HeaderLen)
	binary.NativeEndian.PutUint16(b[4:], h.SegmentSize)
	binary.NativeEndian.PutUint16(b[6:], h.ChecksumStart)
	binary.NativeEndian.PutUint16(b[8:], h.ChecksumOffset)
}

// Segments returns the number of segments in a frame of n bytes with this header. It is valid only
// for headers from a Merger: in frames read from a TUN, HeaderLen is only a hint.
func (h Header) Segments(n int) int {
	if h.GSO == GSONone || h.SegmentSize == 0 || n <= int(h.HeaderLen) {
		return 1
	}
	return (n - int(h.HeaderLen) + int(h.SegmentSize) - 1) / int(h.SegmentSize)
}
