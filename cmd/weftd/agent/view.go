package agent

import (
	"cmp"
	"errors"
	"net/netip"
	"strings"
	"time"

	"weft/cmd/weftd/config"
	"weft/ctrl"
	"weft/ctrl/netfilter"
	"weft/dataplane"
	"weft/lease"
)

// view is what the daemon's own goroutine knows, published whole for the
// goroutines that answer requests. It is never changed.
type view struct {
	waiting error // why there is no network config yet; nil once there is

	iface    ctrl.Iface
	spec     ctrl.Spec
	device   string
	state    lease.State
	since    time.Time // when the lease was got; zero: not yet
	self     lease.Lease
	nodes    []nodeStatus
	file     string // subnet file
	fileOK   bool   // it says what is so
	fileErr  error
	ifaceErr error

	engine     *dataplane.Engine // nil if there is none
	reconciler *ctrl.Reconciler
	rules      *netfilter.Manager
}

// publish makes what the node knows now visible to requests.
func (n *node) publish() {
	v := &view{
		iface: n.host.Iface, spec: n.backend.Spec(), device: n.host.Device,
		state: n.state, since: n.since, self: n.self,
		nodes: n.nodes, ifaceErr: n.ifaceErr,
		file: n.cfg.Node.SubnetFile, fileOK: n.written == n.wantedFile(), fileErr: n.fileErr,
		engine: n.engine, reconciler: n.reconciler, rules: n.rules,
	}
	n.seen.Store(v)
}

// nodeStatuses shows the leases of other nodes; why has the subnets without a path.
func nodeStatuses(leases []lease.Lease, why map[netip.Prefix]string) []nodeStatus {
	var nodes []nodeStatus
	for _, l := range leases {
		nodes = append(nodes, nodeStatus{
			Name: l.Node, Subnet: l.Subnet, Subnet6: l.Subnet6, Public: l.Public(),
			Unreachable: cmp.Or(why[l.Subnet], why[l.Subnet6]),
		})
	}
	return nodes
}

// conditions returns what must hold for the node to be ready, in the order in
// which it comes about.
func (d *weftd) conditions() []condition {
	v := d.seen.Load()
	if v == nil || v.reconciler == nil {
		reason := "not read yet"
		if v != nil && v.waiting != nil {
			reason = v.waiting.Error()
		}
		return []condition{{Name: "config", Reason: reason}}
	}
	return []condition{
		d.configCondition(),
		{Name: "interface", OK: v.ifaceErr == nil, Reason: errText(v.ifaceErr)},
		v.leaseCondition(),
		v.kernelCondition(),
		rulesCondition(d.cfg.Rules, v.rules.Status()),
		v.fileCondition(),
	}
}

// configCondition holds while there is a config in force; the reason says why
// that is not the newest.
func (d *weftd) configCondition() condition {
	c := condition{Name: "config", OK: true}
	if err := d.refused.Load(); err != nil {
		c.Reason = "the changed one is refused: " + (*err).Error()
	}
	return c
}

func (v *view) leaseCondition() condition {
	c := condition{Name: "lease", OK: v.state.Held}
	switch {
	case c.OK:
	case v.state.Err != nil:
		c.Reason = v.state.Err.Error()
	case v.since.IsZero():
		c.Reason = "no subnet yet"
	default:
		c.Reason = "lost, being claimed again"
	}
	return c
}

// kernelCondition is about devices, addresses and routes.
func (v *view) kernelCondition() condition {
	s := v.reconciler.Status()
	c := condition{Name: "kernel", OK: s.Synced}
	switch {
	case c.OK:
	case s.Err != nil:
		c.Reason = s.Err.Error()
	case len(s.Waiting) > 0:
		c.Reason = "waiting for " + strings.Join(s.Waiting, ", ")
	default:
		c.Reason = "not set up yet"
	}
	return c
}

// rulesCondition is about the packet filter. A host without any does not need
// forwarded packets to be accepted, so only --ip-masq and --keep-source insist on one.
func rulesCondition(r config.Rules, s netfilter.Status) condition {
	needless := !r.Masquerade && r.KeepSource != config.On && (!r.Forward || errors.Is(s.Err, netfilter.ErrUnsupported))
	c := condition{Name: "rules", OK: s.InPlace || needless}
	switch {
	case c.OK:
	case s.Err != nil:
		c.Reason = s.Err.Error()
	default:
		c.Reason = "not set yet"
	}
	return c
}

// ruleNotes are what a flag gives up, for as long as it does.
func ruleNotes(r config.Rules) []string {
	if r.NoTrack {
		return nil
	}
	return []string{"--notrack is off: packets between nodes go through connection tracking"}
}

func (v *view) fileCondition() condition {
	c := condition{Name: "subnet-file", OK: v.fileOK && v.fileErr == nil}
	switch {
	case c.OK:
	case v.fileErr != nil:
		c.Reason = v.fileErr.Error()
	default:
		c.Reason = v.file + " is written when all else is in place"
	}
	return c
}

// allOK says whether all conditions hold, and why those that do not.
func allOK(conditions []condition) (ok bool, reasons []string) {
	for _, c := range conditions {
		if !c.OK {
			reasons = append(reasons, c.Name+": "+c.Reason)
		}
	}
	return len(reasons) == 0, reasons
}

// status returns all of what the daemon says about itself now.
func (d *weftd) status() Status {
	s := Status{Build: d.build, Node: d.name, Conditions: d.conditions(), Nodes: []nodeStatus{}}
	s.Ready, _ = allOK(s.Conditions)
	v := d.seen.Load()
	if v == nil || v.reconciler == nil {
		return s
	}
	s.Backend, s.MTU, s.Device = v.spec.Type, v.spec.MTU, v.device
	s.Nodes = append(s.Nodes, v.nodes...)
	s.Interface = &interfaceStatus{
		Name: v.iface.Name, MTU: v.iface.MTU, Address: v.iface.Addr, Address6: v.iface.Addr6,
		Public: v.iface.Public, Public6: v.iface.Public6, Reason: v.iface.Reason,
	}
	if !v.since.IsZero() {
		s.Lease = &leaseStatus{Held: v.state.Held, Subnet: v.self.Subnet, Subnet6: v.self.Subnet6,
			Since: v.since, Expires: v.self.Expires}
	}
	s.Store = storeStatus{Connected: v.state.Connected, Revision: v.state.Revision, Error: errText(v.state.Err)}
	k := v.reconciler.Status()
	s.Kernel = kernelStatus{Synced: k.Synced, Since: k.Since, Waiting: k.Waiting, Error: errText(k.Err), Repairs: k.Repairs}
	r := v.rules.Status()
	s.Rules = rulesStatus{InPlace: r.InPlace, Since: r.Since, Mode: string(r.Mode), Error: errText(r.Err),
		Notes: append(ruleNotes(d.cfg.Rules), r.Notes...), Repairs: r.Repairs}
	if v.engine != nil {
		s.Traffic = traffic(v.engine.Stats(), v.engine.Status())
	}
	return s
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
