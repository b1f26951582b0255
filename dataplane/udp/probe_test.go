package udp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
	"weft/encap"
)

func TestSelfTestPassesHere(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		can := probe(Config{Bind: netip.AddrPortFrom(netip.MustParseAddr(addr), 1)})
		for f, lack := range can.lacks {
			if errors.Is(lack, unix.ENOPROTOOPT) {
				t.Skipf("NOT TESTED: this kernel has no %s", f)
			}
			if lack != nil {
				t.Errorf("%s: %s: %v", addr, f, lack)
			}
		}
		t.Logf("%s: trains of %d datagrams", addr, can.segments)
	}
}

// TestSelfTestFindsBrokenKernels has the kernel do wrong to trains what kernels have been seen to do.
func TestSelfTestFindsBrokenKernels(t *testing.T) {
	isTrain := func(m *unix.Mmsghdr) bool { return m.Hdr.Control != nil }
	data := func(m *unix.Mmsghdr) []byte { return unsafe.Slice(m.Hdr.Iov.Base, int(m.Hdr.Iov.Len)) }
	for name, c := range map[string]struct {
		harm func(m *unix.Mmsghdr) (drop bool, errno unix.Errno)
		want string // "" if nothing is wrong
	}{
		"none": {func(m *unix.Mmsghdr) (bool, unix.Errno) { return false, 0 }, ""},
		"refused": {func(m *unix.Mmsghdr) (bool, unix.Errno) {
			if isTrain(m) {
				return false, unix.EIO
			}
			return false, 0
		}, "one by one"},
		"corrupted": {func(m *unix.Mmsghdr) (bool, unix.Errno) {
			if isTrain(m) {
				data(m)[len(data(m))-1] ^= 1
			}
			return false, 0
		}, "changed"},
		"lost":       {func(m *unix.Mmsghdr) (bool, unix.Errno) { return isTrain(m), 0 }, "0 of"},
		"no network": {func(m *unix.Mmsghdr) (bool, unix.Errno) { return true, 0 }, ""},
	} {
		st, err := newSelfTest(netip.MustParseAddr("127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		real := st.sender.send
		st.sender.send = func(fd int, messages []unix.Mmsghdr) (int, unix.Errno) {
			drop, errno := c.harm(&messages[0])
			if errno != 0 || drop {
				return 1 - min(1, int(errno)), errno
			}
			return real(fd, messages[:1])
		}
		if name == "no network" {
			st.mute = st.exchange(shape{1, 100, 100}) != nil
		}
		got := st.tryGSO()
		if errors.Is(got, unix.ENOPROTOOPT) {
			t.Skip("NOT TESTED: this kernel has no UDP_SEGMENT")
		}
		if (got == nil) != (c.want == "") || got != nil && !strings.Contains(got.Error(), c.want) {
			t.Errorf("%s: %v", name, got)
		}
		if err := st.close(); err != nil {
			t.Error(err)
		}
	}
}

func TestSwitchedOffFeatures(t *testing.T) {
	g, err := OpenOffload(Config{Bind: freePort(t, "127.0.0.1"), Sockets: 2, Buffer: 10_000, NoGSO: true, NoGRO: true, NoSteering: true})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for f, lack := range g.Features() {
		if (lack != nil) != (f != feature.Buffers) {
			t.Errorf("%s: %v", f, lack)
		}
	}
}

func TestTOSTravels(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		sockets := openBoth(t, Config{Bind: freePort(t, addr), Sockets: 1, ReadTOS: true})
		for from := range sockets {
			for to := range sockets {
				name, err := unix.Getsockname(sockets[to][0].FD())
				if err != nil {
					t.Fatal(err)
				}
				dest := NewDestination(addrPortOf(name))
				want := []uint8{0, 0xb9, 0xb9, 0x03}
				for i, tos := range want {
					copy(sockets[from][0].Reserve(TxKey{To: dest, TOS: tos}, 50), payload(i, 50))
				}
				sockets[from][0].Flush(refuseNone(t))
				var got []uint8
				for len(got) < len(want) {
					messages, err := sockets[to][0].Receive()
					if err != nil {
						t.Fatal(err)
					}
					if len(messages) == 0 {
						fds := []unix.PollFd{{Fd: int32(sockets[to][0].FD()), Events: unix.POLLIN}}
						if n, _ := unix.Poll(fds, 5000); n == 0 {
							t.Fatalf("%d of %d datagrams", len(got), len(want))
						}
					}
					for _, m := range messages {
						got = append(got, slices.Repeat([]uint8{m.TOS}, m.Datagrams())...)
					}
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%s, %s to %s: TOS %x, want %x", addr, from, to, got, want)
				}
			}
		}
	}
}

func TestSourcePorts(t *testing.T) {
	for kind, open := range kinds {
		bind, first := freePort(t, "127.0.0.1"), freePort(t, "127.0.0.1")
		group := open(t, Config{Bind: bind, Sockets: 2, SourcePort: first.Port()})
		for i, s := range group {
			if s.SendFD() == s.FD() {
				t.Errorf("%s: socket %d sends from where it receives", kind, i)
			}
			lane := TxKey{To: NewDestination(bind)}
			copy(s.Reserve(lane, 30), payload(i, 30))
			s.Flush(refuseNone(t))
			var from netip.AddrPort
			for _, r := range group { // either of them may get it
				messages, err := r.Receive()
				if err != nil {
					t.Fatal(err)
				}
				if len(messages) > 0 {
					from = messages[0].From
				}
			}
			if want := netip.AddrPortFrom(bind.Addr(), first.Port()+uint16(i)); from != want {
				t.Errorf("%s: socket %d sends from %v, want %v", kind, i, from, want)
			}
		}
	}
}

// TestBuffersAreSized looks at the socket that receives and at the one that sends, which source ports make another. Without
// privileges the kernel's limit binds, hence a size below its default of 212,992 bytes.
func TestBuffersAreSized(t *testing.T) {
	const want = 50_000
	for kind, open := range kinds {
		for _, first := range []uint16{0, freePort(t, "127.0.0.1").Port()} {
			s := open(t, Config{Bind: freePort(t, "127.0.0.1"), Sockets: 1, SourcePort: first, Buffer: want})[0]
			in, inErr := unix.GetsockoptInt(s.FD(), unix.SOL_SOCKET, unix.SO_RCVBUF)
			out, outErr := unix.GetsockoptInt(s.SendFD(), unix.SOL_SOCKET, unix.SO_SNDBUF)
			if in != 2*want || out != 2*want || inErr != nil || outErr != nil { // the kernel doubles what is set (socket(7))
				t.Errorf("%s, source port %d: %d bytes to receive (%v) and %d to send (%v)", kind, first, in, inErr, out, outErr)
			}
		}
	}
}

func TestSourcePortsAreExclusive(t *testing.T) {
	first := freePort(t, "127.0.0.1")
	a, err := OpenOffload(Config{Bind: freePort(t, "127.0.0.1"), Sockets: 2, SourcePort: first.Port()})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	_, err = OpenPortable(Config{Bind: freePort(t, "127.0.0.1"), Sockets: 1, SourcePort: first.Port() + 1})
	if !errors.Is(err, ErrInUse) {
		t.Errorf("%v", err)
	}
}

// flow is an inner packet of a UDP flow.
func flow(src, dst string, from, to uint16) []byte {
	b := make([]byte, 40)
	b[0], b[9] = 0x45, 17
	binary.BigEndian.PutUint16(b[2:], 40)
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	binary.BigEndian.PutUint16(b[20:], from)
	binary.BigEndian.PutUint16(b[22:], to)
	return b
}

// TestFlowsStayOnTheirSocket sends flows over one pair of outer ports and finds each, in both directions, where
// encap.FlowHash selects.
func TestFlowsStayOnTheirSocket(t *testing.T) {
	const sockets = 4
	g, err := OpenOffload(Config{Bind: freePort(t, "127.0.0.1"), Sockets: sockets})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if lack := g.Features()[feature.Steering]; lack != nil {
		t.Skipf("NOT TESTED: %v", lack)
	}
	name, err := unix.Getsockname(g.Sockets[0].FD())
	if err != nil {
		t.Fatal(err)
	}
	to := NewDestination(addrPortOf(name))
	used := map[int]int{}
	for port := range uint16(64) {
		for _, pkt := range [][]byte{flow("10.5.1.2", "10.5.2.3", 1000+port, 80), flow("10.5.2.3", "10.5.1.2", 80, 1000+port)} {
			if err := g.Sockets[0].Send(to, pkt); err != nil {
				t.Fatal(err)
			}
			hash, _ := encap.FlowHash(pkt)
			want := int(hash % sockets)
			for i, s := range g.Sockets {
				messages, err := s.Receive()
				if err != nil || len(messages) > 0 != (i == want) {
					t.Errorf("port %d: socket %d has %d messages, want them at %d (%v)", port, i, len(messages), want, err)
				}
			}
			used[want]++
		}
	}
	if len(used) != sockets {
		t.Errorf("flows per socket: %v", used)
	}
}
