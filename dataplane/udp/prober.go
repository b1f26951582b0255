package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Prober asks the kernel for the MTU of a path. Its methods may be called by many goroutines.
type Prober struct {
	mu     sync.Mutex
	fd     int // -1 once closed: the number may be somebody else's then
	family int
}

// NewProber opens a prober for paths from the address of bind.
func NewProber(bind netip.Addr) (*Prober, error) {
	fd, err := unix.Socket(family(bind), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("create path MTU socket: %w", err)
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(bind, 0))); err != nil {
		return nil, errors.Join(fmt.Errorf("bind path MTU socket to %s: %w", bind, err), unix.Close(fd))
	}
	return &Prober{fd: fd, family: family(bind)}, nil
}

// PathMTU returns the MTU in bytes, outer headers included, that the kernel knows for the path to the node: the
// route's, or a smaller one that a router has told. No packet is sent.
func (p *Prober) PathMTU(to netip.AddrPort) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return 0, fmt.Errorf("find the route to %s: %w", to, os.ErrClosed)
	}
	if err := unix.Connect(p.fd, sockaddr(to)); err != nil {
		return 0, fmt.Errorf("find the route to %s: %w", to, err)
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if p.family == unix.AF_INET6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	mtu, err := unix.GetsockoptInt(p.fd, level, option)
	if err != nil {
		return 0, fmt.Errorf("read the path MTU to %s: %w", to, err)
	}
	return mtu, nil
}

// Close closes the prober's socket.
func (p *Prober) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	fd := p.fd
	p.fd = -1
	return unix.Close(fd)
}
