package dataplane

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/dataplane/udp"
	"weft/deploy/lab"
)

// sender is the sending part of both kinds of sockets.
type sender interface {
	Reserve(key udp.TxKey, n int) []byte
	Flush(udp.UndeliveredFunc) bool
	Send(to *udp.Destination, datagram []byte) error
}

// TestNetnsSendFragments sends datagrams longer than the underlay's MTU. Send delivers them in
// fragments; Flush rejects them, before and after.
func TestNetnsSendFragments(t *testing.T) {
	l := lab.Start(t, lab.Options{PodsPerNode: -1, Underlay: []netip.Prefix{netip.MustParsePrefix("172.31.0.0/24")},
		Underlay6: []netip.Prefix{netip.MustParsePrefix("fd31::/64")}})
	must(t, l.Nodes[0].SetMTU("eth0", 1280))
	for _, end := range []struct{ from, to netip.Addr }{
		{l.Nodes[0].Addr, l.Nodes[1].Addr}, {l.Nodes[0].Addr6, l.Nodes[1].Addr6},
	} {
		for kind, open := range map[string]func(udp.Config) (sender, func() error, error){
			"offload": func(c udp.Config) (sender, func() error, error) {
				g, err := udp.OpenOffload(c)
				if err != nil {
					return nil, nil, err
				}
				return g.Sockets[0], g.Close, nil
			},
			"portable": func(c udp.Config) (sender, func() error, error) {
				g, err := udp.OpenPortable(c)
				if err != nil {
					return nil, nil, err
				}
				return g.Sockets[0], g.Close, nil
			},
		} {
			t.Run(end.from.String()+" "+kind, func(t *testing.T) {
				conn, err := l.Nodes[1].ListenUDP(end.to, 0)
				must(t, err)
				defer conn.Close()
				local := conn.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort()
				to := udp.NewDestination(netip.AddrPortFrom(end.to, local.Port()))
				var s sender
				var closeSocket func() error
				must(t, l.Nodes[0].Do(func() (err error) {
					s, closeSocket, err = open(udp.Config{Bind: netip.AddrPortFrom(end.from, 8285), Sockets: 1})
					return err
				}))
				defer func() { must(t, closeSocket()) }()
				long := bytes.Repeat([]byte{0x5a}, 1280)
				expectRejected(t, s, to, long)
				must(t, s.Send(to, long))
				must(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
				got := make([]byte, 2000)
				if n, _, err := conn.ReadFrom(got); err != nil || !bytes.Equal(got[:n], long) {
					t.Errorf("received %d bytes, %v", n, err)
				}
				expectRejected(t, s, to, long)
			})
		}
	}
}

// expectRejected flushes a datagram and expects EMSGSIZE.
func expectRejected(t *testing.T, s sender, to *udp.Destination, datagram []byte) {
	t.Helper()
	copy(s.Reserve(udp.TxKey{To: to}, len(datagram)), datagram)
	rejected := 0
	s.Flush(func(_ *udp.Destination, _ []byte, err error) {
		if rejected++; !errors.Is(err, unix.EMSGSIZE) {
			t.Error(err)
		}
	})
	if rejected != 1 {
		t.Errorf("%d datagrams rejected, want 1", rejected)
	}
}
