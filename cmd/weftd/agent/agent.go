package agent

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/ctrl"
	"weft/ctrl/backend"
	"weft/ctrl/backend/cloud"
	"weft/ctrl/ike"
	"weft/ctrl/netfilter"
	"weft/ctrl/underlay"
	"weft/dataplane"
	"weft/dataplane/probe"
	"weft/lease"
	"weft/lease/subnetenv"
)

// agent runs the node under one network config. It turns events of the lease manager and of the
// interface watch into desired state for the engine, the reconciler, the packet filter and
// subnet.env. Its fields belong to the goroutine of loop.
type agent struct {
	*daemon
	network lease.Network
	parts
	underlayState
	leaseView
	file      subnetFile
	conflicts conflicts
	members   membership
	drops     dropLog
	port      uint16                // UDP port of the tunnel in the last plan; 0: none
	planner   *backend.Planner      // of backend; nil if there is none yet
	view      *peerView             // of the last plan; nil before the first
	probed    *peerView             // that the mesh probe has the targets of
	probeSet  time.Time             // of probed
	avoided   map[netip.Prefix]bool // nodes that the fast path does not reach
	readiness readiness

	sourcesLogged time.Time // last message about unknown sources
}

// parts are the components that an agent connects. Each has a goroutine of its own.
type parts struct {
	engine     *dataplane.Engine // nil unless the backend is a userspace one
	manager    *lease.Manager
	cluster    clusterStore // nil if the store is not a cluster
	kernel     *ctrl.Kernel
	reconciler *ctrl.Reconciler
	rules      *netfilter.Manager
	prober     *probe.Prober  // nil if there is none
	cloud      *cloud.Manager // nil unless the backend is a cloud's
	ike        *ike.Manager   // nil unless the backend is ipsec
}

// underlayState is the interface to the other nodes and the state that follows from it.
type underlayState struct {
	host      backend.LocalNode // this machine as the backend sees it
	backend   backend.Backend
	published lease.Attrs // attributes of the lease
	ifaceErr  error       // why the current state of the interface cannot be used
}

// leaseView is the agent's view of the lease store.
type leaseView struct {
	state    lease.State // last reported
	since    time.Time   // of state.Connected
	self     lease.Lease // last lease held; stays in force while lost
	acquired time.Time   // of self; zero: no lease so far
}

// readiness is the state of the notifications about readiness.
type readiness struct {
	ready     bool // as last logged
	notified  bool // systemd has been told
	forwarded bool // kernel and rules have been in place at least once
}

// loop handles events until ctx is done.
func (a *agent) loop(ctx context.Context, states <-chan lease.State, ifaces <-chan ifaceEvent) {
	var poll pollTimer
	poll.start()
	defer poll.stop()
	defer a.heartbeat.stop()
	var joining <-chan time.Time // set during the pause after a plan
	a.publish()
	for {
		ready := states
		if joining != nil {
			ready = nil
		}
		select {
		case <-ctx.Done():
			return
		case s := <-ready:
			began := time.Now()
			a.onLeaseState(s)
			joining = time.After(planPause(time.Since(began)))
		case <-joining:
			joining = nil
			continue
		case e := <-ifaces:
			a.onIfaceEvent(e)
		case now := <-poll.C:
			a.poll(now)
			poll.next(a.readiness.ready)
			continue
		}
		a.publish()
		a.heartbeat.beat()
		if !a.readiness.ready {
			poll.start()
		}
	}
}

// poll does what no event triggers.
func (a *agent) poll(now time.Time) {
	a.syncSubnetFile()
	a.refreshProbe(now)
	a.syncConflicts()
	a.followFastPath()
	a.reportUnknownSources(now)
	a.listen(now)
	a.members.report(a.log, now)
	a.publish()
	a.reportReadiness()
	a.reportForwarding()
	a.heartbeat.beat()
}

// onLeaseState handles a state of the lease manager. If no lease is held, the last one stays in
// force: losing the store must not disconnect pods.
func (a *agent) onLeaseState(s lease.State) {
	if a.since.IsZero() || s.Connected != a.state.Connected {
		a.since = time.Now()
	}
	a.state = s
	if s.Held {
		a.setLease(s)
	}
	a.replan()
}

func (a *agent) setLease(s lease.State) {
	first := a.acquired.IsZero()
	changed := !first && !a.self.SameSubnets(s.Self)
	if first {
		a.warnLostSubnet(s)
	}
	if changed {
		a.log.Error("subnet of this node changed: "+
			"running pods keep addresses of the old one and must be restarted",
			"old", joinValid(a.self.Subnet, a.self.Subnet6),
			"new", joinValid(s.Self.Subnet, s.Self.Subnet6))
	}
	if first || changed {
		a.acquired = time.Now()
	}
	a.self = s.Self
}

// warnLostSubnet logs which node has the subnet of the previous run if this node did not get it.
func (a *agent) warnLostSubnet(s lease.State) {
	previous := a.file.previous
	for _, subnet := range []netip.Prefix{previous.Subnet.Masked(), previous.Subnet6.Masked()} {
		if !subnet.IsValid() || subnet == s.Self.Subnet || subnet == s.Self.Subnet6 {
			continue
		}
		owner := "no node"
		for l := range s.All.All() {
			if l.Subnet == subnet || l.Subnet6 == subnet {
				owner = l.Node
			}
		}
		a.log.Warn("previous subnet not available, using another: running pods must be restarted",
			"file", a.cfg.Node.SubnetFile, "subnet", subnet, "owner", owner)
	}
}

// ifaceEvent is a result of the interface watch: the selected interface, or the reason why none
// could be selected.
type ifaceEvent struct {
	iface underlay.Iface
	err   error
}

// onIfaceEvent handles a result of the interface watch. If the interface is lost, everything stays
// as it is, since it may come back.
func (a *agent) onIfaceEvent(e ifaceEvent) {
	if e.err == nil {
		a.onIfaceChange(e.iface)
		return
	}
	a.ifaceErr = e.err
	a.log.Error("interface to the other nodes lost", "name", a.host.Iface.Name, "err", e.err)
}

// onIfaceChange follows a change of the interface: it moves the sockets, publishes the new address
// and plans MTU and routes again.
func (a *agent) onIfaceChange(i underlay.Iface) {
	if i.Equal(a.host.Iface) {
		a.ifaceErr = nil // an unusable or lost interface is back as it was
		if i.Note != a.host.Iface.Note {
			a.host.Iface.Note = i.Note
			a.logIfaceNote(i)
		}
		return
	}
	a.logIfaceChange(i)
	if a.ifaceErr = a.setUnderlay(i); a.ifaceErr != nil {
		a.log.Error("cannot follow the interface change", "err", a.ifaceErr)
		return
	}
	adv := a.backend.Advertisement()
	if a.engine != nil {
		if err := a.engine.Rebind(adv.Listen, i.Name); err != nil {
			a.log.Error("cannot move the sockets to the new address", "err", err)
		}
		a.engine.SetMTU(adv.MTU)
	}
	a.publishAttrs()
	a.replan()
}

// logIfaceChange logs the new state of the interface. On-link prefixes may change often where hosts
// are isolated from each other, and affect few routes, so they are logged at a lower level.
func (a *agent) logIfaceChange(i underlay.Iface) {
	old := a.host.Iface
	if old.OnLink = i.OnLink; old.Equal(i) {
		a.log.Info("on-link routes to other nodes changed", "name", i.Name)
		return
	}
	a.log.Warn("interface to the other nodes changed", "name", i.Name, "mtu", i.MTU,
		"address", joinValid(i.Addr, i.Addr6), "public", joinValid(i.Public, i.Public6), "reason", i.Reason)
}

// logIfaceNote logs the note of an interface, if it has one.
func (d *daemon) logIfaceNote(i underlay.Iface) {
	if i.Note != "" {
		d.log.Info("interface note", "name", i.Name, "note", i.Note)
	}
}

// setUnderlay replaces the backend with one for the interface and the engine's device.
func (a *agent) setUnderlay(i underlay.Iface) error {
	host := a.host
	host.Iface = i
	if a.engine != nil {
		host.Device = a.engine.Device()
		host.FastPath = a.engine.FastPath().Active
	}
	b, err := backend.New(a.network, host)
	if err != nil {
		return err
	}
	if off := b.Advertisement().IPv6Off; off != "" &&
		(a.backend == nil || a.backend.Advertisement().IPv6Off != off) {
		a.log.Warn("IPv6 is off", "reason", off)
	}
	a.host, a.backend, a.planner = host, b, nil
	a.inUse.Store(&i)
	// The address of a VXLAN device is derived from the node's address and must not follow it.
	a.host.Restore(b.Advertisement().Attrs)
	return nil
}

// replan passes the leases to the engine, the reconciler and the packet filter.
func (a *agent) replan() {
	if a.acquired.IsZero() {
		return
	}
	before := a.view
	if before == nil {
		before = &peerView{}
	}
	plan := a.plan()
	a.port, _ = tunnelPort(plan.State)
	now := before.next(peerView{
		self: a.self, leases: a.state.All, plan: plan,
		port: a.backend.Advertisement().Listen.Port(),
		cut:  a.conflicts.Cut, diverted: a.conflicts.Diverted,
	})
	before, a.view = a.view, now
	a.conflicts.due = true
	a.setEngine(before)
	a.setProbe(time.Now())
	a.members.update(now)
	a.setCloud()
	a.reconciler.SetPlan(plan)
	if a.ike != nil {
		a.ike.Set(plan.IKE, plan.AllAssociations())
	}
	a.rules.Set(a.desiredRules(plan.State))
}

// plan returns the desired kernel state for the leases. It includes abandoned networks, so that
// their state is removed but a device that the plan reuses stays.
func (a *agent) plan() ctrl.Plan {
	if a.planner == nil || !a.planner.Serves(a.self) {
		a.planner = backend.NewPlanner(a.backend, a.self)
	}
	plan := a.planner.Plan(a.state.All)
	plan.Networks = slices.Concat(plan.Networks, a.file.abandoned)
	return plan
}

// planAlone returns the desired kernel state for a lease of this node before there are others.
func (a *agent) planAlone(self lease.Lease) ctrl.State {
	plan := a.backend.Plan(self, nil)
	plan.Networks = slices.Concat(plan.Networks, a.file.abandoned)
	return plan
}

// desiredRules returns the packet filter rules for the flags and the plan.
func (a *agent) desiredRules(plan ctrl.State) netfilter.Desired {
	r := a.cfg.Rules
	d := netfilter.Desired{
		Masquerade:    r.Masquerade,
		NoRandomPorts: r.NoRandomPorts,
		KeepSource:    r.KeepsSource(),
		Forward:       r.Forward,
		NFTables:      a.network.EnableNFTables,
	}
	for _, n := range []netfilter.Net{
		{Network: a.network.Network, Subnet: a.self.Subnet},
		{Network: a.network.IPv6Network, Subnet: a.self.Subnet6},
	} {
		if n.Network.IsValid() && n.Subnet.IsValid() {
			d.Nets = append(d.Nets, n)
		}
	}
	if r.NoTrack {
		d.NoTrack = plan.NoTrack
	}
	if !r.AllowPodsToTunnelPort {
		d.TunnelPorts = plan.NoTrack
	}
	return d
}

// syncSubnetFile writes subnet.env once the state that it describes is in place, and again when the
// subnet or the MTU changes.
func (a *agent) syncSubnetFile() {
	kernel := a.reconciler.Status()
	if a.acquired.IsZero() || !kernel.Synced || !kernel.Current ||
		!rulesCondition(a.cfg.Rules, a.rules.Status()).OK ||
		a.cloud != nil && !a.cloud.Status().InPlace {
		return
	}
	if abandoned := a.file.sync(a.wantedFile(), a.log); abandoned {
		a.replan() // without the abandoned networks
	}
}

// wantedFile returns the desired content of subnet.env. It has no IPv6 subnet while IPv6 is off:
// the kernel gives no IPv6 address to a pod whose MTU is too small for it.
func (a *agent) wantedFile() subnetenv.File {
	adv := a.backend.Advertisement()
	f := subnetenv.File{
		Network: a.network.Network, Subnet: subnetenv.Gateway(a.self.Subnet),
		MTU: adv.MTU, IPMasq: a.cfg.Rules.Masquerade,
	}
	if adv.IPv6Off == "" {
		f.Network6, f.Subnet6 = a.network.IPv6Network, subnetenv.Gateway(a.self.Subnet6)
	}
	return f
}

// joinValid joins the valid ones of the two with a space.
func joinValid[T interface {
	IsValid() bool
	String() string
}](v4, v6 T) string {
	var valid []string
	for _, v := range []T{v4, v6} {
		if v.IsValid() {
			valid = append(valid, v.String())
		}
	}
	return strings.Join(valid, " ")
}
