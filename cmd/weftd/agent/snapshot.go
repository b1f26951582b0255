package agent

import (
	"cmp"
	"strings"
	"time"

	"weft/cmd/control"
	"weft/ctrl"
	"weft/ctrl/backend"
	"weft/ctrl/backend/cloud"
	"weft/ctrl/ike"
	"weft/ctrl/netfilter"
	"weft/ctrl/underlay"
	"weft/dataplane"
	"weft/dataplane/probe"
	"weft/lease"
	"weft/metrics"
)

// snapshot is the state of the agent's goroutine for the goroutines of the HTTP server. It is
// immutable.
type snapshot struct {
	waiting error // why there is no network config yet; nil once there is

	network  lease.Network
	iface    underlay.Iface
	ifaceErr error
	adv      backend.Advertisement

	state    lease.State
	since    time.Time // of state.Connected
	self     lease.Lease
	acquired time.Time // of self; zero: no lease so far
	view     *peerView // nil before the first plan
	port     uint16    // UDP port of the tunnel; 0: none
	taken    []string  // addresses that the overlay's own routes cut off

	filePath    string
	fileCurrent bool // the subnet file is up to date
	fileErr     error

	engine     *dataplane.Engine // nil without a userspace backend
	reconciler *ctrl.Reconciler
	rules      *netfilter.Manager
	prober     *probe.Prober // nil if there is none
	ike        *ike.Manager  // nil unless the backend is ipsec
	kernel     *ctrl.Kernel
	cloud      *cloud.Manager // nil unless the backend is a cloud's
}

// publish stores a snapshot for the HTTP server.
func (a *agent) publish() {
	a.snapshot.Store(&snapshot{
		network: a.network,
		iface:   a.host.Iface, ifaceErr: a.ifaceErr, adv: a.backend.Advertisement(),
		state: a.state, since: a.since, self: a.self, acquired: a.acquired, view: a.view, port: a.port,
		taken:    a.conflicts.Taken,
		filePath: a.file.path, fileCurrent: a.file.written == a.wantedFile(), fileErr: a.file.err,
		engine: a.engine, reconciler: a.reconciler, rules: a.rules, prober: a.prober, kernel: a.kernel,
		cloud: a.cloud,
		ike:   a.ike,
	})
}

// status returns the current status of the daemon.
func (d *daemon) status() control.Status {
	status := control.Status{
		Build: d.build, Node: d.nodeName, Conditions: d.conditions(), Nodes: []control.Node{},
		Limits: control.Limits(d.limits),
		Flags:  d.cfg.Given, Store: newStoreStatus(d.cfg.Lease),
	}
	status.Ready, _ = allMet(status.Conditions)
	s := d.snapshot.Load()
	if s == nil || s.reconciler == nil {
		return status
	}
	status.Network = newNetworkStatus(s.network)
	status.Backend, status.MTU = s.adv.Type, s.adv.MTU
	status.Device = strings.Join(s.adv.Devices, " ")
	status.Port = int(s.port)
	status.Nodes = s.view.statuses()
	status.Interface = &control.Interface{
		Name: s.iface.Name, MTU: s.iface.MTU, Address: s.iface.Addr, Address6: s.iface.Addr6,
		Public: s.iface.Public, Public6: s.iface.Public6, Reason: s.iface.Reason, Note: s.iface.Note,
	}
	if !s.acquired.IsZero() {
		status.Lease = &control.Lease{
			Held: s.state.Held, Subnet: s.self.Subnet, Subnet6: s.self.Subnet6,
			Since: s.acquired, Expires: s.self.Expires,
		}
	}
	status.Store.Connected, status.Store.Revision = s.state.Connected, s.state.Revision
	status.Store.Since, status.Store.Error = s.since, errText(s.state.Err)
	k := s.reconciler.Status()
	status.Kernel = control.Kernel{
		Synced: k.Synced, Since: k.Since, Waiting: k.Waiting, Error: errText(k.Err),
		Repairs: k.Repairs, UserspaceWireGuard: k.UserspaceWireGuard,
	}
	r := s.rules.Status()
	status.Rules = control.Rules{
		InPlace: r.InPlace, Since: r.Since, Mode: string(r.Mode), Error: errText(r.Err),
		Notes: append(ruleNotes(d.cfg.Rules), r.Notes...), Repairs: r.Repairs,
	}
	if s.engine != nil {
		status.Traffic = traffic(s.engine.Stats(), s.engine.Status())
		status.Traffic.FastPath.Reason = cmp.Or(status.Traffic.FastPath.Reason, s.unannounced(status.Store))
		for _, u := range s.engine.UnknownSources() {
			status.Traffic.UnknownSources = append(status.Traffic.UnknownSources,
				metrics.UnknownSource{Address: u.Addr, Packets: u.Packets, Last: u.Last})
		}
	}
	if s.cloud != nil {
		status.Cloud = newCloudStatus(s.cloud.Status())
	}
	status.KernelTraffic = s.kernelTraffic(status.Nodes)
	s.addProbe(&status)
	s.addIPsec(&status)
	d.describeNodes(&status)
	return status
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
