package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"weft/cmd/weftd/config"
	"weft/ctrl/underlay"
	"weft/lease"
	"weft/lease/kube"
	"weft/metrics"
)

// daemon is the state that lasts as long as the process. Each network config gets an [agent].
type daemon struct {
	cfg      *config.Config
	log      *slog.Logger
	build    metrics.Build
	nodeName string
	limits   limits
	fds      *fdStore

	snapshot  atomic.Pointer[snapshot] // source of the status; nil before the first
	heartbeat heartbeat                // of the agent's loop

	// inUse is the interface to the other nodes; it outlasts a change of the network config. Nil
	// before the first.
	inUse    atomic.Pointer[underlay.Iface]
	hints    kube.NodeHints // from the cluster; zero without one
	hearing  hearing        // of other nodes
	watching sync.Mutex     // held while it looks for packets of a trace
	// configErr is why the last change of the network config was rejected; nil if it is in force.
	configErr atomic.Pointer[error]
}

// Run runs the daemon until ctx is done, which is a success, or until a part fails. The health
// server starts first, so that probes get an answer while the rest waits.
func Run(ctx context.Context, cfg *config.Config, build metrics.Build, log *slog.Logger) error {
	for _, note := range ruleNotes(cfg.Rules) {
		log.Info("packet filter note", "note", note)
	}
	d := &daemon{
		cfg: cfg, log: log, build: build, nodeName: nodeName(cfg.Node, log),
		limits: readLimits(cfg.Engine, log), fds: newFDStore(log),
	}
	d.limits.apply(log)
	group, running := errgroup.WithContext(ctx)
	if cfg.Health.Port > 0 {
		h, err := listenHealth(ctx, cfg.Health, d.limits.Connections, d, log)
		if err != nil {
			return err
		}
		group.Go(func() error { return h.run(running) })
	}
	if c := d.startControl(ctx); c != nil {
		group.Go(func() error { return c.run(running, d.endpoints()) })
	}
	group.Go(func() error { return d.runAgents(running) })
	group.Go(func() error {
		d.watchdog(running)
		return nil
	})
	group.Go(func() error {
		<-running.Done()
		notifySystemd(log, systemd.SdNotifyStopping)
		return nil
	})
	err := group.Wait()
	if ctx.Err() != nil {
		// Errors of parts that are being stopped are not failures.
		log.Info("stopped", "reason", context.Cause(ctx))
		return nil
	}
	return err
}

// ifaceInUse returns the interface to the other nodes; it is zero before the first choice.
func (d *daemon) ifaceInUse() underlay.Iface {
	if i := d.inUse.Load(); i != nil {
		return *i
	}
	return underlay.Iface{}
}

// nodeName returns the name of this node in the lease stores.
func nodeName(c config.Node, log *slog.Logger) string {
	if c.Name != "" {
		return c.Name
	}
	name, err := os.Hostname()
	if err != nil {
		log.Warn("no --node-name and no host name", "err", err)
	}
	return name
}

// notifySystemd sends a state to systemd if it started this process.
func notifySystemd(log *slog.Logger, state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		log.Warn("cannot notify systemd", "err", err)
	}
}

// runAgents runs one agent after the other, each until the network config changes. The next agent
// finds the kernel state of its predecessor through the subnet file, as after a restart of the
// process, and keeps or removes it.
func (d *daemon) runAgents(ctx context.Context) error {
	for {
		err := d.runAgent(ctx)
		if !errors.Is(err, errNetworkChanged) {
			return err
		}
		d.log.Warn("network config changed, restarting with it")
		d.fds.discard()
		d.snapshot.Store(&snapshot{waiting: err})
	}
}

// retryInterval is the pause between two attempts of retry, the same as flannel's.
const retryInterval = time.Second

// awaitNetwork reads the network config, retrying until ctx is done.
func (d *daemon) awaitNetwork(ctx context.Context, s lease.Store) (lease.Network, error) {
	return retry(ctx, d, "waiting for the network config", s.Network)
}

// retry calls get until it succeeds or ctx is done. The error is shown by /readyz and logged as a
// warning with the text msg, once while it stays the same.
func retry[T any](
	ctx context.Context, d *daemon, msg string, get func(context.Context) (T, error),
) (T, error) {
	lastLogged := ""
	for {
		t, err := get(ctx)
		if err == nil {
			return t, nil
		}
		if ctx.Err() != nil {
			return t, ctx.Err()
		}
		d.snapshot.Store(&snapshot{waiting: err})
		if text := err.Error(); text != lastLogged {
			lastLogged = text
			d.log.Warn(msg, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryInterval):
		}
	}
}
