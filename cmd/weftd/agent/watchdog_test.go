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

func TestWatchdogStuckLoop(t *testing.T) {
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
	d := &daemon{log: slog.New(slog.DiscardHandler)}
	var running sync.WaitGroup
	running.Go(func() { d.watchdog(ctx) })
	defer running.Wait()
	defer cancel()
	// notified reads one message. It reports false if none arrives in the time that systemd waits.
	notified := func() bool {
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
		if !notified() {
			t.Fatal("no notification before the loop runs")
		}
	}
	d.heartbeat.beat()
	silent := time.Now()
	for notified() {
		if time.Since(silent) > 20*limit {
			t.Fatal("notifications while the loop is stuck")
		}
	}
	d.heartbeat.stop()
	if !notified() {
		t.Error("no notification after the end of the loop")
	}
}
