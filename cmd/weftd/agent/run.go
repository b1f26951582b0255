package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"weft/cmd/weftd/config"
	"weft/ctrl"
	"weft/ctrl/netfilter"
	"weft/dataplane"
	"weft/lease"
	"weft/metrics"
)

// Run runs the daemon until ctx ends (nil) or a part cannot start or go on.
// The health server comes first, so that a probe gets an answer at once.
func Run(ctx context.Context, cfg *config.Config, build metrics.Build, log *slog.Logger) error {
	for _, note := range ruleNotes(cfg.Rules) {
		log.Info("packet filter", "note", note)
	}
	d := &weftd{cfg: cfg, log: log, build: build, name: nodeName(cfg.Node, log)}
	group, running := errgroup.WithContext(ctx)
	if cfg.Health.Port > 0 {
		h, err := listenHealth(ctx, cfg.Health, d.status, log)
		if err != nil {
			return err
		}
		group.Go(func() error { return h.run(running) })
	}
	group.Go(func() error { return d.runOn(running) })
	group.Go(func() error {
		d.watchdog(running)
		return nil
	})
	group.Go(func() error {
		<-running.Done()
		notify(log, systemd.SdNotifyStopping)
		return nil
	})
	err := group.Wait()
	if ctx.Err() != nil {
		// A signal ended it: what parts report while they are taken down is no failure.
		log.Info("stopped", "reason", context.Cause(ctx))
		return nil
	}
	return err
}

// notify tells systemd, if it started us.
func notify(log *slog.Logger, state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		log.Warn("cannot notify systemd", "err", err)
	}
}

// runOn runs the daemon, and again from the start whenever its network config has
// become another. What the kernel has of the old one is kept or cleared away by
// the new run, which knows it from the subnet file, as after a restart of the process.
func (d *weftd) runOn(ctx context.Context) error {
	for {
		err := d.run(ctx)
		if !errors.Is(err, errNetworkChanged) {
			return err
		}
		d.log.Warn("the network config has changed, starting over with it")
		d.seen.Store(&view{waiting: err}) // what the old run saw to is nobody's now
	}
}

// run brings the parts up in order and keeps them until ctx ends. Where a step
// fails, what came before it is taken down again.
func (d *weftd) run(ctx context.Context) (err error) {
	store, err := d.openStore()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	network, err := d.awaitNetwork(ctx, store)
	if err != nil {
		return err
	}
	if d.start, err = d.awaitStart(ctx, store); err != nil {
		return err
	}
	kernel, err := ctrl.OpenKernel()
	if err != nil {
		return err
	}
	defer kernel.Close()
	iface, err := ctrl.ChooseIface(d.ifaceOptions(network), kernel)
	if err != nil {
		return err
	}
	d.log.Info("interface chosen", "name", iface.Name, "reason", iface.Reason, "mtu", iface.MTU,
		"address", show(iface.Addr, iface.Addr6), "public", show(iface.Public, iface.Public6))
	n, err := d.newNode(kernel, network, iface)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	n.connect(store)
	return n.run(ctx)
}

// run runs the node's parts and the loop that joins them.
func (n *node) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	states, ifaces := make(latest[lease.State], 1), make(latest[ifaceNews], 1)
	if n.engine != nil {
		group.Go(func() error { return n.engine.Run(ctx) })
	}
	group.Go(func() error { return n.reconciler.Run(ctx) })
	group.Go(func() error { return n.rules.Run(ctx) })
	group.Go(func() error {
		return ctrl.WatchIface(ctx, n.ifaceOptions(n.network), func(i ctrl.Iface, err error) { ifaces.put(ifaceNews{i, err}) })
	})
	group.Go(func() error { return n.manager.Run(ctx, states.put) })
	if n.cluster != nil {
		group.Go(func() error { return n.followNetwork(ctx) })
	}
	group.Go(func() error {
		n.loop(ctx, states, ifaces)
		return nil
	})
	return group.Wait()
}

// configRetry is the pause between two looks for what is waited for, as flannel's.
const configRetry = time.Second

// awaitNetwork reads the network config, trying until ctx ends.
func (d *weftd) awaitNetwork(ctx context.Context, s lease.Store) (lease.Network, error) {
	return awaitAnswer(ctx, d, "waiting for the network config", s.Network)
}

// awaitAnswer calls get until it succeeds or ctx ends. Why it does not is shown by
// /readyz, and logged once for as long as it stays the same.
func awaitAnswer[T any](ctx context.Context, d *weftd, what string, get func(context.Context) (T, error)) (T, error) {
	logged := ""
	for {
		t, err := get(ctx)
		if err == nil {
			return t, nil
		}
		if ctx.Err() != nil {
			return t, ctx.Err()
		}
		d.seen.Store(&view{waiting: err})
		if text := err.Error(); text != logged {
			logged = text
			d.log.Error(what, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(configRetry):
		}
	}
}

func (d *weftd) ifaceOptions(n lease.Network) ctrl.IfaceOptions {
	return ctrl.IfaceOptions{
		Iface:      d.cfg.Underlay.Interfaces,
		Regex:      d.cfg.Underlay.Patterns,
		CanReach:   d.cfg.Underlay.CanReach,
		PublicIP:   cmp.Or(d.start.PublicIP, d.cfg.Underlay.PublicIP),
		PublicIPv6: cmp.Or(d.start.PublicIPv6, d.cfg.Underlay.PublicIPv6),
		IPv4:       n.EnableIPv4,
		IPv6:       n.EnableIPv6,
		Overlay:    overlay(n),
	}
}

// overlay are the pods' networks.
func overlay(n lease.Network) []netip.Prefix {
	return slices.DeleteFunc([]netip.Prefix{n.Network, n.IPv6Network}, func(p netip.Prefix) bool { return !p.IsValid() })
}

// newNode makes the backend that the network config asks for, and the engine if
// that backend's packets go through one. The engine comes before the lease: a port
// in use then ends the daemon without a lease that nobody serves for a day.
func (d *weftd) newNode(kernel *ctrl.Kernel, network lease.Network, iface ctrl.Iface) (*node, error) {
	host, err := kernel.Self(network, iface, ctrl.SelfOptions{KeyFile: d.cfg.Backend.WireGuardKeyFile, Blackhole: d.cfg.Backend.BlackholeRoute})
	if err != nil {
		return nil, err
	}
	keepVTEP(&host, d.start.Previous)
	previous := readPreviousSubnets(d.cfg.Node.SubnetFile, d.log)
	n := &node{
		weftd:      d,
		network:    network,
		host:       host,
		reconciler: ctrl.NewReconciler(kernel, ctrl.ReconcilerOptions{Log: d.log}),
		rules: netfilter.New(netfilter.Options{Log: d.log, Resync: d.cfg.Rules.Resync,
			Previous: prefixes(previous)}),
		previous: previous,
		former:   abandonedNetworks(previous, overlay(network)),
	}
	if err := n.prepare(iface); err != nil {
		return nil, err
	}
	spec := n.backend.Spec()
	if !spec.Userspace {
		return n, nil
	}
	// The device's name and the port may still be taken by what another backend left.
	if err := ctrl.ApplyOnce(kernel, n.plan()); err != nil {
		d.log.Warn("cannot clear away what an earlier backend left", "err", err)
	}
	if n.engine, err = d.openEngine(iface, spec); err != nil {
		return nil, err
	}
	if err := n.prepare(iface); err != nil { // now with the device's name
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

// devicePattern is the name of flannel's TUN device; the kernel counts up.
const devicePattern = "flannel%d"

func (d *weftd) openEngine(iface ctrl.Iface, spec ctrl.Spec) (*dataplane.Engine, error) {
	e, err := dataplane.Open(d.engineConfig(iface, spec))
	if err != nil {
		return nil, fmt.Errorf("%s backend on port %d: %w", spec.Type, spec.Port, err)
	}
	return e, nil
}

func (d *weftd) engineConfig(iface ctrl.Iface, spec ctrl.Spec) dataplane.Config {
	return dataplane.Config{
		Device:           devicePattern,
		Bind:             bindAddress(iface, spec),
		MTU:              spec.MTU,
		Workers:          d.cfg.Engine.Workers,
		SourcePort:       uint16(d.cfg.Engine.SourcePort),
		Spin:             d.cfg.Engine.Spin,
		ECN:              d.cfg.Engine.OuterECN,
		DSCP:             d.cfg.Engine.OuterDSCP,
		SourceCheck:      d.cfg.Engine.SourceCheck,
		Mode:             d.cfg.Engine.Mode,
		DisabledFeatures: d.cfg.Engine.Without,
		Log:              d.log,
	}
}

// connect makes the manager that will hold this node's lease in the store.
func (n *node) connect(store lease.Store) {
	n.cluster, _ = store.(clusterStore)
	n.attrs = attrs(n.host.Iface, n.backend.Spec())
	n.manager = lease.NewManager(store, lease.Request{
		Network:   n.network,
		Attrs:     n.attrs,
		Node:      n.name,
		Previous:  n.previous.Subnet.Masked(),
		Previous6: n.previous.Subnet6.Masked(),
	}, lease.Options{RenewMargin: n.cfg.Lease.RenewMargin, Log: n.log})
}

// close takes down what run leaves.
func (n *node) close() error {
	if n.engine == nil {
		return nil
	}
	return n.engine.Close()
}

// nodeName is what the stores that know nodes by name call this one.
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

// latest passes the newest value from one sender to one receiver; older ones that
// were not taken are dropped. Its capacity must be 1.
type latest[T any] chan T

func (l latest[T]) put(v T) {
	select {
	case <-l:
	default:
	}
	l <- v
}
