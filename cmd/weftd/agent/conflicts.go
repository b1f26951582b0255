package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"weft/ctrl"
	"weft/ctrl/backend"
	"weft/ctrl/conflict"
	"weft/ctrl/underlay"
	"weft/lease"
)

// conflicts is the agent's view of addresses that the overlay and the rest of the host both need.
type conflicts struct {
	conflict.Result // last one that was acted upon
	checker         *conflict.Checker
	targets         []conflict.Target // gateways and the store
	seen            *conflict.Result  // the checker's pointer to Result
	due             bool              // the plan has changed since the checker's last query
}

func newConflicts(log *slog.Logger) conflicts {
	c := conflict.NewChecker(log)
	return conflicts{checker: c, seen: c.Result()}
}

// preventConflicts fails if the network's own route would cut this node off. It runs before a lease
// is claimed, so that a node that cannot work does not take one.
func (a *agent) preventConflicts(ctx context.Context, k *ctrl.Kernel) error {
	host, err := k.Read(func(string) bool { return false })
	if err != nil {
		return err
	}
	iface := a.host.Iface
	a.conflicts.targets = append(gateways(host.Routes, iface.Name), a.storeTargets(ctx)...)
	targets := slices.Concat(a.conflicts.targets, ownAddresses(host.Routes, iface))
	if err := conflict.Prevent(iface.Name, host.Routes, a.networkRoutes(), targets); err != nil {
		return fmt.Errorf("network config: %w", err)
	}
	return nil
}

// networkRoutes returns the routes to whole networks that the backend will want.
func (a *agent) networkRoutes() []ctrl.Route {
	half := func(p netip.Prefix) netip.Prefix {
		if !p.IsValid() {
			return p
		}
		return netip.PrefixFrom(p.Addr(), p.Bits()+1)
	}
	self := lease.Lease{Subnet: half(a.network.Network), Subnet6: half(a.network.IPv6Network)}
	return slices.DeleteFunc(a.backend.Plan(self, nil).Routes, func(r ctrl.Route) bool {
		return !slices.Contains(podNetworks(a.network), r.Dst)
	})
}

// gateways returns the gateways of an interface's default routes.
func gateways(routes []ctrl.Route, iface string) []conflict.Target {
	var targets []conflict.Target
	for _, r := range routes {
		if r.Dev == iface && r.Dst.Bits() == 0 && r.Via.IsValid() && !r.Via.IsLinkLocalUnicast() {
			targets = append(targets, conflict.Target{Name: "gateway", Addr: r.Via})
		}
	}
	return targets
}

// ownAddresses returns the addresses of the interface that neighbours reach by the prefix of that
// interface. A route that takes packets to them does so on the neighbours.
func ownAddresses(routes []ctrl.Route, i underlay.Iface) []conflict.Target {
	var targets []conflict.Target
	for _, addr := range []netip.Addr{i.Addr, i.Addr6} {
		if slices.ContainsFunc(routes, func(r ctrl.Route) bool {
			return r.Dev == i.Name && !r.Via.IsValid() && r.Dst.Bits() > 0 && r.Dst.Contains(addr)
		}) {
			targets = append(targets, conflict.Target{Name: "address of " + i.Name, Addr: addr})
		}
	}
	return targets
}

// lookupTimeout bounds the look-up of the store's host names. A resolver that does not answer must
// not keep the node from starting.
const lookupTimeout = 2 * time.Second

// storeTargets returns the addresses of the store's servers. A name that cannot be resolved is left
// out: the store's client reports it.
func (d *daemon) storeTargets(ctx context.Context) []conflict.Target {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var targets []conflict.Target
	for _, server := range newStoreStatus(d.cfg.Lease).Endpoints {
		host := server
		if u, err := url.Parse(server); err == nil && u.Host != "" {
			host = u.Hostname()
		}
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			d.log.Debug("store's host name not resolved", "server", server, "err", err)
		}
		for _, addr := range addrs {
			if !addr.IsLoopback() {
				targets = append(targets, conflict.Target{Name: "store", Addr: addr.Unmap()})
			}
		}
	}
	return targets
}

// syncConflicts starts a check once a changed plan is in place, and acts on a new result.
func (a *agent) syncConflicts() {
	kernel := a.reconciler.Status()
	if a.conflicts.due && kernel.Synced && kernel.Current {
		a.conflicts.due = false
		a.conflicts.checker.Set(a.conflictQuery())
	}
	result := a.conflicts.checker.Result()
	if result == a.conflicts.seen || !kernel.Synced {
		return
	}
	if taken := strings.Join(result.Taken, "; "); taken != "" {
		a.log.Error("pod network conflicts with the hosts' network", "err", taken)
	}
	a.conflicts.seen, a.conflicts.Result = result, *result
	a.replan()
}

// conflictQuery returns the addresses that the plan in place concerns. The alloc, extension and
// ipsec backends have no routes of their own.
func (a *agent) conflictQuery() conflict.Query {
	adv := a.backend.Advertisement()
	if adv.Type == "alloc" || adv.Type == "extension" || adv.Type == "ipsec" {
		return conflict.Query{}
	}
	q := conflict.Query{
		Devices: adv.Devices, Targets: a.conflicts.targets,
		Sources: []netip.Addr{a.host.Iface.Addr, a.host.Iface.Addr6},
	}
	families := []leaseFamily{
		func(l *lease.Lease) (netip.Prefix, netip.Addr) { return l.Subnet, l.PublicIP }}
	var served []leaseFamily
	if adv.IPv6Off == "" {
		families = append(families,
			func(l *lease.Lease) (netip.Prefix, netip.Addr) { return l.Subnet6, l.PublicIPv6 })
	}
	for _, family := range families {
		own, _ := family(&a.self)
		if !own.IsValid() {
			continue
		}
		q.Subnets = append(q.Subnets, own)
		q.Sources = append(q.Sources, podSource(own, adv))
		served = append(served, family)
	}
	view := a.view
	q.Peers = func() []conflict.Peer { return conflictPeers(view, served) }
	return q
}

// leaseFamily returns the fields of one address family of a lease.
type leaseFamily func(*lease.Lease) (subnet netip.Prefix, public netip.Addr)

// conflictPeers returns the peers that a plan reaches, in the given families.
func conflictPeers(view *peerView, families []leaseFamily) []conflict.Peer {
	var peers []conflict.Peer
	for _, family := range families {
		for l := range view.peers() {
			subnet, public := family(l)
			if !subnet.IsValid() || view.unplanned[subnet] != "" {
				continue
			}
			if !public.IsValid() {
				public = l.Public()
			}
			peers = append(peers, conflict.Peer{Name: l.Node, Public: public, Subnet: subnet})
		}
	}
	return peers
}

// podSource returns an address of this node in its own subnet: the overlay device's, else that of
// the pods' bridge.
func podSource(subnet netip.Prefix, adv backend.Advertisement) netip.Addr {
	if len(adv.Devices) > 0 {
		return subnet.Masked().Addr()
	}
	return subnet.Masked().Addr().Next()
}
