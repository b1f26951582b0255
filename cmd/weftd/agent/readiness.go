package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"weft/cmd/control"
	"weft/cmd/weftd/config"
	"weft/ctrl/netfilter"
	"weft/lease"
)

// conditions returns the conditions of readiness, in the order in which they are usually met.
func (d *daemon) conditions() []control.Condition {
	s := d.snapshot.Load()
	if s == nil || s.reconciler == nil {
		reason := "not read yet"
		if s != nil && s.waiting != nil {
			reason = s.waiting.Error()
		}
		return []control.Condition{{Name: "config", Reason: reason}}
	}
	all := []control.Condition{
		d.configCondition(),
		s.ifaceCondition(),
		s.leaseCondition(),
		s.kernelCondition(),
		rulesCondition(d.cfg.Rules, s.rules.Status()),
		forwardCondition(s.forwardingOff(), s.rules.Status()),
		s.routesCondition(),
		s.nodesCondition(),
		s.fileCondition(),
	}
	if s.cloud != nil {
		all = append(all, cloudCondition(s.cloud.Status()))
	}
	if s.engine != nil {
		all = append(all, d.engineCondition(s))
	}
	if s.ike != nil {
		all = append(all, s.ipsecCondition())
	}
	return all
}

// configCondition is met while a network config is in force. Its reason tells why a newer one was
// rejected.
func (d *daemon) configCondition() control.Condition {
	c := control.Condition{Name: "config", OK: true}
	if err := d.configErr.Load(); err != nil {
		c.Reason = "changed config rejected: " + (*err).Error()
	}
	return c
}

// ifaceCondition is met while the interface can be used. Its reason is then a note: a better
// candidate, or why only IPv4 is carried.
func (s *snapshot) ifaceCondition() control.Condition {
	c := control.Condition{Name: "interface", OK: s.ifaceErr == nil}
	switch {
	case !c.OK:
		c.Reason = s.ifaceErr.Error()
	case s.adv.IPv6Off != "":
		c.Reason = "IPv6 is off: " + s.adv.IPv6Off
	default:
		c.Reason = s.iface.Note
	}
	return c
}

// storePatience is how long the store may be away before the lease condition notes it. It exceeds
// the restart of an etcd member or API server and a machine's reboot. /status shows it at once.
const storePatience = time.Minute

// leaseCondition is met while this node holds a lease. If the store is away, pods still reach the
// nodes known so far, so that is a note and leaves the node ready.
func (s *snapshot) leaseCondition() control.Condition {
	c := control.Condition{Name: "lease", OK: s.state.Held}
	away := time.Since(s.since).Truncate(time.Second)
	switch {
	case c.OK && !s.state.Connected && away >= storePatience:
		c.Reason = fmt.Sprintf("changes of other nodes not seen for %s: %s", away,
			errText(s.state.Err))
	case c.OK:
	case s.state.Err != nil:
		c.Reason = s.state.Err.Error()
	case s.acquired.IsZero():
		c.Reason = "no subnet yet"
	default:
		c.Reason = "lost, claiming it again"
	}
	return c
}

// kernelCondition is met while devices, addresses and routes are in place.
func (s *snapshot) kernelCondition() control.Condition {
	status := s.reconciler.Status()
	c := control.Condition{Name: "kernel", OK: status.Synced}
	switch {
	case c.OK:
	case status.Err != nil:
		c.Reason = status.Err.Error()
	case len(status.Waiting) > 0:
		c.Reason = "waiting for " + strings.Join(status.Waiting, ", ")
	default:
		c.Reason = "not set up yet"
	}
	return c
}

// engineCondition is met while the engine carries packets, and this host does not refuse to send
// all of them.
func (d *daemon) engineCondition(s *snapshot) control.Condition {
	c := control.Condition{Name: "engine", OK: true}
	blocked := d.hearing.sendingBlocked(time.Now())
	switch err := s.engine.Err(); {
	case err != nil:
		c.OK, c.Reason = false, err.Error()
	case blocked != "":
		c.OK, c.Reason = false, "this host refuses packets to every node: "+blocked+
			"; if not permitted, by a packet filter on OUTPUT"
	}
	return c
}

// routesCondition is met unless the overlay's own routes take packets to other nodes, to a gateway
// or to the store.
func (s *snapshot) routesCondition() control.Condition {
	const shown = 3
	reasons := s.taken
	if more := len(reasons) - shown; more > 0 {
		reasons = append(reasons[:shown:shown], fmt.Sprintf("and %d more", more))
	}
	return control.Condition{Name: "routes", OK: len(reasons) == 0, Reason: strings.Join(reasons, "; ")}
}

// nodesCondition is always met: other nodes are unreachable while the cluster changes its backend,
// node by node, and a node that is not ready would stop that. Its reason holds no names, as other
// hosts may read it.
func (s *snapshot) nodesCondition() control.Condition {
	c := control.Condition{Name: "nodes", OK: true}
	if s.view == nil {
		return c
	}
	unreachable := s.view.unreachable
	if s.prober != nil {
		unreachable += s.prober.Unreachable() // of the nodes that have a path
	}
	if unreachable > 0 {
		c.Reason = fmt.Sprintf("%d of %d other nodes unreachable, "+
			"/status on this node has the reasons", unreachable, s.view.plan.Parts.Len())
	}
	return c
}

// rulesCondition is met while the packet filter rules are in place. On a host without a packet
// filter, forwarded packets need no rule, so only --ip-masq and --keep-source require one there.
func rulesCondition(r config.Rules, s netfilter.Status) control.Condition {
	required := r.Masquerade || r.KeepSource == config.On ||
		r.Forward && !errors.Is(s.Err, netfilter.ErrUnsupported)
	c := control.Condition{Name: "rules", OK: s.InPlace || !required}
	switch {
	case c.OK:
	case s.Err != nil:
		c.Reason = s.Err.Error()
	default:
		c.Reason = "not set yet"
	}
	return c
}

// forwardCondition is met while the host forwards pods' packets: neither the kernel's switches,
// listed in off, nor rules of other programs prevent it.
func forwardCondition(off []string, rules netfilter.Status) control.Condition {
	blocked := slices.Concat(off, rules.Blocked)
	return control.Condition{Name: "forward", OK: len(blocked) == 0, Reason: strings.Join(blocked, "; ")}
}

// forwardingOff returns the kernel's switches that keep it from forwarding pods' packets.
func (s *snapshot) forwardingOff() []string {
	if s.adv.Type == "alloc" { // something else forwards
		return nil
	}
	return forwardingOff("/proc/sys/net", s.self, s.adv.Devices)
}

// forwardingOff lists the switches below dir (/proc/sys/net) that keep the kernel from forwarding
// packets of the lease's subnets, with the command that turns each on. A device that does not exist
// yet has none.
func forwardingOff(dir string, l lease.Lease, devices []string) []string {
	var names []string
	if l.Subnet.IsValid() {
		names = append(names, "ipv4.ip_forward")
		for _, dev := range devices {
			names = append(names, "ipv4.conf."+strings.ReplaceAll(dev, ".", "/")+".forwarding")
		}
	}
	if l.Subnet6.IsValid() {
		names = append(names, "ipv6.conf.all.forwarding")
	}
	var off []string
	for _, name := range names {
		// As in sysctl(8), dots separate directories and a slash stands for a dot in a name.
		path := strings.NewReplacer(".", "/", "/", ".").Replace(name)
		value, err := os.ReadFile(filepath.Join(dir, path))
		if err == nil && strings.TrimSpace(string(value)) == "0" {
			off = append(off, fmt.Sprintf("net.%[1]s is 0, so packets of pods are not forwarded: "+
				"sysctl -w net.%[1]s=1", name))
		}
	}
	return off
}

// ruleNotes returns notes for the operator about disabled rules.
func ruleNotes(r config.Rules) []string {
	if r.NoTrack {
		return nil
	}
	return []string{"--notrack is off: packets between nodes pass connection tracking"}
}

func (s *snapshot) fileCondition() control.Condition {
	c := control.Condition{Name: "subnet-file", OK: s.fileCurrent && s.fileErr == nil}
	switch {
	case c.OK:
	case s.fileErr != nil:
		c.Reason = s.fileErr.Error()
	default:
		c.Reason = s.filePath + " is written once all else is in place"
	}
	return c
}

// allMet reports whether all conditions are met, and the reasons of those that are not.
func allMet(conditions []control.Condition) (ok bool, reasons []string) {
	for _, c := range conditions {
		if !c.OK {
			reasons = append(reasons, c.Name+": "+c.Reason)
		}
	}
	return len(reasons) == 0, reasons
}

// reportReadiness logs changes of readiness and notifies systemd of the first.
func (a *agent) reportReadiness() {
	ready, reasons := allMet(a.conditions())
	if ready == a.readiness.ready {
		return
	}
	a.readiness.ready = ready
	if !ready {
		a.log.Warn("no longer ready", "reasons", strings.Join(reasons, "; "))
		return
	}
	a.log.Info("ready")
	if !a.readiness.notified {
		a.readiness.notified = true
		go shrink()
		notifySystemd(a.log, systemd.SdNotifyReady)
	}
}

// reportForwarding tells the cluster whether this node forwards packets, from the first time that
// it does.
func (a *agent) reportForwarding() {
	if a.cluster == nil || a.acquired.IsZero() {
		return
	}
	s := a.snapshot.Load()
	rules := s.rules.Status()
	conditions := []control.Condition{
		s.kernelCondition(), rulesCondition(a.cfg.Rules, rules),
		forwardCondition(s.forwardingOff(), rules),
	}
	if s.cloud != nil {
		conditions = append(conditions, cloudCondition(s.cloud.Status()))
	}
	if s.engine != nil {
		conditions = append(conditions, a.engineCondition(s))
	}
	ok, reasons := allMet(conditions)
	if ok {
		a.readiness.forwarded = true
	}
	if a.readiness.forwarded {
		a.cluster.SetForwarding(ok, strings.Join(reasons, "; "))
	}
}
