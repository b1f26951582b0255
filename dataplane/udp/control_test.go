package udp

import (
	"bytes"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestReadControl(t *testing.T) {
	gro := func(length int, value int32) []byte {
		c := new(control)
		n := 0
		*(*int32)(c.put(&n, unix.IPPROTO_UDP, unix.UDP_GRO, 4)) = value
		(*unix.Cmsghdr)(unsafe.Pointer(c)).SetLen(length)
		return unsafe.Slice((*byte)(unsafe.Pointer(c)), n)
	}
	full := unix.CmsgLen(4)
	for _, c := range []struct {
		name string
		b    []byte
		want int
	}{
		{"empty", nil, 7},
		{"train", gro(full, 1400), 1400},
		{"zero size", gro(full, 0), 7},
		{"negative size", gro(full, -1), 7},
		{"truncated", gro(full, 1400)[:full-2], 7},
		{"length below header", gro(3, 1400), 7},
		{"header without data", gro(unix.CmsgLen(0), 1400), 7},
		{"length past the end", gro(1<<30, 1400), 7},
		{"negative length", gro(-8, 1400), 7},
	} {
		m := Message{Segment: 7}
		readControl(c.b, &m)
		if m.Segment != c.want {
			t.Errorf("%s: segment %d, want %d", c.name, m.Segment, c.want)
		}
	}
}

func FuzzReadControl(f *testing.F) {
	f.Add(make([]byte, 24))
	f.Add(bytes.Repeat([]byte{0xff}, 40))
	f.Fuzz(func(t *testing.T, b []byte) {
		aligned := new([16]uint64)
		n := copy(unsafe.Slice((*byte)(unsafe.Pointer(aligned)), 128), b)
		m := Message{Segment: 7}
		readControl(unsafe.Slice((*byte)(unsafe.Pointer(aligned)), n), &m)
		if m.Segment <= 0 {
			t.Errorf("segment %d", m.Segment)
		}
	})
}
