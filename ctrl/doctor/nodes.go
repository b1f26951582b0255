package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

func nodeChecks() []check {
	return []check{
		{name: "duplicate-node", needs: []source{fromDaemon}, find: findDuplicates},
		{name: "backend-mismatch", needs: []source{fromDaemon}, find: findMismatch},
		{name: "wrong-interface", needs: []source{fromDaemon, fromKernel}, find: findWrongInterface},
		{name: "unknown-source", needs: []source{fromTraffic}, find: findUnknownSource},
		{name: "not-ready", needs: []source{fromDaemon}, symptom: true, find: findNotReady},
	}
}

// findDuplicates compares the subnets and public addresses of all nodes, this one included.
func findDuplicates(f *Facts) []Finding {
	type owner struct{ name, value string }
	owned := map[string]string{}
	var out []Finding
	add := func(o owner, kind, remedy string) {
		if other, taken := owned[o.value]; taken {
			out = append(out, Finding{
				Evidence: fmt.Sprintf("%s and %s have one %s, %s", other, o.name, kind, o.value),
				Cause: "a cloned machine, nodes that publish the same NAT address (Vagrant's 10.0.2.15), or a " +
					"former lease of the same node",
				Remedy: remedy,
			})
		}
		if owned[o.value] == "" {
			owned[o.value] = o.name
		}
	}
	const address = "--iface with the interface that is unique, or --public-ip, on one of them"
	const subnet = "delete the lease of one of them in the store and restart its daemon"
	if i := f.Daemon.Interface; i != nil && i.Public.IsValid() {
		add(owner{"this node", i.Public.String()}, "public address", address)
	}
	if l := f.Daemon.Lease; l != nil && l.Subnet.IsValid() {
		add(owner{"this node", l.Subnet.String()}, "subnet", subnet)
	}
	for _, n := range f.Daemon.Nodes {
		if n.Public.IsValid() {
			add(owner{n.Name, n.Public.String()}, "public address", address)
		}
		if n.Subnet.IsValid() {
			add(owner{n.Name, n.Subnet.String()}, "subnet", subnet)
		}
	}
	for _, n := range f.Nodes {
		if n.Underlay.Local && owned[n.Public.String()] != "this node" {
			out = append(out, Finding{
				Evidence: fmt.Sprintf("%s, the address of %s, is an address of this host, too", n.Public, n.Name),
				Cause:    "an address was added here by hand, or a virtual IP has moved here: packets to that node stay here",
				Remedy: fmt.Sprintf("ip addr show to %s; ip addr del it, or --public-ip with another address on %s",
					n.Public, n.Name),
			})
		}
	}
	return out
}

// Parts of the daemon's reasons why a plan does not reach a node, by the check that reports them.
// Other reasons are observations, which the doctor makes itself.
const (
	mismatchReasons  = "is not inside network|backend is|lease has|VNI is|port |carries IPv4 only"
	duplicateReasons = "own public address|is also used by|is this node's own"
	routerReasons    = "is not on the link"
)

// hasReason reports whether a reason contains one of the parts.
func hasReason(reason, parts string) bool {
	return slices.ContainsFunc(strings.Split(parts, "|"), func(part string) bool {
		return strings.Contains(reason, part)
	})
}

// findMismatch reports the nodes that the daemon cannot reach by configuration.
func findMismatch(f *Facts) []Finding {
	var out []Finding
	for _, n := range f.Daemon.Nodes {
		if !hasReason(n.Unreachable, mismatchReasons) {
			continue
		}
		out = append(out, Finding{
			Evidence: fmt.Sprintf("%s (%s): %s", n.Name, n.Public, n.Unreachable),
			Cause:    "that node runs another backend, port or network than this one",
			Remedy:   "give all nodes one network config and restart the daemons that still run with the old one",
		})
	}
	return out
}

// findWrongInterface compares the interface with the routes to the other nodes.
func findWrongInterface(f *Facts) []Finding {
	i := f.Daemon.Interface
	if i == nil {
		return nil
	}
	elsewhere := map[string][]string{}
	for _, n := range f.Nodes {
		if n.Underlay.Err == nil && n.Underlay.Dev != "" && n.Underlay.Dev != i.Name && !n.Underlay.Local &&
			n.Public.IsValid() && i.Name != "lo" {
			elsewhere[n.Underlay.Dev] = append(elsewhere[n.Underlay.Dev], n.Name)
		}
	}
	var out []Finding
	for dev, names := range elsewhere {
		if len(names)*2 <= len(f.Nodes) && len(f.Nodes) > 1 {
			continue // some nodes may be behind another interface; most are not
		}
		out = append(out, Finding{
			Evidence: fmt.Sprintf("the interface in use is %s (%s), but the routes to %s use %s", i.Name,
				i.Address, listed(names), dev),
			Cause:  "the daemon chose an interface that does not lead to the other nodes",
			Remedy: "--iface=" + dev,
		})
	}
	return out
}

// recentSource is the age up to which packets of an unknown source count as a present fault.
const recentSource = 2 * time.Minute

func findUnknownSource(f *Facts) []Finding {
	var out []Finding
	for _, u := range f.Daemon.Traffic.UnknownSources {
		if f.Now.Sub(u.Last) > recentSource {
			continue
		}
		out = append(out, Finding{
			Evidence: fmt.Sprintf("%d tunnel packets from %s, which no node publishes; the last %s ago", u.Packets,
				u.Address, f.Now.Sub(u.Last).Round(time.Second)),
			Cause: "a node sends from another address than it publishes: NAT in between, a second interface, " +
				"or a wrong --public-ip there",
			Remedy: fmt.Sprintf("on that node: --public-ip=%s, or --iface with its interface", u.Address),
		})
	}
	return out
}
