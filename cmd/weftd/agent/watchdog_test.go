package agent

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

func TestWatchdogFallsSilentWithTheLoop(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	const limit = 200 * time.Millisecond
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", strconv.FormatInt(limit.Microseconds(), 10))
	ctx, cancel := context.WithCancel(t.Context())
	d := &weftd{log: slog.New(slog.DiscardHandler)}
	var running sync.WaitGroup
	running.Go(func() { d.watchdog(ctx) })
	defer running.Wait()
	defer cancel()
	// sign reads one message, or says that none came in the time that systemd would wait.
	sign := func() bool {
		if err := socket.SetReadDeadline(time.Now().Add(5 * limit)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 64)
		n, err := socket.Read(b)
		if err == nil && string(b[:n]) != "WATCHDOG=1" {
			t.Errorf("sent %q", b[:n])
		}
		return err == nil
	}
	for range 3 {
		if !sign() {
			t.Fatal("no sign of life before the loop runs")
		}
	}
	d.pulse.beat()
	silent := time.Now()
	for sign() {
		if time.Since(silent) > 20*limit {
			t.Fatal("signs of life while the loop is stuck")
		}
	}
	d.pulse.rest()
	if !sign() {
		t.Error("no sign of life after the loop has ended")
	}
}
