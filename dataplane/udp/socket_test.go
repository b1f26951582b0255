package udp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is what both kinds of socket can do.
type socket interface {
	Reserve(TxKey, int) []byte
	Flush(UndeliveredFunc) bool
	Send(*Destination, []byte) error
	Receive() ([]Message, error)
	Overflows() (uint64, error)
	FD() int
	SendFD() int
	Close() error
}

// kinds opens a group of either kind and closes it with the test.
var kinds = map[string]func(t *testing.T, c Config) []socket{
	"offload": func(t *testing.T, c Config) []socket {
		g, err := OpenOffload(c)
		return opened(t, g, err)
	},
	"portable": func(t *testing.T, c Config) []socket {
		g, err := OpenPortable(c)
		return opened(t, g, err)
	},
}

func opened[S socket](t *testing.T, g *Group[S], err error) (all []socket) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, s := range g.Sockets {
		all = append(all, s)
	}
	return all
}

// openBoth opens a group of each kind, on two ports.
func openBoth(t *testing.T, c Config) map[string][]socket {
	t.Helper()
	other := c
	other.Bind = netip.AddrPortFrom(c.Bind.Addr(), c.Bind.Port()+1)
	return map[string][]socket{"offload": kinds["offload"](t, c), "portable": kinds["portable"](t, other)}
}

// freePort returns a port that, with the next one, nobody uses on the address.
func freePort(t *testing.T, addr string) netip.AddrPort {
	t.Helper()
	for range 100 {
		first, err := net.ListenPacket("udp", net.JoinHostPort(addr, "0"))
		if err != nil {
			t.Fatal(err)
		}
		at := netip.MustParseAddrPort(first.LocalAddr().String())
		second, err := net.ListenPacket("udp", netip.AddrPortFrom(at.Addr(), at.Port()+1).String())
		first.Close()
		if err == nil {
			second.Close()
			return at
		}
	}
	t.Fatal("no two free ports in a row")
	return netip.AddrPort{}
}

// take receives until n datagrams are there.
func take(t *testing.T, s socket, n int) (all [][]byte, from netip.AddrPort) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for len(all) < n {
		messages, err := s.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			if m.Truncated {
				t.Error("truncated")
			}
			from = m.From
			for d := range m.All() {
				all = append(all, bytes.Clone(d))
			}
			for i := range m.Data[:cap(m.Data)] {
				m.Data[:cap(m.Data)][i] = 0xdd // the memory is the receiver's
			}
		}
		if len(messages) == 0 {
			if time.Now().After(deadline) {
				t.Fatalf("%d of %d datagrams", len(all), n)
			}
			fds := []unix.PollFd{{Fd: int32(s.FD()), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, 100); err != nil && !errors.Is(err, unix.EINTR) {
				t.Fatal(err)
			}
		}
	}
	return all, from
}

func refuseNone(t *testing.T) UndeliveredFunc {
	return func(to *Destination, d []byte, err error) { t.Errorf("%d bytes to %v: %v", len(d), to.Addr, err) }
}

func TestLoopback(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		for _, c := range []Config{{}, {NoGSO: true}, {NoGRO: true}, {NoGSO: true, NoGRO: true}} {
			name := fmt.Sprint(addr, " GSO ", !c.NoGSO, " GRO ", !c.NoGRO)
			t.Run(name, func(t *testing.T) {
				c.Bind, c.Sockets, c.Buffer = freePort(t, addr), 1, 4<<20
				sockets := openBoth(t, c)
				for from := range sockets {
					for to, peers := range sockets {
						exchange(t, from+" to "+to, sockets[from][0], peers[0])
					}
				}
			})
		}
	}
}

// exchange sends traffic of all shapes and compares what arrives.
func exchange(t *testing.T, name string, from, to socket) {
	t.Helper()
	local, err := unix.Getsockname(to.FD())
	if err != nil {
		t.Fatal(err)
	}
	lane := TxKey{To: NewDestination(addrPortOf(local))}
	sizes := []int{1, 20, 20, 1400, 1400, 1400, 700, 1400, 65, 65, 65, 65, 0, 30_000, 9000, 9000, 9000}
	for i, n := range sizes {
		b := from.Reserve(lane, n)
		if b == nil {
			t.Fatalf("%s: no room", name)
		}
		copy(b, payload(i, n))
	}
	if !from.Flush(refuseNone(t)) {
		t.Fatalf("%s: no room in the kernel", name)
	}
	if err := from.Send(lane.To, payload(99, 77)); err != nil {
		t.Fatal(err)
	}
	got, sender := take(t, to, len(sizes)+1)
	for i, n := range append(sizes, 77) {
		want := payload(i, n)
		if i == len(sizes) {
			want = payload(99, 77)
		}
		if !bytes.Equal(got[i], want) {
			t.Errorf("%s: datagram %d has %d bytes, want %d", name, i, len(got[i]), n)
		}
	}
	if local, err := unix.Getsockname(from.FD()); err != nil || sender != addrPortOf(local) {
		t.Errorf("%s: from %v, want %v", name, sender, addrPortOf(local))
	}
	if n := lane.To.Packets.Load(); n != uint64(len(sizes)+1) {
		t.Errorf("%s: counted %d", name, n)
	}
}

// TestTrainsReallyTravel makes sure that GSO and GRO are used: a silent fall-back would pass every other test.
func TestTrainsReallyTravel(t *testing.T) {
	group, err := OpenOffload(Config{Bind: freePort(t, "127.0.0.1"), Sockets: 1, Buffer: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	for f, lack := range group.Features() {
		if lack != nil {
			t.Skipf("NOT TESTED: this kernel has no %s: %v", f, lack)
		}
	}
	s := group.Sockets[0]
	local, err := unix.Getsockname(s.fd)
	if err != nil {
		t.Fatal(err)
	}
	messages := 0
	send := s.sender.send
	s.sender.send = func(fd int, m []unix.Mmsghdr) (int, unix.Errno) { messages += len(m); return send(fd, m) }
	lane := TxKey{To: NewDestination(addrPortOf(local))}
	for i := range 40 {
		copy(s.Reserve(lane, 1400), payload(i, 1400))
	}
	s.Flush(refuseNone(t))
	fds := []unix.PollFd{{Fd: int32(s.FD()), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, 5000); err != nil {
		t.Fatal(err)
	}
	got, err := s.Receive()
	if err != nil || len(got) != 1 || got[0].Segment != 1400 || got[0].Datagrams() != 40 || messages != 1 {
		t.Errorf("%d messages sent; received %d, of %+v datagrams (%v)", messages, len(got), got[0].Datagrams(), err)
	}
	if lane.To.plain.Load() != nil {
		t.Error("GSO failed on loopback")
	}
}

// TestDatagramsStayWithinTheirBuffers sends trains as long as they get, in both families.
func TestLongestTrain(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		group, err := OpenOffload(Config{Bind: freePort(t, addr), Sockets: 1, Buffer: 8 << 20})
		if err != nil {
			t.Fatal(err)
		}
		s := group.Sockets[0]
		local, err := unix.Getsockname(s.fd)
		if err != nil {
			t.Fatal(err)
		}
		lane := TxKey{To: NewDestination(addrPortOf(local))}
		const size = 1424 // 46 of them leave room for no more than 3 bytes
		n := 0
		for s.trains.n < 2 {
			copy(s.Reserve(lane, size), payload(n, size))
			n++
		}
		s.Flush(refuseNone(t))
		got, _ := take(t, s, n)
		for i := range got {
			if !bytes.Equal(got[i], payload(i, size)) {
				t.Errorf("%s: datagram %d differs", addr, i)
			}
		}
		if lane.To.plain.Load() != nil {
			t.Errorf("%s: the longest train was refused", addr)
		}
		if err := group.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestGroupIsExclusive(t *testing.T) {
	bind := freePort(t, "127.0.0.1")
	group, err := OpenOffload(Config{Bind: bind, Sockets: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	if _, err := OpenOffload(Config{Bind: bind, Sockets: 2}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second group: %v", err)
	}
	if _, err := OpenPortable(Config{Bind: bind, Sockets: 1}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second, portable group: %v", err)
	}
	heir, err := OpenOffload(Config{Bind: bind, Sockets: 2, ReusePorts: true})
	if err != nil {
		t.Fatalf("taking over: %v", err)
	}
	if err := heir.Close(); err != nil {
		t.Error(err)
	}
	if _, err := OpenOffload(Config{Bind: netip.MustParseAddrPort("192.0.2.1:8285"), Sockets: 1}); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("a foreign address: %v", err)
	}
}

func TestOverflows(t *testing.T) {
	for name, group := range openBoth(t, Config{Bind: freePort(t, "127.0.0.1"), Sockets: 1, Buffer: 5000}) {
		s := group[0]
		local, err := unix.Getsockname(s.FD())
		if err != nil {
			t.Fatal(err)
		}
		to := NewDestination(addrPortOf(local))
		for range 200 {
			if err := s.Send(to, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
		}
		n, err := s.Overflows()
		got := uint64(0)
		for {
			messages, err := s.Receive()
			if err != nil || len(messages) == 0 {
				break
			}
			got += uint64(len(messages))
		}
		if err != nil || n == 0 || n+got != 200 {
			t.Errorf("%s: %d overflows and %d received of 200: %v", name, n, got, err)
		}
	}
}

// TestOverflowsCountATrainOnce holds the kernel to what the counter is documented to count.
func TestOverflowsCountATrainOnce(t *testing.T) {
	at := freePort(t, "127.0.0.1")
	g, err := OpenOffload(Config{Bind: at, Sockets: 1, Buffer: 50_000})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for f, lack := range g.Features() {
		if lack != nil {
			t.Skipf("NOT TESTED: this kernel has no %s: %v", f, lack)
		}
	}
	s := g.Sockets[0]
	lane := TxKey{To: NewDestination(at)}
	const trains, datagrams = 30, 40
	for range trains {
		for i := range datagrams {
			copy(s.Reserve(lane, 1400), payload(i, 1400))
		}
		if !s.Flush(refuseNone(t)) {
			t.Fatal("no room")
		}
	}
	got, err := s.Receive()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Overflows(); err != nil || len(got) == 0 || n != uint64(trains-len(got)) {
		t.Errorf("%d overflows (%v), %d messages received of %d trains", n, err, len(got), trains)
	}
}

func TestProber(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		p, err := NewProber(netip.MustParseAddr(addr))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			mtu, err := p.PathMTU(netip.AddrPortFrom(netip.MustParseAddr(addr), 9))
			if err != nil || mtu < 1280 {
				t.Errorf("%s: %d, %v", addr, mtu, err)
			}
		}
		if _, err := p.PathMTU(netip.MustParseAddrPort("192.0.2.1:9")); err == nil && addr == "127.0.0.1" {
			t.Error("a path from loopback to the world")
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestClosedProber: who still has it when it is replaced must not touch a descriptor that got its number since.
func TestClosedProber(t *testing.T) {
	p, err := NewProber(netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	fd := p.fd
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	other, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil || other != fd {
		t.Fatalf("descriptor %d (%v), want %d", other, err, fd)
	}
	defer unix.Close(other)
	if mtu, err := p.PathMTU(netip.MustParseAddrPort("127.0.0.1:9")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed prober says %d, %v", mtu, err)
	}
	if peer, err := unix.Getpeername(other); err == nil {
		t.Errorf("somebody else's socket is connected to %v", peer)
	}
}

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
		{"nothing", nil, 7},
		{"a train", gro(full, 1400), 1400},
		{"no size", gro(full, 0), 7},
		{"a negative size", gro(full, -1), 7},
		{"cut off", gro(full, 1400)[:full-2], 7},
		{"shorter than itself", gro(3, 1400), 7},
		{"only a header", gro(unix.CmsgLen(0), 1400), 7},
		{"beyond the end", gro(1<<30, 1400), 7},
		{"length that wraps", gro(-8, 1400), 7},
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

func TestReceivingAllocatesNothing(t *testing.T) {
	group, err := OpenOffload(Config{Bind: freePort(t, "127.0.0.1"), Sockets: 1, Buffer: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	s := group.Sockets[0]
	local, err := unix.Getsockname(s.fd)
	if err != nil {
		t.Fatal(err)
	}
	lane := TxKey{To: NewDestination(addrPortOf(local))}
	failed := refuseNone(t)
	received := 0
	if n := testing.AllocsPerRun(100, func() {
		for range 10 {
			s.Reserve(lane, 1000)
		}
		s.Flush(failed)
		messages, err := s.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for i := range messages {
			received += messages[i].Datagrams()
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if received == 0 {
		t.Error("nothing received")
	}
}
