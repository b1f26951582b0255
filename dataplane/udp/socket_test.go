package udp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socket is implemented by both kinds of socket.
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

// kinds maps each kind of socket to a function that opens a group and closes it after the test.
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

// openBoth opens a group of each kind, on two consecutive ports.
func openBoth(t *testing.T, c Config) map[string][]socket {
	t.Helper()
	other := c
	other.Bind = netip.AddrPortFrom(c.Bind.Addr(), c.Bind.Port()+1)
	return map[string][]socket{"offload": kinds["offload"](t, c), "portable": kinds["portable"](t, other)}
}

// freePort returns a free port on the address, such that the next port is also free.
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
	t.Fatal("no two consecutive free ports")
	return netip.AddrPort{}
}

// receiveN receives n datagrams.
func receiveN(t *testing.T, s socket, n int) (all [][]byte, from netip.AddrPort) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for len(all) < n {
		messages, err := s.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			if m.Truncated {
				t.Error("message truncated")
			}
			from = m.From
			for d := range m.All() {
				all = append(all, bytes.Clone(d))
			}
			for i := range m.Data[:cap(m.Data)] {
				m.Data[:cap(m.Data)][i] = 0xdd // overwrite: the memory is owned by the receiver until the next call
			}
		}
		if len(messages) == 0 {
			if time.Now().After(deadline) {
				t.Fatalf("received %d of %d datagrams", len(all), n)
			}
			fds := []unix.PollFd{{Fd: int32(s.FD()), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, 100); err != nil && !errors.Is(err, unix.EINTR) {
				t.Fatal(err)
			}
		}
	}
	return all, from
}

func failOnRefused(t *testing.T) UndeliveredFunc {
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

// exchange sends datagrams of various sizes and compares those received.
func exchange(t *testing.T, name string, from, to socket) {
	t.Helper()
	local, err := unix.Getsockname(to.FD())
	if err != nil {
		t.Fatal(err)
	}
	key := TxKey{To: NewDestination(addrPortOf(local))}
	sizes := []int{1, 20, 20, 1400, 1400, 1400, 700, 1400, 65, 65, 65, 65, 0, 30_000, 9000, 9000, 9000}
	for i, n := range sizes {
		b := from.Reserve(key, n)
		if b == nil {
			t.Fatalf("%s: Reserve returned nil", name)
		}
		copy(b, payload(i, n))
	}
	if !from.Flush(failOnRefused(t)) {
		t.Fatalf("%s: Flush returned false", name)
	}
	if err := from.Send(key.To, payload(99, 77)); err != nil {
		t.Fatal(err)
	}
	got, sender := receiveN(t, to, len(sizes)+1)
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
	if n := key.To.Packets.Load(); n != uint64(len(sizes)+1) {
		t.Errorf("%s: counted %d datagrams", name, n)
	}
}

// TestTrainsUsed checks that GSO and GRO are used: a silent fallback would pass all other tests.
func TestTrainsUsed(t *testing.T) {
	group, err := OpenOffload(Config{Bind: freePort(t, "127.0.0.1"), Sockets: 1, Buffer: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	for f, reason := range group.Features() {
		if reason != nil {
			t.Skipf("NOT TESTED: kernel has no %s: %v", f, reason)
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
	key := TxKey{To: NewDestination(addrPortOf(local))}
	for i := range 40 {
		copy(s.Reserve(key, 1400), payload(i, 1400))
	}
	s.Flush(failOnRefused(t))
	fds := []unix.PollFd{{Fd: int32(s.FD()), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, 5000); err != nil {
		t.Fatal(err)
	}
	got, err := s.Receive()
	if err != nil || len(got) != 1 || got[0].Segment != 1400 || got[0].Datagrams() != 40 || messages != 1 {
		t.Errorf("%d messages sent; received %d with %d datagrams (%v)", messages, len(got), got[0].Datagrams(), err)
	}
	if key.To.gsoOffUntil.Load() != nil {
		t.Error("GSO failed on loopback")
	}
}

// TestLongestTrain sends trains of the maximum length in both families.
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
		key := TxKey{To: NewDestination(addrPortOf(local))}
		const size = 1424 // 46 of them fill a train up to 3 bytes
		n := 0
		for s.trains.n < 2 {
			copy(s.Reserve(key, size), payload(n, size))
			n++
		}
		s.Flush(failOnRefused(t))
		got, _ := receiveN(t, s, n)
		for i := range got {
			if !bytes.Equal(got[i], payload(i, size)) {
				t.Errorf("%s: datagram %d differs", addr, i)
			}
		}
		if key.To.gsoOffUntil.Load() != nil {
			t.Errorf("%s: longest train refused", addr)
		}
		if err := group.Close(); err != nil {
			t.Error(err)
		}
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
			t.Errorf("%s: %d overflows and %d received, sent 200: %v", name, n, got, err)
		}
	}
}

// TestOverflowsPerTrain checks that the kernel counts a dropped train once.
func TestOverflowsPerTrain(t *testing.T) {
	at := freePort(t, "127.0.0.1")
	g, err := OpenOffload(Config{Bind: at, Sockets: 1, Buffer: 50_000})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for f, reason := range g.Features() {
		if reason != nil {
			t.Skipf("NOT TESTED: kernel has no %s: %v", f, reason)
		}
	}
	s := g.Sockets[0]
	key := TxKey{To: NewDestination(at)}
	const trains, datagrams = 30, 40
	for range trains {
		for i := range datagrams {
			copy(s.Reserve(key, 1400), payload(i, 1400))
		}
		if !s.Flush(failOnRefused(t)) {
			t.Fatal("Flush returned false")
		}
	}
	got, err := s.Receive()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Overflows(); err != nil || len(got) == 0 || n != uint64(trains-len(got)) {
		t.Errorf("%d overflows (%v) and %d messages received, sent %d trains", n, err, len(got), trains)
	}
}

func TestReceiveAllocs(t *testing.T) {
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
	key := TxKey{To: NewDestination(addrPortOf(local))}
	failed := failOnRefused(t)
	received := 0
	if n := testing.AllocsPerRun(100, func() {
		for range 10 {
			s.Reserve(key, 1000)
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
		t.Errorf("%v allocations, want 0", n)
	}
	if received == 0 {
		t.Error("no datagrams received")
	}
}

func TestTOS(t *testing.T) {
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
				sockets[from][0].Flush(failOnRefused(t))
				var got []uint8
				for len(got) < len(want) {
					messages, err := sockets[to][0].Receive()
					if err != nil {
						t.Fatal(err)
					}
					if len(messages) == 0 {
						fds := []unix.PollFd{{Fd: int32(sockets[to][0].FD()), Events: unix.POLLIN}}
						if n, _ := unix.Poll(fds, 5000); n == 0 {
							t.Fatalf("received %d of %d datagrams", len(got), len(want))
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
