package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"weft/cmd/weftd/config"
	"weft/ctrl"
	"weft/ctrl/netfilter"
	"weft/dataplane"
	"weft/dataplane/fib"
	"weft/lease"
	"weft/lease/kube"
	"weft/lease/subnetenv"
	"weft/metrics"
)

// weftd is one run of the daemon.
type weftd struct {
	cfg   *config.Config
	log   *slog.Logger
	build metrics.Build
	name  string               // of this node
	seen  atomic.Pointer[view] // what status is made from; nil before the first
	pulse pulse                // of the loop

	start   kube.NodeHints        // what the cluster says to this node; zero without one
	refused atomic.Pointer[error] // why the changed network config is not in force; nil: it did not change
}

// node is the daemon once it has a network config: it turns what the lease
// manager and the interface watch report into what the engine, the reconciler
// and subnet.env say. Its fields belong to the goroutine of loop.
type node struct {
	*weftd
	network    lease.Network
	engine     *dataplane.Engine // nil if the kernel or nobody forwards
	manager    *lease.Manager
	cluster    clusterStore // nil if the store is none
	reconciler *ctrl.Reconciler
	rules      *netfilter.Manager
	previous   subnetenv.File // of an earlier run
	former     []netip.Prefix // networks of an earlier run that have to be cleared away

	host    ctrl.Self // what the backend knows of this machine, interface and device included
	backend ctrl.Backend
	attrs   lease.Attrs // as last published
	state   lease.State
	self    lease.Lease // the last lease held
	since   time.Time   // when it was got; zero: none so far

	nodes []nodeStatus // the other nodes of the last plan

	ifaceErr error          // why the interface as it is now cannot be used
	written  subnetenv.File // what subnet.env says; zero: nothing yet
	fileErr  error          // why it could not be written
	ready    bool           // as last logged
	told     bool           // systemd knows that we are ready

	forwarded bool // packets could be forwarded at least once
}

// upkeep is the period in which what nobody reports is looked at: whether the
// kernel has caught up, so that subnet.env may be written.
const upkeep = 200 * time.Millisecond

// loop joins the parts until ctx ends.
func (n *node) loop(ctx context.Context, states <-chan lease.State, ifaces <-chan ifaceNews) {
	tick := time.NewTicker(upkeep)
	defer tick.Stop()
	defer n.pulse.rest()
	n.publish()
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-states:
			n.leaseChanged(s)
		case i := <-ifaces:
			n.ifaceReported(i)
		case <-tick.C:
			n.writeSubnetFile()
		}
		n.publish()
		n.announce()
		n.tellCluster()
		n.pulse.beat()
	}
}

// leaseChanged takes over what the store says. Without a lease the last one stays
// in force: losing the store must not cut the pods off.
func (n *node) leaseChanged(s lease.State) {
	n.state = s
	if s.Held {
		n.leaseHeld(s)
	}
	n.replan()
}

func (n *node) leaseHeld(s lease.State) {
	switch {
	case n.since.IsZero():
		n.warnOfLostSubnet(s)
	case !n.self.SameSubnets(s.Self):
		n.log.Error("this node's subnet has CHANGED: pods that run now keep addresses of the old one and must be restarted",
			"old", show(n.self.Subnet, n.self.Subnet6), "new", show(s.Self.Subnet, s.Self.Subnet6))
	}
	if n.since.IsZero() || !n.self.SameSubnets(s.Self) {
		n.since = time.Now()
	}
	n.self = s.Self
}

// warnOfLostSubnet says why the subnet of the previous run's file is not ours.
func (n *node) warnOfLostSubnet(s lease.State) {
	for _, before := range []netip.Prefix{n.previous.Subnet.Masked(), n.previous.Subnet6.Masked()} {
		if !before.IsValid() || before == s.Self.Subnet || before == s.Self.Subnet6 {
			continue
		}
		owner := "no node"
		for _, l := range s.All {
			if l.Subnet == before || l.Subnet6 == before {
				owner = l.Node
			}
		}
		n.log.Warn("the subnet in the subnet file is not this node's: another is taken, pods that still run must be restarted",
			"file", n.cfg.Node.SubnetFile, "subnet", before, "owner", owner)
	}
}

// ifaceNews is the choice of the interface, or why there is none.
type ifaceNews struct {
	iface ctrl.Iface
	err   error
}

// ifaceReported takes over what the watch of the interface says. Without an
// interface all stays as it is, since the one we had may come back.
func (n *node) ifaceReported(i ifaceNews) {
	if i.err == nil {
		n.ifaceChanged(i.iface)
		return
	}
	n.ifaceErr = i.err
	n.log.Error("the interface to the other nodes is lost", "name", n.host.Iface.Name, "err", i.err)
}

// ifaceChanged follows the underlay interface: the sockets move, the lease tells
// the other nodes, and MTU and routes are planned anew.
func (n *node) ifaceChanged(i ctrl.Iface) {
	i.Reason = n.host.Iface.Reason
	if i == n.host.Iface {
		n.ifaceErr = nil // what could not be followed, or was lost, is as before
		return
	}
	n.logIface(i)
	if n.ifaceErr = n.prepare(i); n.ifaceErr != nil {
		n.log.Error("cannot follow the interface", "err", n.ifaceErr)
		return
	}
	spec := n.backend.Spec()
	if n.engine != nil {
		if err := n.engine.Rebind(bindAddress(i, spec)); err != nil {
			n.log.Error("cannot move to the interface's new address", "err", err)
		}
		n.engine.SetMTU(spec.MTU)
	}
	if a := attrs(i, spec); !a.Equal(n.attrs) {
		n.attrs = a
		n.manager.SetAttrs(a)
	}
	n.replan()
}

// logIface says how the interface differs from the one before. Who is on its link
// may change often where hosts are kept apart, and matters to a few routes only.
func (n *node) logIface(i ctrl.Iface) {
	before := n.host.Iface
	if before.OnLink = i.OnLink; before == i {
		n.log.Info("routes to other nodes on the link have changed", "name", i.Name)
		return
	}
	n.log.Warn("the interface to the other nodes has changed", "name", i.Name, "mtu", i.MTU,
		"address", show(i.Addr, i.Addr6), "public", show(i.Public, i.Public6))
}

// prepare makes the backend anew for the interface and the engine's device.
func (n *node) prepare(i ctrl.Iface) error {
	host := n.host
	host.Iface = i
	if n.engine != nil {
		host.Device = n.engine.Device()
	}
	backend, err := ctrl.NewBackend(n.network, host)
	if err != nil {
		return err
	}
	n.host, n.backend = host, backend
	// With another address of the node, a tunnel address that is derived would be another one.
	keepVTEP(&n.host, attrs(i, backend.Spec()))
	return nil
}

// replan hands the leases to the engine and the reconciler, each in its own terms.
func (n *node) replan() {
	if n.since.IsZero() {
		return
	}
	plan := n.plan()
	why := map[netip.Prefix]string{} // a subnet has no path
	for _, u := range plan.Unreachable {
		why[u.Subnet] = u.Reason
	}
	peers := n.peers()
	if n.engine != nil {
		port := uint16(n.backend.Spec().Port)
		n.engine.SetNodes(fibNode(n.self, nil, port), fibNodes(peers, why, port))
	}
	n.nodes = nodeStatuses(peers, why)
	n.reconciler.Set(plan)
	n.rules.Set(n.desiredRules(plan))
}

// plan is the kernel state that is wanted for the leases. What an earlier run left
// of a former network is part of it, so that a device which the plan has a use for
// stays, and packets with it.
func (n *node) plan() ctrl.State {
	plan := n.backend.Plan(n.self, n.state.All)
	plan.Networks = slices.Concat(plan.Networks, n.former)
	return plan
}

// desiredRules are the packet filter rules that the flags ask for, to go with plan.
func (n *node) desiredRules(plan ctrl.State) netfilter.Desired {
	d := netfilter.Desired{
		Masquerade:    n.cfg.Rules.Masquerade,
		NoRandomPorts: n.cfg.Rules.NoRandomPorts,
		KeepSource:    n.cfg.Rules.KeepsSource(),
		Forward:       n.cfg.Rules.Forward,
		NFTables:      n.network.EnableNFTables,
	}
	for _, f := range []netfilter.Net{
		{Network: n.network.Network, Subnet: n.self.Subnet},
		{Network: n.network.IPv6Network, Subnet: n.self.Subnet6},
	} {
		if f.Network.IsValid() && f.Subnet.IsValid() {
			d.Nets = append(d.Nets, f)
		}
	}
	if n.cfg.Rules.NoTrack {
		d.NoTrack = tunnelEnds(n.host.Iface, n.backend.Spec(), plan)
	}
	return d
}

// tunnelEnds are our own addresses and UDP ports that other nodes send pods' packets to.
func tunnelEnds(i ctrl.Iface, spec ctrl.Spec, plan ctrl.State) []netip.AddrPort {
	var ends []netip.AddrPort
	if spec.Userspace {
		ends = append(ends, bindAddress(i, spec))
	}
	for _, p := range plan.FOU {
		ends = append(ends, netip.AddrPortFrom(i.Addr, uint16(p.Port)))
	}
	for _, l := range plan.Links {
		if l.Kind == ctrl.KindVXLAN {
			ends = append(ends, netip.AddrPortFrom(l.VXLAN.Local, uint16(l.VXLAN.Port)))
		}
	}
	return ends
}

// peers are the leases of other nodes. One that overlaps ours, as when ours has
// lapsed and went to another node, is left out: what belongs here stays here.
func (n *node) peers() []lease.Lease {
	var others []lease.Lease
	for _, l := range n.state.All {
		if !l.Overlaps(n.self) {
			others = append(others, l)
		}
	}
	return others
}

// fibNodes are the nodes that the engine can send to: all but what the plan has
// found no path to. The leases hold no port, as all nodes of a udp network share it.
func fibNodes(leases []lease.Lease, without map[netip.Prefix]string, port uint16) []fib.Node {
	var nodes []fib.Node
	for _, l := range leases {
		if n := fibNode(l, without, port); len(n.Prefixes) > 0 {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// fibNode is a lease as the engine knows it.
func fibNode(l lease.Lease, without map[netip.Prefix]string, port uint16) fib.Node {
	n := fib.Node{Name: l.Node, Endpoint: netip.AddrPortFrom(l.Public(), port)}
	for _, p := range []netip.Prefix{l.Subnet, l.Subnet6} {
		if p.IsValid() && without[p] == "" {
			n.Prefixes = append(n.Prefixes, p)
		}
	}
	return n
}

// attrs is what the lease tells the other nodes.
func attrs(i ctrl.Iface, spec ctrl.Spec) lease.Attrs {
	return lease.Attrs{
		PublicIP: i.Public, PublicIPv6: i.Public6,
		BackendType: spec.LeaseType, BackendData: spec.Data, BackendV6Data: spec.DataV6,
	}
}

// bindAddress is where the engine's sockets live: on the interface's own address,
// which is not the public one behind a NAT.
func bindAddress(i ctrl.Iface, spec ctrl.Spec) netip.AddrPort {
	a := i.Addr
	if !a.IsValid() {
		a = i.Addr6
	}
	return netip.AddrPortFrom(a, uint16(spec.Port))
}

// writeSubnetFile writes subnet.env when it is due: once what it promises is in
// place, and again when the subnet or the MTU has changed.
func (n *node) writeSubnetFile() {
	kernel := n.reconciler.Status()
	if n.since.IsZero() || !kernel.Synced || !kernel.Current || !rulesCondition(n.cfg.Rules, n.rules.Status()).OK {
		return
	}
	e := n.wantedFile()
	if e == n.written {
		return
	}
	err := e.Write(n.cfg.Node.SubnetFile)
	switch {
	case err == nil:
		n.written = e
		n.log.Info("subnet file written", "file", n.cfg.Node.SubnetFile)
		n.forget()
	case n.fileErr == nil: // once, as the error names another temporary file each time
		n.log.Error("cannot write the subnet file, trying on", "err", err)
	}
	n.fileErr = err
}

// forget gives up a former network once nothing is left of it and the file does not
// tell of it any more: it may be another daemon's by now.
func (n *node) forget() {
	if len(n.former) > 0 {
		n.former = nil
		n.replan()
	}
}

// wantedFile is what subnet.env has to say.
func (n *node) wantedFile() subnetenv.File {
	return subnetenv.File{
		Network: n.network.Network, Subnet: subnetenv.Gateway(n.self.Subnet),
		Network6: n.network.IPv6Network, Subnet6: subnetenv.Gateway(n.self.Subnet6),
		MTU: n.backend.Spec().MTU, IPMasq: n.cfg.Rules.Masquerade,
	}
}

// announce says on the log, and once to systemd, when readiness comes and goes.
func (n *node) announce() {
	ok, reasons := allOK(n.conditions())
	if ok == n.ready {
		return
	}
	n.ready = ok
	if !ok {
		n.log.Warn("not ready any more", "reasons", strings.Join(reasons, "; "))
		return
	}
	n.log.Info("ready")
	if !n.told {
		n.told = true
		notify(n.log, systemd.SdNotifyReady)
	}
}

// show writes those of the two that are there.
func show[T interface {
	IsValid() bool
	String() string
}](v4, v6 T) string {
	var parts []string
	for _, v := range []T{v4, v6} {
		if v.IsValid() {
			parts = append(parts, v.String())
		}
	}
	return strings.Join(parts, " ")
}
