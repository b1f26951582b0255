package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/ctrl"
	"weft/ctrl/backend"
	"weft/ctrl/ike"
	"weft/ctrl/netfilter"
	"weft/ctrl/underlay"
	"weft/dataplane"
	"weft/lease"
)

// runAgent sets up an agent and runs it until ctx is done or the network config changes. If a step
// fails, the previous ones are undone.
func (d *daemon) runAgent(ctx context.Context) (err error) {
	store, err := d.openStore()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	network, err := d.awaitNetwork(ctx, store)
	if err != nil {
		return err
	}
	for _, u := range backend.UnknownKeys(network) {
		d.log.Warn("network config: unknown key without effect", "key", u.Key,
			"nearest", u.Nearest)
	}
	if d.hints, err = d.awaitHints(ctx, store); err != nil {
		return err
	}
	kernel, err := ctrl.OpenKernel(d.log)
	if err != nil {
		return err
	}
	defer kernel.Close()
	iface, err := underlay.Choose(ctx, kernel, d.ifaceOptions(network), d.ifaceInUse())
	if err != nil {
		return err
	}
	d.log.Info("interface selected", "name", iface.Name, "reason", iface.Reason, "mtu", iface.MTU,
		"address", joinValid(iface.Addr, iface.Addr6),
		"public", joinValid(iface.Public, iface.Public6))
	d.logIfaceNote(iface)
	a, err := d.newAgent(kernel, network, iface)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	if err := a.preventConflicts(ctx, kernel); err != nil {
		return err
	}
	a.connect(store)
	a.logStart()
	err = a.run(ctx)
	if errors.Is(err, errNetworkChanged) {
		if err := kernel.RemoveCommands(ctx); err != nil {
			d.log.Error("extension backend", "err", err)
		}
	}
	if err := kernel.Shutdown(context.WithoutCancel(ctx)); err != nil {
		d.log.Error("extension backend", "err", err)
	}
	return err
}

func (d *daemon) ifaceOptions(n lease.Network) underlay.Options {
	u := d.cfg.Underlay
	return underlay.Options{
		Iface:      u.Interfaces,
		Regex:      u.Patterns,
		CanReach:   u.CanReach,
		PublicIP:   cmp.Or(d.hints.PublicIP, u.PublicIP),
		PublicIPv6: cmp.Or(d.hints.PublicIPv6, u.PublicIPv6),
		IPv4:       n.EnableIPv4,
		IPv6:       n.EnableIPv6,
		Previous:   d.hints.Previous.PublicIP,
		Previous6:  d.hints.Previous.PublicIPv6,
		Overlay:    podNetworks(n),
	}
}

// podNetworks returns the networks of the enabled families.
func podNetworks(n lease.Network) []netip.Prefix {
	var networks []netip.Prefix
	for _, p := range []netip.Prefix{n.Network, n.IPv6Network} {
		if p.IsValid() {
			networks = append(networks, p)
		}
	}
	return networks
}

// newAgent creates the backend of the network config and, if that is a userspace backend, the
// engine. The engine is opened before a lease is claimed: if the port is in use, the daemon exits
// without leaving a lease that nothing serves for a day.
func (d *daemon) newAgent(
	kernel *ctrl.Kernel, network lease.Network, iface underlay.Iface,
) (*agent, error) {
	host, err := backend.PrepareNode(kernel, network, iface,
		backend.LocalOptions{
			KeyFile:   d.cfg.Backend.WireGuardKeyFile,
			Blackhole: d.cfg.Backend.BlackholeRoute,
		})
	if err != nil {
		return nil, err
	}
	host.Restore(d.hints.Previous)
	previous := readSubnetFile(d.cfg.Node.SubnetFile, d.log)
	a := &agent{
		daemon:  d,
		network: network,
		parts: parts{
			kernel:     kernel,
			reconciler: ctrl.NewReconciler(kernel, ctrl.ReconcilerOptions{Log: d.log}),
			rules: netfilter.New(netfilter.Options{Log: d.log, Resync: d.cfg.Rules.Resync,
				Previous: prefixes(previous)}),
		},
		underlayState: underlayState{host: host},
		file: subnetFile{
			path:      d.cfg.Node.SubnetFile,
			previous:  previous,
			abandoned: abandonedNetworks(previous, podNetworks(network)),
		},
	}
	a.conflicts = newConflicts(d.log)
	if a.host.Device, err = d.leftDevice(previous); err != nil {
		d.log.Warn("cannot look for the device of the previous run", "err", err)
	}
	if err := a.setUnderlay(iface); err != nil {
		return nil, err
	}
	adv := a.backend.Advertisement()
	a.prober = d.newProber(adv.Type)
	if a.cloud, err = d.openCloud(adv); err != nil {
		return nil, err
	}
	if adv.Type == "ipsec" {
		a.ike = ike.New(d.log)
	}
	d.removeStaleFastPath()
	if !adv.Userspace {
		d.fds.discard()
		d.removeFastPath(a.host.Device)
		a.host.Device = ""
		return a, nil
	}
	// The previous backend may have left a device with this name or a socket on this port. A device
	// of the previous run keeps its address and routes, as the kernel may be forwarding through it.
	plan := a.planAlone(lease.Lease{Subnet: previous.Subnet.Masked(),
		Subnet6: previous.Subnet6.Masked()})
	if err := ctrl.ApplyOnce(kernel, plan); err != nil {
		d.log.Warn("cannot remove state of the previous backend", "err", err)
	}
	if a.engine, err = d.openEngine(adv, a.host); err != nil {
		return nil, err
	}
	if err := a.setUnderlay(iface); err != nil { // again, now that the device has a name
		return nil, errors.Join(err, a.close())
	}
	return a, nil
}

// devicePattern is the name of flannel's TUN device; the kernel fills in the number.
const devicePattern = "flannel%d"

func (d *daemon) openEngine(
	adv backend.Advertisement, host backend.LocalNode,
) (*dataplane.Engine, error) {
	config := d.engineConfig(adv, host)
	config.Inherited = d.fds.take()
	e, err := dataplane.Open(config)
	if errors.Is(err, dataplane.ErrInherited) {
		d.log.Warn("packets that waited for this process are lost", "reason", err)
		d.fds.discard()
		config.Inherited = dataplane.Descriptors{}
		e, err = dataplane.Open(config)
	}
	if err != nil {
		return nil, fmt.Errorf("%s backend on port %d: %w", adv.Type, adv.Listen.Port(), err)
	}
	return e, nil
}

func (d *daemon) engineConfig(
	adv backend.Advertisement, host backend.LocalNode,
) dataplane.Config {
	e := d.cfg.Engine
	return dataplane.Config{
		Device:           cmp.Or(host.Device, devicePattern),
		Bind:             adv.Listen,
		MTU:              adv.MTU,
		Workers:          d.limits.Workers,
		Buffer:           d.limits.SocketBuffer,
		SourcePort:       uint16(e.SourcePort),
		Spin:             d.limits.Spin,
		ECN:              e.OuterECN,
		DSCP:             e.OuterDSCP,
		SourceCheck:      e.SourceCheck,
		FastPath:         e.FastPath,
		Underlay:         host.Iface.Name,
		AwaitNodes:       nodesTimeout,
		Mode:             e.Mode,
		DisabledFeatures: e.DisabledFeatures,
		Log:              d.log,
	}
}

// nodesTimeout bounds the time for which packets wait for the first list of nodes. A list that
// takes longer comes from a store that does not answer; the queues are full by then.
const nodesTimeout = 5 * time.Second

// logStart logs the settings that decide which nodes this one can reach.
func (a *agent) logStart() {
	s := newStoreStatus(a.cfg.Lease)
	attrs := []any{"version", a.build.Version, "node", a.nodeName, "store", s.Kind}
	for _, x := range []struct{ key, value string }{
		{"endpoints", strings.Join(s.Endpoints, " ")}, {"prefix", s.Prefix}, {"file", s.File},
	} {
		if x.value != "" {
			attrs = append(attrs, x.key, x.value)
		}
	}
	attrs = append(attrs, "network", joinValid(a.network.Network, a.network.IPv6Network),
		"backend", a.backend.Advertisement().Type)
	if port, _ := tunnelPort(a.plan().State); port != 0 {
		attrs = append(attrs, "port", port)
	}
	a.log.Info("starting", attrs...)
}

// tunnelPort returns the UDP port of a plan's tunnel, 0 for a tunnel of another protocol, and
// whether there is a tunnel.
func tunnelPort(plan ctrl.State) (port uint16, ok bool) {
	switch {
	case len(plan.NoTrack) > 0:
		return plan.NoTrack[0].Port(), true
	case len(plan.Tunnels) > 0:
		return uint16(plan.Tunnels[0].ListenPort), true
	}
	return 0, slices.ContainsFunc(plan.Links, func(l ctrl.Link) bool { return l.Kind == ctrl.KindIPIP })
}

// connect creates the manager of this node's lease in the store.
func (a *agent) connect(store lease.Store) {
	a.cluster, _ = store.(clusterStore)
	a.published = a.backend.Advertisement().Attrs
	a.manager = lease.NewManager(store, lease.Request{
		Network:   a.network,
		Attrs:     a.published,
		Node:      a.nodeName,
		Previous:  a.file.previous.Subnet.Masked(),
		Previous6: a.file.previous.Subnet6.Masked(),
	}, lease.Options{RenewMargin: a.cfg.Lease.RenewMargin, Log: a.log})
}

// run runs the parts and the loop.
func (a *agent) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	states, ifaces := make(latest[lease.State], 1), make(latest[ifaceEvent], 1)
	if a.engine != nil {
		group.Go(func() error { return a.engine.Run(ctx) })
	}
	if port, ok := tunnelPort(a.plan().State); ok {
		group.Go(func() error {
			a.hearRefusals(ctx, port)
			return nil
		})
	}
	group.Go(func() error { return a.reconciler.Run(ctx) })
	group.Go(func() error { return a.rules.Run(ctx) })
	group.Go(func() error { return a.conflicts.checker.Run(ctx) })
	if a.cloud != nil {
		group.Go(func() error { return a.cloud.Run(ctx) })
	}
	if a.ike != nil {
		group.Go(func() error { return a.ike.Run(ctx) })
	}
	if a.prober != nil {
		group.Go(func() error {
			a.prober.Run(ctx)
			return nil
		})
	}
	group.Go(func() error {
		return underlay.Watch(ctx, a.ifaceOptions(a.network), a.ifaceInUse, func(i underlay.Iface, err error) {
			ifaces.put(ifaceEvent{i, err})
		})
	})
	group.Go(func() error { return a.manager.Run(ctx, states.put) })
	if a.cluster != nil {
		group.Go(func() error { return a.watchNetwork(ctx) })
	}
	group.Go(func() error {
		a.loop(ctx, states, ifaces)
		return nil
	})
	return group.Wait()
}

// close closes the engine; the other parts end with run.
func (a *agent) close() error {
	if a.engine == nil {
		return nil
	}
	return a.engine.Close()
}

// latest passes the newest value from one sender to one receiver. A value that was not received
// yet is replaced. The capacity must be 1.
type latest[T any] chan T

func (l latest[T]) put(v T) {
	select {
	case <-l:
	default:
	}
	l <- v
}
