package agent

import (
	"context"
	"sync/atomic"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
)

// pulse shows whether the loop that joins the parts turns. The zero value belongs
// to a daemon whose loop does not run, because it still waits for something.
type pulse struct{ last atomic.Int64 } // nanoseconds since 1970; 0: no loop runs

func (p *pulse) beat() { p.last.Store(time.Now().UnixNano()) }
func (p *pulse) rest() { p.last.Store(0) }

// stuck says that the loop runs and has not turned for so long.
func (p *pulse) stuck(limit time.Duration) bool {
	last := p.last.Load()
	return last != 0 && time.Since(time.Unix(0, last)) > limit
}

// watchdog tells systemd twice in the time of WatchdogSec that the daemon works.
// It falls silent while the loop is stuck, and is restarted for it.
func (d *weftd) watchdog(ctx context.Context) {
	limit, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		d.log.Warn("cannot use systemd's watchdog", "err", err)
	}
	if err != nil || limit == 0 {
		return
	}
	tick := time.NewTicker(limit / 2)
	defer tick.Stop()
	for {
		if d.pulse.stuck(limit / 2) {
			d.log.Error("the daemon's loop does not turn any more", "limit", limit)
		} else {
			notify(d.log, systemd.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
