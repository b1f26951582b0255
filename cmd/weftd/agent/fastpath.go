package agent

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"strings"

	"weft/cmd/control"
	"weft/dataplane/fastpath"
	"weft/dataplane/tun"
	"weft/lease/subnetenv"
)

// followFastPath publishes whether this node takes packets of the fast path, after a change.
func (a *agent) followFastPath() {
	if a.engine == nil || a.acquired.IsZero() {
		return
	}
	// Packets of the fast path are not tracked.
	a.engine.PauseFastPath(a.rules.Status().DropsErrors())
	a.fds.sync(a.engine)
	a.avoidFastPath()
	s := a.engine.FastPath()
	if s.Active == a.host.FastPath {
		return
	}
	if err := a.setUnderlay(a.host.Iface); err != nil {
		a.log.Error("cannot publish the state of the fast path", "err", err)
		return
	}
	a.log.Info("fast path changed", "active", s.Active, "reason", s.Reason)
	a.publishAttrs()
	a.replan()
}

// avoidFastPath leaves packets to nodes that only the workers' reach to the workers.
func (a *agent) avoidFastPath() {
	if a.prober == nil || a.view == nil {
		return
	}
	now := map[netip.Prefix]bool{}
	for id := range a.prober.AvoidsFast {
		now[id] = true
	}
	if maps.Equal(now, a.avoided) {
		return
	}
	a.avoided = now
	addrs := map[netip.Addr]bool{}
	for l := range a.view.peers() {
		if now[probeID(l.Subnet, l.Subnet6)] {
			addrs[l.Public()] = true
		}
	}
	a.engine.AvoidFastPath(addrs)
}

// unannounced returns why other nodes send all packets to the workers of this node although it
// takes those of the fast path; empty if it does not, or if they know.
func (s *snapshot) unannounced(store control.Store) string {
	own, listed := s.state.All.Get(&s.self)
	if !listed || own.FastPath == s.adv.Attrs.FastPath {
		return ""
	}
	switch {
	case own.FastPath:
		return "not active, but announced by " + store.File
	case store.File != "":
		return "only outbound: " + store.File + " lacks fastPath: true in the entry of this node"
	case store.Kind == "etcd":
		return "only outbound: not announced yet, or the etcd role does not cover the keys that announce it"
	}
	return "only outbound: not announced yet"
}

// publishAttrs gives the lease the current attributes of the backend.
func (a *agent) publishAttrs() {
	if attrs := a.backend.Advertisement().Attrs; !attrs.Equal(a.published) {
		a.published = attrs
		a.manager.SetAttrs(attrs)
	}
}

// removeFastPath detaches the programs that an earlier process left on a device; "" is none.
func (d *daemon) removeFastPath(device string) {
	if err := fastpath.Remove(device); err != nil {
		d.log.Warn("cannot detach the fast path of the previous backend", "err", err)
	}
}

// removeStaleFastPath detaches the programs that earlier processes left on devices that are
// deleted.
func (d *daemon) removeStaleFastPath() {
	if err := fastpath.RemoveStale(); err != nil {
		d.log.Warn("cannot detach programs of a deleted device", "err", err)
	}
}

// leftDevice returns the TUN device that an earlier process left for this one or, persistent, for
// the subnet of the previous run, or "" if there is none.
func (d *daemon) leftDevice(previous subnetenv.File) (string, error) {
	if name, err := d.fds.inherited.Device(); name != "" || err != nil {
		return name, err
	}
	addrs := []netip.Addr{previous.Subnet.Masked().Addr(), previous.Subnet6.Masked().Addr()}
	all, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	var errs []error
	for _, i := range all {
		if !strings.HasPrefix(i.Name, strings.TrimSuffix(devicePattern, "%d")) {
			continue
		}
		has, err := hasAddr(i, addrs)
		errs = append(errs, err)
		if has && tun.IsPersistent(i.Name) {
			return i.Name, nil
		}
	}
	return "", errors.Join(errs...)
}

// hasAddr reports whether the interface has one of the valid addresses.
func hasAddr(i net.Interface, want []netip.Addr) (bool, error) {
	addrs, err := i.Addrs()
	if err != nil {
		return false, err
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		for _, w := range want {
			if err == nil && w.IsValid() && p.Addr() == w {
				return true, nil
			}
		}
	}
	return false, nil
}
