package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Connected is what became of many connections.
type Connected struct {
	PerSecond float64 // that went through
	// Resets counts those that were reset, or closed without an answer, with the warm-up. Of thousands a second from one
	// address one is now and then, without a tunnel too.
	Resets int64
}

// Connections opens TCP connections one after the other on so many workers for d: connect, one byte there, one byte
// back, reset.
func Connections(ctx context.Context, from, to End, workers int, d time.Duration) (Connected, error) {
	c, err := runConnections(ctx, from, to, workers, d)
	if err != nil {
		return c, fmt.Errorf("connections from %s to %s: %w", from.NS.Name, to.NS.Name, err)
	}
	return c, nil
}

func runConnections(ctx context.Context, from, to End, workers int, d time.Duration) (c Connected, err error) {
	listener, at, err := to.bound(unix.SOCK_STREAM, 0)
	if err != nil {
		return c, err
	}
	defer unix.Close(listener)
	if err := unix.Listen(listener, workers); err != nil {
		return c, fmt.Errorf("listen: %w", err)
	}
	var servers, clients sync.WaitGroup
	for range workers {
		servers.Go(func() { serveOne(listener) })
	}
	errs := make(chan error, workers) // one for each client
	done, resets := make([]atomic.Int64, 1), atomic.Int64{}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range workers {
		clients.Go(func() {
			err := from.NS.Do(func() error { return connectMany(ctx, at, &done[0], &resets) })
			if err != nil {
				errs <- err
			}
		})
	}
	before, after, elapsed, err := countBetween(ctx, done, d, errs)
	cancel()
	clients.Wait()
	hangUp(listener)
	servers.Wait()
	return Connected{PerSecond: float64(after[0]-before[0]) / elapsed.Seconds(), Resets: resets.Load()}, err
}

// connectMany makes connections until ctx ends, in the calling thread's namespace, and counts those that went through and
// those that were reset.
func connectMany(ctx context.Context, to netip.AddrPort, done, resets *atomic.Int64) error {
	family, peer := unix.AF_INET, sockaddr(to)
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	for ctx.Err() == nil {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		switch err := connectOnce(fd, peer); {
		case err == nil:
			done.Add(1)
		case errors.Is(err, unix.ECONNRESET):
			resets.Add(1)
		default:
			return err
		}
	}
	return nil
}

// connectOnce makes one connection, waits for an answer on it and resets it, which leaves no port waiting. It closes fd.
func connectOnce(fd int, to unix.Sockaddr) error {
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return fmt.Errorf("set linger: %w", err)
	}
	timeout := unix.NsecToTimeval(int64(stuckAfter))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return fmt.Errorf("set timeout: %w", err)
	}
	if err := retryInterrupted(func() error { return unix.Connect(fd, to) }); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	var b [1]byte
	if err := retryInterrupted(func() error { _, err := unix.Write(fd, b[:]); return err }); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	n, err := readByte(fd, &b)
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	if n == 0 {
		return fmt.Errorf("no answer: %w", unix.ECONNRESET)
	}
	return nil
}

// serveOne answers one connection after the other until the listener is hung up.
func serveOne(listener int) {
	var b [1]byte
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return
		}
		// What goes wrong here, the client sees. One that was reset while the server was not never sends its byte.
		_ = setNap(fd)
		if n, err := readByte(fd, &b); err == nil && n == 1 {
			_, _ = unix.Write(fd, b[:])
		}
		_ = unix.Close(fd)
	}
}

// readByte returns how many bytes it has read: none at the end of the connection.
func readByte(fd int, b *[1]byte) (n int, err error) {
	err = retryInterrupted(func() (err error) { n, err = unix.Read(fd, b[:]); return err })
	return n, err
}

func retryInterrupted(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
