package traffic

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"weft/deploy/lab"
)

// The streams are warmed up before work starts, and send until it returns.
func TestNetnsTCPDuring(t *testing.T) {
	from, to := LinkedEnds(t)
	received := func() uint64 {
		link, err := to.NS.Link("eth0")
		if err != nil {
			t.Error(err)
		}
		return link.Counters.RxBytes
	}
	start := time.Now()
	r, err := TCPDuring(t.Context(), from, to, 1, func(ctx context.Context) error {
		if warm := time.Since(start); warm < tcpWarmUp || received() < 1e6 {
			t.Errorf("%d bytes and %v of warm-up", received(), warm)
		}
		// Until far more came than the buffers hold.
		more := received() + 100e6
		return lab.Await(ctx, 20*time.Second, "bytes", func() error {
			if received() < more {
				return errors.New("few")
			}
			return nil
		})
	})
	if err != nil || r.BitsPerSecond <= 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// If a stream fails, work is cancelled and the error is that of the stream.
func TestCountDuringStreamError(t *testing.T) {
	ctx, fail := context.WithCancelCause(t.Context())
	_, _, _, err := countDuring(ctx, make([]atomic.Int64, 1), func(ctx context.Context) error {
		fail(io.EOF)
		<-ctx.Done()
		return ctx.Err()
	})
	if !errors.Is(err, io.EOF) {
		t.Errorf("%v, want the error of the stream", err)
	}
}
