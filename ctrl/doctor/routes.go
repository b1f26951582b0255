package doctor

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"weft/ctrl"
	"weft/ctrl/conflict"
)

func routeChecks() []check {
	return []check{
		{name: "route-missing", needs: []source{fromSubnet, fromKernel}, find: findNoRoute},
		{name: "route-foreign", needs: []source{fromSubnet, fromKernel}, find: findForeignRoute},
		{name: "policy-routing", needs: []source{fromSubnet, fromKernel}, find: findPolicyRouting},
		{name: "ipsec-foreign", needs: []source{fromSubnet, fromKernel}, find: findForeignIPsec},
		{name: "entries-stale", needs: []source{fromDaemon, fromSubnet, fromKernel}, find: findStaleEntries},
		{name: "host-gw-router", needs: []source{fromDaemon}, find: findRouter},
	}
}

// reachable returns the nodes that the daemon has a path to.
func (f *Facts) reachable() []Node {
	return slices.DeleteFunc(slices.Clone(f.Nodes), func(n Node) bool { return n.Unplanned })
}

// rightRoute reports whether a route is one of Weft's or flannel's: by the overlay device, or with
// host-gw and DirectRouting via the node itself.
func (f *Facts) rightRoute(n Node, l Lookup) bool {
	public := n.Public
	if f.backend() == "udp" || f.backend() == "wireguard" {
		public = netip.Addr{}
	}
	return conflict.IntoOverlay(ctrl.RouteMatch{Dev: l.Dev, Via: l.Via, Protocol: l.Protocol, Table: l.Table},
		public, f.devices())
}

// lookups returns the routes that packets of this host and of its pods take to a node, once if they
// agree. A lookup that was not made is not among them.
func (n Node) lookups() []Lookup {
	if n.Forward == (Lookup{}) || sameWay(n.Route, n.Forward) {
		return []Lookup{n.Route}
	}
	return []Lookup{n.Route, n.Forward}
}

func sameWay(a, b Lookup) bool {
	return a.Dev == b.Dev && a.Via == b.Via && a.Table == b.Table && (a.Err == nil) == (b.Err == nil)
}

func findNoRoute(f *Facts) []Finding {
	if f.devicesDown() {
		return nil // with its routes
	}
	var lost []string
	rejected := ""
	for _, n := range f.reachable() {
		for _, l := range n.lookups() {
			toDefault := l.Err == nil && l.Match.IsValid() && l.Match.Bits() == 0 && !f.rightRoute(n, l) &&
				l.Table == ctrl.TableMain
			if errors.Is(l.Err, syscall.ENETUNREACH) || toDefault {
				lost = append(lost, fmt.Sprintf("%s (%s)", n.Name, n.Subnet))
			} else if l.Err != nil {
				rejected = l.Err.Error()
				lost = append(lost, fmt.Sprintf("%s (%s, %v)", n.Name, n.Subnet, l.Err))
			}
		}
	}
	if len(lost) == 0 {
		return nil
	}
	cause := "the daemon does not run, or another program removes its routes"
	remedy := "ip route show proto 157; restart the daemon; ip monitor route shows who removes them"
	switch {
	case rejected != "":
		cause = "a blackhole or unreachable route, or a policy rule, rejects the packets"
		remedy = "remove that route or rule: ip route show table all; ip rule; ip monitor route shows who adds it"
	case f.Daemon.Kernel.Error != "":
		cause = "the daemon cannot add it: " + f.Daemon.Kernel.Error
	}
	return []Finding{{
		Evidence: "no route into the overlay to " + listed(unique(lost)), Cause: cause,
		Remedy: remedy,
	}}
}

// devicesDown reports whether an overlay device is missing or down, for which there is a finding of
// its own.
func (f *Facts) devicesDown() bool {
	return f.contested() || len(findNoDevice(f))+len(findPortTaken(f)) > 0
}

func unique(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

// findForeignRoute looks for routes of the main table that take packets to a node elsewhere.
func findForeignRoute(f *Facts) []Finding {
	return append(f.narrowRoutes(), f.wrongRoutes(func(n Node, l Lookup) (Finding, bool) {
		if l.Table != ctrl.TableMain && l.Table != ctrl.TableLocal || l.Match.Bits() == 0 ||
			f.onForeignBridge(l.Dev) {
			return Finding{}, false
		}
		way := "dev " + l.Dev
		if l.Via.IsValid() {
			way = "via " + l.Via.String() + " " + way
		}
		return Finding{
			Evidence: fmt.Sprintf("packets to %s (%s) leave %s by the route %s %s proto %d", n.Name,
				n.Subnet, way, l.Match, way, l.Protocol),
			Cause: "a route of another program is more specific than the overlay's, or has a lower metric",
			Remedy: fmt.Sprintf("ip route del %s %s; find the program that adds it with ip monitor route",
				l.Match, way),
		}, true
	})...)
}

// narrowRoutes looks for routes to a part of a node's subnet, which the overlay never has. Those to
// a part of this node's are no fault if no bridge has the subnet: some plugins route to each pod.
func (f *Facts) narrowRoutes() []Finding {
	var out []Finding
	inside := func(p netip.Prefix, r ctrl.Route) bool {
		return p.IsValid() && p.Contains(r.Dst.Addr()) && r.Dst.Bits() > p.Bits()
	}
	bridges := f.bridges()
	for _, r := range f.Kernel.Routes {
		owner := ""
		for _, n := range f.Nodes {
			if inside(n.Subnet, r) && !n.rejectedBy(r) {
				owner = n.Name
			}
		}
		if inside(f.subnet().Masked(), r) && len(bridges) > 0 && !slices.Contains(bridges, r.Dev) {
			owner = "this node"
		}
		if owner == "" || r.Protocol == ctrl.RouteProtocol || slices.Contains(f.devices(), r.Dev) {
			continue
		}
		out = append(out, Finding{
			Evidence: fmt.Sprintf("the %s covers a part of the subnet of %s", r, owner),
			Cause:    "a route of another program takes the packets to some pods away from the overlay or the bridge",
			Remedy:   fmt.Sprintf("ip route del %s; find the program that adds it with ip monitor route", r.Dst),
		})
	}
	return out
}

// rejectedBy reports whether a route rejects the packets to the address by which a node was looked
// up. That is a finding of its own, route-missing.
func (n Node) rejectedBy(r ctrl.Route) bool {
	return r.Kind != ctrl.Forward && r.Dst.Contains(n.Target) &&
		slices.ContainsFunc(n.lookups(), func(l Lookup) bool { return l.Err != nil })
}

// onForeignBridge reports whether a device is a bridge with an address of another subnet of the pod
// network, which bridge-subnet reports.
func (f *Facts) onForeignBridge(dev string) bool {
	return slices.ContainsFunc(f.Kernel.Addrs, func(a ctrl.Addr) bool {
		_, isBridge := f.Ports[dev]
		return a.Dev == dev && isBridge && f.network().Contains(a.Prefix.Addr()) &&
			!f.subnet().Masked().Contains(a.Prefix.Addr())
	})
}

// findPolicyRouting looks for other routing tables that take packets to a node.
func findPolicyRouting(f *Facts) []Finding {
	return f.wrongRoutes(func(n Node, l Lookup) (Finding, bool) {
		if l.Table == ctrl.TableMain || l.Table == ctrl.TableLocal {
			return Finding{}, false
		}
		return Finding{
			Evidence: fmt.Sprintf("packets to %s (%s) leave by %s, from table %d; rules: %s", n.Name,
				n.Subnet, l.Dev, l.Table, strings.Join(f.PolicyRules, "; ")),
			Cause: "a policy rule of another program (a VPN, a CNI plugin) takes the packets before the main table",
			Remedy: fmt.Sprintf("ip rule add to %s lookup main priority 100, or exclude the pod network in that program",
				f.network()),
		}, true
	})
}

// wrongRoutes calls describe for each route that does not lead into the overlay. Equal descriptions
// of several nodes are merged to one.
func (f *Facts) wrongRoutes(describe func(Node, Lookup) (Finding, bool)) []Finding {
	var out []Finding
	for _, n := range f.reachable() {
		for _, l := range n.lookups() {
			if l.Err != nil || l == (Lookup{}) || f.rightRoute(n, l) {
				continue
			}
			found, ok := describe(n, l)
			same := func(o Finding) bool { return o.Remedy == found.Remedy }
			if ok && !slices.ContainsFunc(out, same) {
				out = append(out, found)
			}
		}
	}
	return out
}

// findStaleEntries compares the routes, neighbours and forwarding entries with the nodes of the
// cluster.
func findStaleEntries(f *Facts) []Finding {
	if !f.Daemon.Store.Connected {
		return nil // the daemon's list of nodes may be the stale one
	}
	var stale []string
	command := ""
	add := func(entry fmt.Stringer, remove string) {
		stale = append(stale, entry.String())
		command = remove
	}
	for _, r := range f.Kernel.Routes {
		if f.staleRoute(r) {
			add(r, fmt.Sprintf("ip route del %s", r.Dst))
		}
	}
	vxlan := func(dev string) bool {
		l, _ := f.link(dev)
		return l.Kind == ctrl.KindVXLAN && slices.Contains(f.devices(), dev)
	}
	macs := map[ctrl.MAC]bool{}
	for _, n := range f.Kernel.Neighbours {
		if !vxlan(n.Dev) {
			continue
		}
		macs[n.MAC] = true
		if !f.ofNode(func(node Node) bool { return node.Subnet.Contains(n.IP) }) {
			add(n, fmt.Sprintf("ip neigh del %s dev %s", n.IP, n.Dev))
		}
	}
	for _, e := range f.Kernel.FDB {
		// While a device goes down and up again, its entries come one by one.
		lone := !macs[e.MAC] && !f.contested() && !f.anyDown()
		if vxlan(e.Dev) && (lone || !f.ofNode(func(n Node) bool { return n.Public == e.Dst })) {
			add(e, fmt.Sprintf("bridge fdb del %s dev %s dst %s", e.MAC, e.Dev, e.Dst))
		}
	}
	if len(stale) == 0 {
		return nil
	}
	return []Finding{{
		Evidence: "entries of no node of the cluster: " + strings.Join(stale, "; "),
		Cause:    "a node has left or changed while the daemon did not run, or another program made the entry",
		Remedy:   command + "; a running daemon removes it within 10 s, so see its log",
	}}
}

// anyDown reports whether an overlay device is down at the moment.
func (f *Facts) anyDown() bool {
	return slices.ContainsFunc(f.devices(), func(name string) bool {
		l, _ := f.link(name)
		return !l.Up
	})
}

func (f *Facts) ofNode(ok func(Node) bool) bool { return slices.ContainsFunc(f.Nodes, ok) }

// staleRoute reports whether a route of Weft leads to no node. The route of the whole network and
// those of this node do.
func (f *Facts) staleRoute(r ctrl.Route) bool {
	own := []netip.Prefix{f.network(), f.subnet().Masked()}
	return r.Protocol == ctrl.RouteProtocol && ctrl.Contains(own[:1], r.Dst) &&
		!slices.Contains(own, r.Dst) &&
		!f.ofNode(func(n Node) bool { return n.Subnet == r.Dst || n.Public == r.Dst.Addr() })
}

func findRouter(f *Facts) []Finding {
	var out []Finding
	for _, n := range f.Daemon.Nodes {
		if !hasReason(n.Unreachable, routerReasons) {
			continue
		}
		out = append(out, Finding{
			Evidence: fmt.Sprintf("%s (%s): %s", n.Name, n.Public, n.Unreachable),
			Cause:    "host-gw routes pods' packets to the node itself, which works within one Ethernet segment only",
			Remedy:   "use vxlan with DirectRouting, or udp, in the network config",
		})
	}
	return out
}
