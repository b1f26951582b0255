package udp

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

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
			t.Error("PathMTU from loopback to 192.0.2.1 succeeded")
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestClosedProber checks that a closed Prober does not use a descriptor that has been reused.
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
		t.Errorf("PathMTU after Close: %d, %v", mtu, err)
	}
	if peer, err := unix.Getpeername(other); err == nil {
		t.Errorf("reused descriptor was connected to %v", peer)
	}
}
