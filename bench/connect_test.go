package bench

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"weft/bench/lab"
)

// A client that never sends does not hold the server for ever, and is told.
func TestNetnsServerGivesUp(t *testing.T) {
	l := lab.Start(t, lab.Options{PodsPerNode: -1})
	end := End{l.Nodes[0].NS, netip.MustParseAddr("127.0.0.1")}
	listener, at, err := end.bound(unix.SOCK_STREAM, 0)
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
		serveOne(listener)
	}()
	client, err := end.socket(unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(client)
	if err := unix.Connect(client, sockaddr(at)); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if n, err := readByte(client, &b); n != 0 || err != nil {
		t.Errorf("got %d bytes, %v; want the end", n, err)
	}
	hangUp(listener)
	<-done
}
