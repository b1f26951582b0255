package traffic

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
	// Resets counts those that were reset, or closed without an answer, with the warm-up. Of
	// thousands a second from one address one is now and then, without a tunnel too.
	Resets int64
}

// Connections opens TCP connections one after the other on so many workers for d: connect, one byte
// there, one byte back, reset.
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
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	many := connector{to: at, made: make([]atomic.Int64, 1)}
	for range workers {
		clients.Go(func() {
			if err := from.NS.Do(func() error { return many.run(ctx) }); err != nil {
				fail(err)
			}
		})
	}
	before, after, elapsed, err := countDuring(ctx, many.made, lasting(d))
	many.over.Store(true)
	clients.Wait()
	hangUp(listener)
	servers.Wait()
	made := after[0] - before[0]
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx) // also that of a client whose last connection failed after the count
	case err == nil && made == 0:
		err = errors.New("not one went through")
	}
	return Connected{PerSecond: float64(made) / elapsed.Seconds(), Resets: many.resets.Load()}, err
}

// connector makes connections, on several threads.
type connector struct {
	to     netip.AddrPort
	over   atomic.Bool    // finish what is under way, and begin no other
	made   []atomic.Int64 // one, as countDuring wants it
	resets atomic.Int64
}

// run makes connections one after the other in the calling thread's namespace.
func (c *connector) run(ctx context.Context) error {
	family, peer := unix.AF_INET, Sockaddr(c.to)
	if c.to.Addr().Is6() {
		family = unix.AF_INET6
	}
	for !c.over.Load() {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		switch err := connectOnce(ctx, fd, peer); {
		case err == nil:
			c.made[0].Add(1)
		case errors.Is(err, unix.ECONNRESET):
			c.resets.Add(1)
		default:
			return err
		}
	}
	return nil
}

// connectOnce makes one connection, waits for an answer on it and resets it, which leaves no port
// waiting. It closes fd.
func connectOnce(ctx context.Context, fd int, to unix.Sockaddr) error {
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return fmt.Errorf("set linger: %w", err)
	}
	if err := setNap(fd); err != nil {
		return err
	}
	if err := patiently(ctx, func() error { return unix.Connect(fd, to) }); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	var b [1]byte
	if err := patiently(ctx, func() error { _, err := unix.Write(fd, b[:]); return err }); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	n := 0
	if err := patiently(ctx, func() (err error) { n, err = unix.Read(fd, b[:]); return err }); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	if n == 0 {
		return fmt.Errorf("no answer: %w", unix.ECONNRESET)
	}
	return nil
}

// patiently repeats a call whose socket naps (setNap) until it is done, for as long as a generator
// is patient.
func patiently(ctx context.Context, call func() error) error {
	for start := time.Now(); ; {
		err := call()
		switch {
		// The latter two: the connection is still being made.
		case !again(err) && !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.EALREADY):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Since(start) > stuckAfter:
			return unix.ETIMEDOUT
		}
	}
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
		// What goes wrong here, the client sees. One that was reset while the server was not never
		// sends its byte.
		_ = setNap(fd)
		if n, err := readByte(fd, &b); err == nil && n == 1 {
			_, _ = unix.Write(fd, b[:])
		}
		_ = unix.Close(fd)
	}
}

// readByte returns how many bytes it has read: none at the end of the connection.
func readByte(fd int, b *[1]byte) (n int, err error) {
	for {
		if n, err = unix.Read(fd, b[:]); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
