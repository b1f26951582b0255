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

// Latency is how long answers to single small datagrams took.
type Latency struct {
	Samples        int
	Lost           int
	Requests       int // with the warm-up
	P50, P99, P999 time.Duration
	Max            time.Duration
}

const (
	// rttPayload is the size of a request and of its answer, in bytes.
	rttPayload = 64
	// rttPatience is when an answer counts as lost.
	rttPatience = 200 * time.Millisecond
)

// Packets is the number of requests and answers, as each request is answered.
func (l Latency) Packets() float64 { return 2 * float64(l.Requests) }

// RTT sends one datagram after the other, each after a pause that follows the answer to the one
// before, for d. Without a pause this is what sockperf's ping-pong does, and what its --full-rtt
// reports.
func RTT(ctx context.Context, from, to End, between, d time.Duration) (Latency, error) {
	l, err := runRTT(ctx, from, to, between, d)
	if err != nil {
		return l, fmt.Errorf("round trips from %s to %s: %w", from.NS.Name, to.NS.Name, err)
	}
	return l, nil
}

func runRTT(ctx context.Context, from, to End, between, d time.Duration) (Latency, error) {
	server, at, err := to.bound(unix.SOCK_DGRAM, 0)
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
	if err := setNap(server); err != nil {
		return Latency{}, err
	}
	patience := unix.NsecToTimeval(int64(rttPatience))
	if err := unix.SetsockoptTimeval(client, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return Latency{}, fmt.Errorf("set timeout: %w", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { answerAll(server) })
	samples, l, err := exchange(ctx, client, between, d)
	hangUp(server)
	wg.Wait()
	if err == nil && len(samples) == 0 {
		err = fmt.Errorf("%d requests and no answer", l.Lost)
	}
	l.summarize(samples)
	return l, err
}

// exchange sends requests for d, with a pause before each, and times the answers. At least one
// request counts, however late this thread is scheduled.
func exchange(ctx context.Context, fd int, between, d time.Duration) (samples []time.Duration, l Latency, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	message, answer := make([]byte, rttPayload), make([]byte, rttPayload)
	// The first round trips find the way; they do not count.
	warm := time.Now().Add(warmUp)
	var end time.Time // d after the first one that counts
	samples = make([]time.Duration, 0, 1<<16)
	for number := uint64(1); ctx.Err() == nil; number++ {
		if between > 0 {
			pause(between)
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

// roundTrip returns 0 if the answer is lost. Answers to earlier requests, which counted as lost,
// are passed over.
func roundTrip(fd int, message, answer []byte, start time.Time) (time.Duration, error) {
	if _, err := RawWrite(fd, message); err != nil && !transient(err) {
		return 0, fmt.Errorf("send: %w", err)
	}
	for {
		n, err := RawRead(fd, answer)
		took := time.Since(start)
		switch {
		case errors.Is(err, unix.EAGAIN), took > rttPatience:
			return 0, nil
		case err != nil && !transient(err):
			return 0, fmt.Errorf("receive: %w", err)
		case err == nil && n == len(message) && binary.BigEndian.Uint64(answer) == binary.BigEndian.Uint64(message):
			return took, nil
		}
	}
}

// transient says whether a UDP socket works on after the error: a signal, a full queue, an ICMP
// error about a datagram.
func transient(err error) bool {
	return errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ECONNREFUSED) ||
		errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}

// answerAll sends every datagram of the first client back, until the socket is hung up.
func answerAll(fd int) {
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
			known = unix.Connect(fd, client) == nil // and then its datagrams are all that is read
		}
		switch {
		case again(err), err != nil && transient(err):
		case err != nil, n == 0:
			return
		default:
			// The client notices what is missing.
			_, _ = RawWrite(fd, b[:n])
		}
	}
}

// summarize fills in what the samples say, and sorts them.
func (l *Latency) summarize(samples []time.Duration) {
	l.Samples = len(samples)
	if len(samples) == 0 {
		return
	}
	slices.Sort(samples)
	at := func(q float64) time.Duration { return samples[min(len(samples)-1, int(q*float64(len(samples))))] }
	l.P50, l.P99, l.P999, l.Max = at(0.50), at(0.99), at(0.999), samples[len(samples)-1]
}
