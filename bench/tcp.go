package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// tcpBlock is what one read or write moves at most, in bytes: as iperf3's default.
const tcpBlock = 128 << 10

// Throughput is what some TCP streams moved together.
type Throughput struct {
	BitsPerSecond float64
	Bytes         int64 // that arrived in all, with the warm-up
	Retransmits   uint64
	// Slowest is the bits per second of the slowest stream.
	Slowest float64
}

// TCP sends from one end to the other on so many streams at once, and counts what arrives for d, after a warm-up of a
// fifth of that.
func TCP(ctx context.Context, from, to End, streams int, d time.Duration) (Throughput, error) {
	r, err := runTCP(ctx, from, to, streams, d)
	if err != nil {
		return r, fmt.Errorf("TCP from %s to %s: %w", from.NS.Name, to.NS.Name, err)
	}
	return r, nil
}

func runTCP(ctx context.Context, from, to End, streams int, d time.Duration) (Throughput, error) {
	senders, receivers, err := connectPairs(from, to, streams)
	defer func() { closeAll(senders); closeAll(receivers) }()
	if err != nil {
		return Throughput{}, err
	}
	var wg sync.WaitGroup
	errs := make(chan error, 2*streams) // one for each goroutine
	received := make([]atomic.Int64, streams)
	for i := range streams {
		wg.Go(func() { errs <- pour(senders[i]) })
		wg.Go(func() { errs <- drain(receivers[i], &received[i]) })
	}
	before, after, elapsed, err := countBetween(ctx, received, d, errs)
	result := Throughput{}
	for _, fd := range senders {
		info, ierr := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		err = errors.Join(err, ierr)
		if ierr == nil {
			result.Retransmits += uint64(info.Total_retrans)
		}
	}
	for _, fd := range append(senders, receivers...) {
		hangUp(fd)
	}
	wg.Wait()
	for i := range streams {
		result.Bytes += received[i].Load()
		rate := float64(after[i]-before[i]) * 8 / elapsed.Seconds()
		result.BitsPerSecond += rate
		if i == 0 || rate < result.Slowest {
			result.Slowest = rate
		}
	}
	return result, err
}

// countBetween reads the counters after the warm-up and again d later. An error that comes before that ends it.
func countBetween(ctx context.Context, counters []atomic.Int64, d time.Duration, errs <-chan error) (before, after []int64, elapsed time.Duration, err error) {
	before, after = make([]int64, len(counters)), make([]int64, len(counters))
	var start time.Time
	for _, step := range []struct {
		wait time.Duration
		into []int64
	}{{d / 5, before}, {d, after}} {
		timer := time.NewTimer(step.wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return before, after, d, ctx.Err()
		case err := <-errs:
			return before, after, d, fmt.Errorf("a stream ended early: %w", err)
		}
		elapsed, start = time.Since(start), time.Now()
		for i := range counters {
			step.into[i] = counters[i].Load()
		}
	}
	return before, after, elapsed, nil
}

// connectPairs makes n connections and returns the two ends of each, also of those made before an error.
func connectPairs(from, to End, n int) (dialed, accepted []int, err error) {
	listener, at, err := to.bound(unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(listener)
	if err := unix.Listen(listener, n); err != nil {
		return nil, nil, fmt.Errorf("listen: %w", err)
	}
	for range n {
		fd, err := from.socket(unix.SOCK_STREAM)
		if err != nil {
			return dialed, accepted, err
		}
		dialed = append(dialed, fd)
		// Bounds the connect as well as a send that nobody acknowledges.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(stuckAfter.Milliseconds())); err != nil {
			return dialed, accepted, fmt.Errorf("set timeout: %w", err)
		}
		if err := unix.Connect(fd, sockaddr(at)); err != nil {
			return dialed, accepted, fmt.Errorf("connect to %s: %w", at, err)
		}
		peer, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err != nil {
			return dialed, accepted, fmt.Errorf("accept: %w", err)
		}
		accepted = append(accepted, peer)
		if err := errors.Join(setNap(fd), setNap(peer)); err != nil {
			return dialed, accepted, err
		}
	}
	return dialed, accepted, nil
}

// stuckAfter is when a generator gives up on a network that carries nothing.
const stuckAfter = 5 * time.Second

// pour writes until the socket is hung up.
func pour(fd int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	block := make([]byte, tcpBlock)
	for {
		_, err := write(fd, block)
		if err != nil && !again(err) {
			return fmt.Errorf("send: %w", err)
		}
	}
}

// drain reads until the socket is hung up.
func drain(fd int, received *atomic.Int64) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	block := make([]byte, tcpBlock)
	for {
		n, err := read(fd, block)
		if again(err) {
			continue
		}
		if err == nil && n == 0 {
			err = io.EOF
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		received.Add(int64(n))
	}
}
