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

// ConnectResult is the result of [Connections].
type ConnectResult struct {
	PerSecond float64 // successful connections
	// Resets counts connections that were reset or closed without an answer, including the warm-up.
	// One in thousands from one address is normal, without a tunnel too.
	Resets int64
}

// Connections opens TCP connections for d, one after the other on each of the workers: connect, one
// byte each way, reset.
func Connections(ctx context.Context, from, to End, workers int,
	d time.Duration) (ConnectResult, error) {
	c, err := runConnections(ctx, from, to, workers, d)
	if err != nil {
		return c, fmt.Errorf("connections from %s to %s: %w", from.NS.Name, to.NS.Name, err)
	}
	return c, nil
}

func runConnections(ctx context.Context, from, to End, workers int,
	d time.Duration) (c ConnectResult, err error) {
	listener, at, err := to.bind(unix.SOCK_STREAM, 0)
	if err != nil {
		return c, err
	}
	defer unix.Close(listener)
	if err := unix.Listen(listener, workers); err != nil {
		return c, fmt.Errorf("listen: %w", err)
	}
	var servers, clients sync.WaitGroup
	for range workers {
		servers.Go(func() { serve(listener) })
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
	before, after, elapsed, err := countDuring(ctx, many.made, sleepFor(d))
	many.over.Store(true)
	clients.Wait()
	shutdown(listener)
	servers.Wait()
	made := after[0] - before[0]
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx) // including a failure after the count
	case err == nil && made == 0:
		err = errors.New("no connection succeeded")
	}
	return ConnectResult{PerSecond: float64(made) / elapsed.Seconds(),
		Resets: many.resets.Load()}, err
}

// connector opens connections on several threads.
type connector struct {
	to     netip.AddrPort
	over   atomic.Bool    // finish the current connections and open no more
	made   []atomic.Int64 // one element, for countDuring
	resets atomic.Int64
}

// run opens connections one after the other in the calling thread's namespace.
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

// connectOnce opens a connection, waits for an answer and resets the connection, which leaves no
// port in TIME-WAIT. It closes fd.
func connectOnce(ctx context.Context, fd int, to unix.Sockaddr) error {
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER,
		&unix.Linger{Onoff: 1}); err != nil {
		return fmt.Errorf("set linger: %w", err)
	}
	if err := setIOTimeout(fd); err != nil {
		return err
	}
	if err := retryBlocked(ctx, func() error { return unix.Connect(fd, to) }); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	var b [1]byte
	if err := retryBlocked(ctx, func() error {
		_,
			err := unix.Write(fd, b[:])
		return err
	}); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	n := 0
	if err := retryBlocked(ctx, func() (err error) {
		n,
			err = unix.Read(fd, b[:])
		return err
	}); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	if n == 0 {
		return fmt.Errorf("no answer: %w", unix.ECONNRESET)
	}
	return nil
}

// retryBlocked repeats a call on a socket with an I/O timeout until it completes, for stallTimeout
// at most.
func retryBlocked(ctx context.Context, call func() error) error {
	for start := time.Now(); ; {
		err := call()
		switch {
		// EINPROGRESS and EALREADY: the connection is being established.
		case !retryable(err) && !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.EALREADY):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Since(start) > stallTimeout:
			return unix.ETIMEDOUT
		}
	}
}

// serve answers one connection after the other until the listener is shut down.
func serve(listener int) {
	var b [1]byte
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return
		}
		// The client sees errors of this connection. The byte never arrives if only the client's
		// end was reset.
		_ = setIOTimeout(fd)
		if n, err := readByte(fd, &b); err == nil && n == 1 {
			_, _ = unix.Write(fd, b[:])
		}
		_ = unix.Close(fd)
	}
}

// readByte returns the number of bytes read: 0 at the end of the connection.
func readByte(fd int, b *[1]byte) (n int, err error) {
	for {
		if n, err = unix.Read(fd, b[:]); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
