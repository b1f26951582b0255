package udp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// control has room for a segment size and a TOS, aligned as the kernel's struct cmsghdr wants it.
type control [8]uint64

// bytes returns the first n bytes.
func (c *control) bytes(n int) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(c)), n) }

// put begins a control message at offset n, moves n behind it, and returns where its size bytes of data go.
func (c *control) put(n *int, level, kind int32, size int) unsafe.Pointer {
	base := unsafe.Pointer(c)
	header := (*unix.Cmsghdr)(unsafe.Add(base, *n))
	header.Level, header.Type = level, kind
	header.SetLen(unix.CmsgLen(size))
	data := unsafe.Add(base, *n+unix.CmsgLen(0))
	*n += unix.CmsgSpace(size)
	return data
}

// putSegment puts the size of a train's datagrams at offset n and returns the offset behind it.
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

// put puts the TOS at offset n and returns the offset behind it. TOS 0 is the default and needs no message.
func (o tosOption) put(c *control, n int, tos uint8) int {
	if tos != 0 {
		*(*int32)(c.put(&n, o.level, o.kind, 4)) = int32(tos)
	}
	return n
}

// readControl reads the size of the datagrams and the TOS from control messages b, which must be aligned.
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
			if n := *(*int32)(unsafe.Pointer(&data[0])); n > 0 { // an int, not the uint16 of UDP_SEGMENT
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
