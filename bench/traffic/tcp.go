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
	// tcpBlock is the size of a read or write in bytes, the default of iperf3.
	tcpBlock = 128 << 10
	// tcpWarmUp is longer than slow start and the growth of the buffers: hundreds of round trips.
	tcpWarmUp = 200 * time.Millisecond
)

// Throughput is the result of some TCP streams together.
type Throughput struct {
	BitsPerSecond float64
	Bytes         int64 // received, including the warm-up
	Retransmits   uint64
	// Slowest is the rate of the slowest stream in bits per second.
	Slowest float64
}

// TCP sends on the given number of streams and counts the bytes received within d, after a warm-up.
func TCP(ctx context.Context, from, to End, streams int, d time.Duration) (Throughput, error) {
	return TCPDuring(ctx, from, to, streams, sleepFor(d))
}

// TCPDuring is like [TCP], but counts while work runs. The streams are warmed up before work
// starts.
func TCPDuring(ctx context.Context, from, to End, streams int,
	work func(context.Context) error) (Throughput, error) {
	r, err := runTCP(ctx, from, to, streams, work)
	if err != nil {
		return r, fmt.Errorf("TCP from %s to %s: %w", from.NS.Name, to.NS.Name, err)
	}
	return r, nil
}

func runTCP(ctx context.Context, from, to End, streams int,
	work func(context.Context) error) (Throughput, error) {
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
		wg.Go(func() { fail(fmt.Errorf("a stream ended early: %w", sendLoop(senders[i]))) })
		wg.Go(func() {
			fail(fmt.Errorf("a stream ended early: %w",
				receiveLoop(receivers[i], &received[i])))
		})
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
		shutdown(fd)
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

// countDuring reads the counters before and after work, which starts after a warm-up. If ctx is
// done, it returns the cause.
func countDuring(ctx context.Context, counters []atomic.Int64,
	work func(context.Context) error) (before, after []int64, elapsed time.Duration, err error) {
	err = sleepFor(tcpWarmUp)(ctx)
	before = loadAll(counters)
	start := time.Now()
	if err == nil {
		err = work(ctx)
	}
	elapsed, after = time.Since(start), loadAll(counters)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return before, after, elapsed, err
}

func loadAll(counters []atomic.Int64) []int64 {
	values := make([]int64, len(counters))
	for i := range counters {
		values[i] = counters[i].Load()
	}
	return values
}

// sleepFor returns work that waits for d.
func sleepFor(d time.Duration) func(context.Context) error {
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

// connectPairs opens n connections and returns both ends of each. After an error it returns those
// opened before.
func connectPairs(from, to End, n int) (dialed, accepted []int, err error) {
	listener, at, err := to.bind(unix.SOCK_STREAM, 0)
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
		// Limits the connect and the time that sent data stays unacknowledged.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT,
			int(stallTimeout.Milliseconds())); err != nil {
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
		if err := errors.Join(setIOTimeout(fd), setIOTimeout(peer)); err != nil {
			return dialed, accepted, err
		}
	}
	return dialed, accepted, nil
}

// stallTimeout is the time without progress after which a generator gives up.
const stallTimeout = 5 * time.Second

// sendLoop writes until the socket is shut down.
func sendLoop(fd int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	block := make([]byte, tcpBlock)
	for {
		_, err := RawWrite(fd, block)
		if err != nil && !retryable(err) {
			return fmt.Errorf("send: %w", err)
		}
	}
}

// receiveLoop reads until the socket is shut down.
func receiveLoop(fd int, received *atomic.Int64) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	block := make([]byte, tcpBlock)
	for {
		n, err := RawRead(fd, block)
		if retryable(err) {
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
