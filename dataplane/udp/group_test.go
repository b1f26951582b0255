package udp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"weft/dataplane/feature"
	"weft/encap"
)

func TestGroupExclusive(t *testing.T) {
	bind := freePort(t, "127.0.0.1")
	group, err := OpenOffload(Config{Bind: bind, Sockets: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	if _, err := OpenOffload(Config{Bind: bind, Sockets: 2}); !errors.Is(err, ErrInUse) {
		t.Errorf("second offload group: %v", err)
	}
	if _, err := OpenPortable(Config{Bind: bind, Sockets: 1}); !errors.Is(err, ErrInUse) {
		t.Errorf("second portable group: %v", err)
	}
	successor, err := OpenOffload(Config{Bind: bind, Sockets: 2, ReusePorts: true})
	if err != nil {
		t.Fatalf("open with ReusePorts: %v", err)
	}
	if err := successor.Close(); err != nil {
		t.Error(err)
	}
	_, err = OpenOffload(Config{Bind: netip.MustParseAddrPort("192.0.2.1:8285"), Sockets: 1})
	if !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("address of another host: %v", err)
	}
}

func TestSourcePorts(t *testing.T) {
	for kind, open := range kinds {
		bind, first := freePort(t, "127.0.0.1"), freePort(t, "127.0.0.1")
		group := open(t, Config{Bind: bind, Sockets: 2, SourcePort: first.Port()})
		for i, s := range group {
			if s.SendFD() == s.FD() {
				t.Errorf("%s: socket %d sends and receives on one descriptor", kind, i)
			}
			key := TxKey{To: NewDestination(bind)}
			copy(s.Reserve(key, 30), payload(i, 30))
			s.Flush(failOnRefused(t))
			var from netip.AddrPort
			for _, r := range group { // either may receive it
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

func TestSourcePortsExclusive(t *testing.T) {
	first := freePort(t, "127.0.0.1")
	a, err := OpenOffload(Config{Bind: freePort(t, "127.0.0.1"), Sockets: 2, SourcePort: first.Port()})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	_, err = OpenPortable(Config{Bind: freePort(t, "127.0.0.1"), Sockets: 1, SourcePort: first.Port() + 1})
	if !errors.Is(err, ErrInUse) {
		t.Errorf("overlapping source ports: %v", err)
	}
}

// TestBufferSizes checks the buffers of the receiving and the sending socket. The size is below the
// kernel's default limit of 212,992 bytes, so that no privileges are needed.
func TestBufferSizes(t *testing.T) {
	const want = 50_000
	for kind, open := range kinds {
		for _, first := range []uint16{0, freePort(t, "127.0.0.1").Port()} {
			s := open(t, Config{Bind: freePort(t, "127.0.0.1"), Sockets: 1, SourcePort: first, Buffer: want})[0]
			in, inErr := unix.GetsockoptInt(s.FD(), unix.SOL_SOCKET, unix.SO_RCVBUF)
			out, outErr := unix.GetsockoptInt(s.SendFD(), unix.SOL_SOCKET, unix.SO_SNDBUF)
			// The kernel doubles the value that is set (socket(7)).
			if in != 2*want || out != 2*want || inErr != nil || outErr != nil {
				t.Errorf("%s, source port %d: receive buffer %d (%v), send buffer %d (%v), want %d",
					kind, first, in, inErr, out, outErr, 2*want)
			}
		}
	}
}

// flow returns an inner packet of a UDP flow.
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

// TestSteering sends flows between one pair of outer ports and checks that each is received, in
// both directions, on the socket that encap.FlowHash selects.
func TestSteering(t *testing.T) {
	const sockets = 4
	g, err := OpenOffload(Config{Bind: freePort(t, "127.0.0.1"), Sockets: sockets})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if reason := g.Features()[feature.Steering]; reason != nil {
		t.Skipf("NOT TESTED: %v", reason)
	}
	name, err := unix.Getsockname(g.Sockets[0].FD())
	if err != nil {
		t.Fatal(err)
	}
	to := NewDestination(addrPortOf(name))
	used := map[int]int{}
	for port := range uint16(64) {
		for _, pkt := range [][]byte{
			flow("10.5.1.2", "10.5.2.3", 1000+port, 80),
			flow("10.5.2.3", "10.5.1.2", 80, 1000+port),
		} {
			if err := g.Sockets[0].Send(to, pkt); err != nil {
				t.Fatal(err)
			}
			hash, _ := encap.FlowHash(pkt)
			want := int(hash % sockets)
			for i, s := range g.Sockets {
				messages, err := s.Receive()
				if err != nil || len(messages) > 0 != (i == want) {
					t.Errorf("port %d: socket %d has %d messages, want them on %d (%v)",
						port, i, len(messages), want, err)
				}
			}
			used[want]++
		}
	}
	if len(used) != sockets {
		t.Errorf("flows per socket: %v", used)
	}
}
