package traffic

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

const (
	// tcpBlock is what one read or write moves at most, in bytes: as iperf3's default.
	tcpBlock = 128 << 10
	// tcpWarmUp leaves slow start and the growth of the buffers behind, hundreds of round trips.
	tcpWarmUp = 200 * time.Millisecond
)

// Throughput is what some TCP streams moved together.
type Throughput struct {
	BitsPerSecond float64
	Bytes         int64 // that arrived in all, with the warm-up
	Retransmits   uint64
	// Slowest is the bits per second of the slowest stream.
	Slowest float64
}

// TCP sends from one end to the other on so many streams at once, and counts what arrives for d,
// after a warm-up.
func TCP(ctx context.Context, from, to End, streams int, d time.Duration) (Throughput, error) {
	return TCPDuring(ctx, from, to, streams, lasting(d))
}

// TCPDuring is TCP that counts for as long as work takes: the streams are warm before it begins and
// pour until it ends.
func TCPDuring(ctx context.Context, from, to End, streams int, work func(context.Context) error) (Throughput, error) {
	r, err := runTCP(ctx, from, to, streams, work)
	if err != nil {
		return r, fmt.Errorf("TCP from %s to %s: %w", from.NS.Name, to.NS.Name, err)
	}
	return r, nil
}

func runTCP(ctx context.Context, from, to End, streams int, work func(context.Context) error) (Throughput, error) {
	senders, receivers, err := connectPairs(from, to, streams)
	defer func() { closeAll(senders); closeAll(receivers) }()
	if err != nil {
		return Throughput{}, err
	}
	var wg sync.WaitGroup
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	received := make([]atomic.Int64, streams)
	for i := range streams {
		wg.Go(func() { fail(fmt.Errorf("a stream ended early: %w", pour(senders[i]))) })
		wg.Go(func() { fail(fmt.Errorf("a stream ended early: %w", drain(receivers[i], &received[i]))) })
	}
	before, after, elapsed, err := countDuring(ctx, received, work)
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

// countDuring reads the counters before and after work, which begins after a warm-up. When ctx
// ends, its cause is the error.
func countDuring(ctx context.Context, counters []atomic.Int64, work func(context.Context) error) (before, after []int64, elapsed time.Duration, err error) {
	err = lasting(tcpWarmUp)(ctx)
	before = readAll(counters)
	start := time.Now()
	if err == nil {
		err = work(ctx)
	}
	elapsed, after = time.Since(start), readAll(counters)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return before, after, elapsed, err
}

func readAll(counters []atomic.Int64) []int64 {
	values := make([]int64, len(counters))
	for i := range counters {
		values[i] = counters[i].Load()
	}
	return values
}

// lasting is work that lets d pass.
func lasting(d time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// connectPairs makes n connections and returns the two ends of each, also of those made before an
// error.
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
		if err := unix.Connect(fd, Sockaddr(at)); err != nil {
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
		_, err := RawWrite(fd, block)
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
		n, err := RawRead(fd, block)
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
