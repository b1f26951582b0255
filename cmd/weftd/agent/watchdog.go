package agent

import (
	"context"
	"sync/atomic"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
)

// heartbeat is the time of the last turn of the agent's loop. It is zero while no loop runs, as
// before the network config is available.
type heartbeat struct{ last atomic.Int64 } // Unix time in nanoseconds

func (h *heartbeat) beat() { h.last.Store(time.Now().UnixNano()) }
func (h *heartbeat) stop() { h.last.Store(0) }

// stale reports whether a loop runs whose last beat is more than limit ago.
func (h *heartbeat) stale(limit time.Duration) bool {
	last := h.last.Load()
	return last != 0 && time.Since(time.Unix(0, last)) > limit
}

// watchdog notifies systemd twice per WatchdogSec. It stops while the loop is stuck, so that
// systemd restarts the daemon.
func (d *daemon) watchdog(ctx context.Context) {
	limit, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		d.log.Warn("cannot use systemd's watchdog", "err", err)
	}
	if err != nil || limit == 0 {
		return
	}
	ticker := time.NewTicker(limit / 2)
	defer ticker.Stop()
	for {
		if d.heartbeat.stale(limit / 2) {
			d.log.Error("main loop is stuck", "limit", limit)
		} else {
			notifySystemd(d.log, systemd.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
