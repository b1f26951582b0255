package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Latency is the result of round trips of single small datagrams.
type Latency struct {
	Samples        int
	Lost           int
	Requests       int // including the warm-up
	P50, P99, P999 time.Duration
	Max            time.Duration
}

const (
	// rttPayload is the size of a request and of its answer, in bytes.
	rttPayload = 64
	// rttTimeout is the time after which an answer counts as lost.
	rttTimeout = 200 * time.Millisecond
)

// Packets returns the number of packets of the requests and their answers.
func (l Latency) Packets() float64 { return 2 * float64(l.Requests) }

// RTT sends single datagrams for d and measures the time to each answer. After an answer it waits
// for gap before the next request. Without a gap this is the ping-pong mode of sockperf, with the
// times of its --full-rtt.
func RTT(ctx context.Context, from, to End, gap, d time.Duration) (Latency, error) {
	l, err := runRTT(ctx, from, to, gap, d)
	if err != nil {
		return l, fmt.Errorf("round trips from %s to %s: %w", from.NS.Name, to.NS.Name, err)
	}
	return l, nil
}

func runRTT(ctx context.Context, from, to End, gap, d time.Duration) (Latency, error) {
	server, at, err := to.bind(unix.SOCK_DGRAM, 0)
	if err != nil {
		return Latency{}, err
	}
	defer unix.Close(server)
	client, err := from.socket(unix.SOCK_DGRAM)
	if err != nil {
		return Latency{}, err
	}
	defer unix.Close(client)
	if err := unix.Connect(client, Sockaddr(at)); err != nil {
		return Latency{}, fmt.Errorf("connect to %s: %w", at, err)
	}
	if err := setIOTimeout(server); err != nil {
		return Latency{}, err
	}
	timeout := unix.NsecToTimeval(int64(rttTimeout))
	if err := unix.SetsockoptTimeval(client, unix.SOL_SOCKET, unix.SO_RCVTIMEO,
		&timeout); err != nil {
		return Latency{}, fmt.Errorf("set timeout: %w", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { echo(server) })
	samples, l, err := exchange(ctx, client, gap, d)
	shutdown(server)
	wg.Wait()
	if err == nil && len(samples) == 0 {
		err = fmt.Errorf("no answer to %d requests", l.Lost)
	}
	l.summarize(samples)
	return l, err
}

// exchange sends requests for d, with a gap before each, and times the answers. At least one
// request counts, even if this thread is scheduled late.
func exchange(ctx context.Context, fd int, gap,
	d time.Duration) (samples []time.Duration, l Latency, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	message, answer := make([]byte, rttPayload), make([]byte, rttPayload)
	// Round trips during the warm-up do not count.
	warm := time.Now().Add(warmUp)
	var end time.Time // d after the first request that counts
	samples = make([]time.Duration, 0, 1<<16)
	for number := uint64(1); ctx.Err() == nil; number++ {
		if gap > 0 {
			pause(gap)
		}
		start := time.Now()
		counts := start.After(warm)
		switch {
		case counts && end.IsZero():
			end = start.Add(d)
		case counts && start.After(end):
			return samples, l, nil
		}
		binary.BigEndian.PutUint64(message, number)
		took, err := roundTrip(fd, message, answer, start)
		l.Requests++
		switch {
		case err != nil:
			return samples, l, err
		case !counts:
		case took == 0:
			l.Lost++
		default:
			samples = append(samples, took)
		}
	}
	return samples, l, ctx.Err()
}

// roundTrip sends a request and returns the time to its answer, 0 if the answer is lost. It ignores
// late answers to earlier requests.
func roundTrip(fd int, message, answer []byte, start time.Time) (time.Duration, error) {
	if _, err := RawWrite(fd, message); err != nil && !transient(err) {
		return 0, fmt.Errorf("send: %w", err)
	}
	for {
		n, err := RawRead(fd, answer)
		took := time.Since(start)
		switch {
		case errors.Is(err, unix.EAGAIN), took > rttTimeout:
			return 0, nil
		case err != nil && !transient(err):
			return 0, fmt.Errorf("receive: %w", err)
		case err == nil && n == len(message) &&
			binary.BigEndian.Uint64(answer) == binary.BigEndian.Uint64(message):
			return took, nil
		}
	}
}

// transient reports whether a UDP socket remains usable after the error: a signal, a full queue, or
// an ICMP error.
func transient(err error) bool {
	return errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS) ||
		errors.Is(err, unix.ECONNREFUSED) ||
		errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}

// echo returns every datagram of the first client until the socket is shut down.
func echo(fd int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b := make([]byte, rttPayload)
	known := false
	for {
		var n int
		var client unix.Sockaddr
		var err error
		if known {
			n, err = RawRead(fd, b)
		} else if n, client, err = unix.Recvfrom(fd, b, 0); err == nil && n > 0 {
			known = unix.Connect(fd, client) == nil // only datagrams of this client are read from now on
		}
		switch {
		case retryable(err), err != nil && transient(err):
		case err != nil, n == 0:
			return
		default:
			// The client counts lost answers.
			_, _ = RawWrite(fd, b[:n])
		}
	}
}

// summarize sorts the samples and sets the quantiles.
func (l *Latency) summarize(samples []time.Duration) {
	l.Samples = len(samples)
	if len(samples) == 0 {
		return
	}
	slices.Sort(samples)
	at := func(q float64) time.Duration {
		return samples[min(len(samples)-1,
			int(q*float64(len(samples))))]
	}
	l.P50, l.P99, l.P999, l.Max = at(0.50), at(0.99), at(0.999), samples[len(samples)-1]
}
