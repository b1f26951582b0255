package traffic

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/deploy/lab"
)

// A client that never sends does not block the server forever; the server closes the connection.
func TestNetnsServeSilentClient(t *testing.T) {
	l := lab.Start(t, lab.Options{PodsPerNode: -1})
	end := End{l.Nodes[0].NS, netip.MustParseAddr("127.0.0.1")}
	listener, at, err := end.bind(unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listener)
	if err := unix.Listen(listener, 1); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		serve(listener)
	}()
	client, err := end.socket(unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(client)
	if err := unix.Connect(client, Sockaddr(at)); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if n, err := readByte(client, &b); n != 0 || err != nil {
		t.Errorf("got %d bytes, %v; want the end", n, err)
	}
	shutdown(listener)
	<-done
}

// Clients without an answer return an error even after the measurement, and stop soon after ctx is
// cancelled.
func TestNetnsConnectionsUnanswered(t *testing.T) {
	l := lab.Start(t, lab.Options{Direct: true, PodsPerNode: -1})
	from, to := End{l.Nodes[0].NS, l.Nodes[0].Addr}, End{l.Nodes[1].NS, l.Nodes[1].Addr}
	if err := l.Partition(l.Nodes[0], l.Nodes[1]); err != nil {
		t.Fatal(err)
	}
	if c, err := Connections(t.Context(), from, to, 2, 10*time.Millisecond); !errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("%+v, %v", c, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	c, err := Connections(ctx, from, to, 2, time.Hour)
	if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took > stallTimeout-ioTimeout {
		t.Errorf("%+v, %v after %v", c, err, took)
	}
}

func TestNetnsConnectionsWithoutClient(t *testing.T) {
	from, to := LinkedEnds(t)
	if c, err := Connections(t.Context(), from, to, 0, time.Millisecond); err == nil {
		t.Errorf("%+v, without a client", c)
	}
}
