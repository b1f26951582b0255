package udp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// control is a buffer for the control messages of one message: a segment size and a TOS, aligned as
// struct cmsghdr requires.
type control [8]uint64

// bytes returns the first n bytes.
func (c *control) bytes(n int) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(c)), n) }

// put writes the header of a control message at offset n, advances n past the message, and returns
// a pointer to its size bytes of data.
func (c *control) put(n *int, level, kind int32, size int) unsafe.Pointer {
	base := unsafe.Pointer(c)
	header := (*unix.Cmsghdr)(unsafe.Add(base, *n))
	header.Level, header.Type = level, kind
	header.SetLen(unix.CmsgLen(size))
	data := unsafe.Add(base, *n+unix.CmsgLen(0))
	*n += unix.CmsgSpace(size)
	return data
}

// putSegment writes the segment size of a train at offset n and returns the offset after it.
func (c *control) putSegment(n, segment int) int {
	*(*uint16)(c.put(&n, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)) = uint16(segment)
	return n
}

// tosOption is the control message that sets the TOS of outer headers.
type tosOption struct {
	level, kind int32
}

func newTOSOption(v6 bool) tosOption {
	if v6 {
		return tosOption{unix.IPPROTO_IPV6, unix.IPV6_TCLASS}
	}
	return tosOption{unix.IPPROTO_IP, unix.IP_TOS}
}

// put writes the TOS at offset n and returns the offset after it. TOS 0 is the default and needs no
// control message.
func (o tosOption) put(c *control, n int, tos uint8) int {
	if tos != 0 {
		*(*int32)(c.put(&n, o.level, o.kind, 4)) = int32(tos)
	}
	return n
}

// readControl sets the segment size and the TOS of m from the control messages b, which must be
// aligned.
func readControl(b []byte, m *Message) {
	for len(b) >= unix.SizeofCmsghdr {
		header := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		size := uint64(header.Len)
		if size < unix.SizeofCmsghdr || size > uint64(len(b)) {
			return
		}
		data := b[unix.CmsgLen(0):max(int(size), unix.CmsgLen(0))]
		switch {
		case header.Level == unix.IPPROTO_UDP && header.Type == unix.UDP_GRO && len(data) >= 4:
			// An int, unlike the uint16 of UDP_SEGMENT.
			if n := *(*int32)(unsafe.Pointer(&data[0])); n > 0 {
				m.Segment = int(n)
			}
		case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_TOS && len(data) >= 1:
			m.TOS = data[0]
		case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_TCLASS && len(data) >= 4:
			m.TOS = uint8(*(*int32)(unsafe.Pointer(&data[0])))
		}
		b = b[min(unix.CmsgSpace(len(data)), len(b)):]
	}
}
