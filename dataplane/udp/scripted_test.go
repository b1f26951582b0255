package udp

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernel is a scripted sendmmsg. It segments the messages like the real one and records the
// datagrams.
type kernel struct {
	t        *testing.T
	calls    int
	room     func(call int) int                           // number of messages that the call accepts; nil: all
	fail     func(message []byte, segment int) unix.Errno // error for a message; nil: none
	got      []datagram
	messages int
}

type datagram struct {
	to   netip.AddrPort
	data []byte
	tos  int
}

func (k *kernel) sendmmsg(_ int, messages []unix.Mmsghdr) (int, unix.Errno) {
	k.calls++
	room := len(messages)
	if k.room != nil {
		room = min(room, k.room(k.calls))
	}
	if room == 0 {
		return 0, unix.EAGAIN
	}
	for i := range messages[:room] {
		hdr := &messages[i].Hdr
		data := unsafe.Slice(hdr.Iov.Base, int(hdr.Iov.Len))
		segment, tos := k.control(hdr)
		if k.fail != nil {
			if errno := k.fail(data, segment); errno != 0 {
				if i > 0 {
					return i, 0
				}
				return 0, errno
			}
		}
		k.messages++
		to := rawAddrPort((*unix.RawSockaddrInet6)(unsafe.Pointer(hdr.Name)))
		if segment == 0 {
			k.got = append(k.got, datagram{to, slices.Clone(data), tos})
			continue
		}
		for part := range slices.Chunk(data, segment) {
			k.got = append(k.got, datagram{to, slices.Clone(part), tos})
		}
	}
	return room, 0
}

// control parses the control messages with the parser of x/sys/unix.
func (k *kernel) control(hdr *unix.Msghdr) (segment, tos int) {
	k.t.Helper()
	if hdr.Control == nil {
		if hdr.Controllen != 0 {
			k.t.Errorf("control length %d without control", hdr.Controllen)
		}
		return 0, 0
	}
	all, err := unix.ParseSocketControlMessage(unsafe.Slice(hdr.Control, int(hdr.Controllen)))
	if err != nil || len(all) == 0 {
		k.t.Fatalf("control messages %v: %v", all, err)
	}
	for _, m := range all {
		switch {
		case m.Header.Level == unix.IPPROTO_UDP && m.Header.Type == unix.UDP_SEGMENT && len(m.Data) == 2:
			segment = int(*(*uint16)(unsafe.Pointer(&m.Data[0])))
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TOS,
			m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_TCLASS:
			tos = int(*(*int32)(unsafe.Pointer(&m.Data[0])))
		default:
			k.t.Errorf("control message %+v", m)
		}
	}
	return segment, tos
}

// scripted is an Offload socket on top of a scripted kernel.
type scripted struct {
	Offload
	kernel  *kernel
	refused []datagram
	errs    []error
}

func newScripted(t *testing.T, gso bool) *scripted {
	s := &scripted{kernel: &kernel{t: t}}
	s.trains = newTrains(maxTrains, maxSegmentsOld)
	s.sender = newSender(-1, false, gso)
	s.sender.send = s.kernel.sendmmsg
	return s
}

func (s *scripted) failed(to *Destination, data []byte, err error) {
	s.refused = append(s.refused, datagram{to.Addr, slices.Clone(data), 0})
	s.errs = append(s.errs, err)
}

// put reserves and fills one datagram. It returns false if a flush is required.
func (s *scripted) put(key TxKey, data []byte) bool {
	b := s.Reserve(key, len(data))
	if b == nil {
		return false
	}
	if len(b) != len(data) || cap(b) != len(data) {
		panic(fmt.Sprint("reserved ", len(b), " of ", cap(b)))
	}
	copy(b, data)
	return true
}

func dest(last byte) *Destination {
	return NewDestination(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, last}), 8285))
}

// payload returns n bytes that are unique to id within a test.
func payload(id, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(id>>(8*(i%3))) + byte(i/3)
	}
	return b
}

// compare checks that exactly the wanted datagrams were sent, in order per key.
func (s *scripted) compare(t *testing.T, name string, wanted func(yield func(TxKey, []byte))) {
	t.Helper()
	type header struct {
		to  netip.AddrPort
		tos int
	}
	want := map[header][][]byte{}
	n := 0
	wanted(func(l TxKey, data []byte) {
		h := header{l.To.Addr, int(l.TOS)}
		want[h] = append(want[h], data)
		n++
	})
	if len(s.kernel.got) != n {
		t.Errorf("%s: %d datagrams sent, want %d", name, len(s.kernel.got), n)
		return
	}
	for i, d := range s.kernel.got {
		h := header{d.to, d.tos}
		if len(want[h]) == 0 || !bytes.Equal(want[h][0], d.data) {
			t.Errorf("%s: datagram %d to %v is out of order or unexpected", name, i, d.to)
			return
		}
		want[h] = want[h][1:]
	}
}

// inOrder checks that got is a subsequence of want for each node. Keys of one node do not differ.
func inOrder(t *testing.T, seed uint64, want, got []datagram) {
	t.Helper()
	next := map[netip.AddrPort]int{}
	for i, d := range got {
		j := next[d.to]
		for j < len(want) && !(want[j].to == d.to && bytes.Equal(want[j].data, d.data)) {
			j++
		}
		if j == len(want) {
			t.Fatalf("seed %d: datagram %d to %v is out of order or unexpected", seed, i, d.to)
		}
		next[d.to] = j + 1
	}
}
