package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Prober queries the path MTU known to the kernel. Its methods are safe for concurrent use.
type Prober struct {
	mu     sync.Mutex
	fd     int // -1 after Close, since the descriptor may be reused
	family int
}

// NewProber returns a Prober for paths from the address bind.
func NewProber(bind netip.Addr) (*Prober, error) {
	fd, err := unix.Socket(family(bind), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("create path MTU socket: %w", err)
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(bind, 0))); err != nil {
		err = fmt.Errorf("bind path MTU socket to %s: %w", bind, err)
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &Prober{fd: fd, family: family(bind)}, nil
}

// PathMTU returns the kernel's MTU of the path to a node in bytes, including outer headers: the MTU
// of the route, or a smaller one learned by path MTU discovery. It sends no packet.
func (p *Prober) PathMTU(to netip.AddrPort) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return 0, fmt.Errorf("find route to %s: %w", to, os.ErrClosed)
	}
	if err := unix.Connect(p.fd, sockaddr(to)); err != nil {
		return 0, fmt.Errorf("find route to %s: %w", to, err)
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if p.family == unix.AF_INET6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	mtu, err := unix.GetsockoptInt(p.fd, level, option)
	if err != nil {
		return 0, fmt.Errorf("read path MTU to %s: %w", to, err)
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
