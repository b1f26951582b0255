package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/ctrl"
)

// Pod is a network namespace of this host with an address of the node's subnet.
type Pod struct {
	Name string // the process or the file that holds the namespace
	Dev  string
	Addr netip.Prefix
	MTU  int
	// Route is the pod's own route to a pod of another node, or to the network without one.
	Route Lookup
	// Gateway and Far are echoes of the pod to this host's address in the subnet and to the first
	// other node through the overlay, if Probed.
	Gateway, Far Echo
	Probed       bool
}

// String returns the address and the name.
func (p Pod) String() string { return fmt.Sprintf("%s (%s)", p.Addr.Addr(), p.Name) }

func podChecks() []check {
	needs := []source{fromSubnet, fromKernel, fromPods}
	return []check{
		{name: "pod-route", needs: needs, find: findPodRoute},
		{name: "pod-address", needs: needs, find: findPodAddress},
		{name: "pod-cut-off", needs: append(needs, fromProbes), symptom: true, find: findPodCutOff},
	}
}

// gateways returns this host's addresses that pods may have as their gateway: those in the subnet.
func (f *Facts) gateways() []netip.Addr {
	var all []netip.Addr
	for _, a := range f.Kernel.Addrs {
		if f.subnet().Masked().Contains(a.Prefix.Addr()) && !ctrl.OverlayName(a.Dev) {
			all = append(all, a.Prefix.Addr())
		}
	}
	return all
}

// wrongRoute describes what is wrong with a pod's route to other nodes; empty if nothing is.
func (f *Facts) wrongRoute(p Pod) string {
	r := p.Route
	switch {
	case r.Err != nil:
		return fmt.Sprintf("has no route to other nodes: %v", r.Err)
	case r.Dev != p.Dev:
		return "" // a second network of its own
	case !r.Via.IsValid() && p.Addr.Bits() < f.subnet().Bits():
		return fmt.Sprintf("has the prefix %s, wider than this node's subnet: it takes other nodes for its "+
			"neighbours", p.Addr)
	case r.Via.IsValid() && !slices.Contains(f.gateways(), r.Via) && !r.Via.IsLinkLocalUnicast():
		return fmt.Sprintf("has the gateway %s, which is no address of this host in the subnet", r.Via)
	}
	return ""
}

func findPodRoute(f *Facts) []Finding {
	var wrong []string
	for _, p := range f.Pods {
		if problem := f.wrongRoute(p); problem != "" {
			wrong = append(wrong, p.String()+" "+problem)
		}
	}
	if len(wrong) == 0 || len(f.gateways()) == 0 {
		return nil
	}
	return []Finding{{
		Evidence: listed(wrong),
		Cause: "the pod was set up by another plugin or for another subnet, or a program in it changed its " +
			"routes: its packets do not reach this host",
		Remedy: fmt.Sprintf("recreate the pod, or in its namespace: ip route replace default via %s", f.gateways()[0]),
	}}
}

// findPodAddress looks for addresses that two pods have, or a pod and this host.
func findPodAddress(f *Facts) []Finding {
	owners := map[netip.Addr]string{}
	for _, a := range f.gateways() {
		owners[a] = "this host"
	}
	var twice []string
	for _, p := range f.Pods {
		if other, taken := owners[p.Addr.Addr()]; taken {
			twice = append(twice, fmt.Sprintf("%s belongs to %s and to %s", p.Addr.Addr(), other, p.Name))
		}
		owners[p.Addr.Addr()] = p.Name
	}
	if len(twice) == 0 {
		return nil
	}
	return []Finding{{
		Evidence: listed(twice),
		Cause: "an address was given twice: the state of host-local (/var/lib/cni/networks) was lost, or an " +
			"address was set by hand. Packets reach one of them, now this and now that",
		Remedy: "recreate one of the pods",
	}}
}

// findPodCutOff looks for pods that reach nothing although this host does. One that reaches the
// host alone may have a network policy, all of them hardly.
func findPodCutOff(f *Facts) []Finding {
	var mute, alone []string
	probed := 0
	for _, p := range f.Pods {
		switch {
		case !p.Probed:
			continue
		case p.Far.Received > 0: // the host itself may refuse echoes
		case p.Gateway.Received == 0:
			mute = append(mute, p.String())
		default:
			alone = append(alone, p.String())
		}
		probed++
	}
	// Pods send to the first node.
	hostReaches := len(f.Nodes) > 0 && f.Nodes[0].Probed && f.Nodes[0].Probes.Small.Received > 0
	if len(mute) > 0 && (hostReaches || len(f.BlockedPorts) > 0) {
		evidence := fmt.Sprintf("no answer of this host's %s, nor of other nodes, to pods: %s", f.gateways()[0], listed(mute))
		if len(f.BlockedPorts) > 0 {
			evidence += "; ports of the bridge that do not forward: " + listed(f.BlockedPorts)
		}
		return []Finding{{
			Evidence: evidence + f.unexamined(),
			Cause: "frames between the pod and the bridge are lost: a port of the bridge that does not forward, a " +
				"filter of the bridge (ebtables, nftables), VLAN filtering, or INPUT of this host",
			Remedy: "bridge -d link; bridge vlan; nft list ruleset; bridge link set dev PORT state 3",
		}}
	}
	if len(alone) == 0 || len(alone) < probed || !hostReaches {
		return nil
	}
	evidence := fmt.Sprintf("%s answers this host, but no pod of it: %s", f.Nodes[0].Name, listed(alone))
	if len(f.PolicyRules) > 0 {
		evidence += "; policy rules: " + strings.Join(f.PolicyRules, "; ")
	}
	return []Finding{{
		Evidence: evidence + f.unexamined(),
		Cause: "pods' packets take another way than this host's: a mark with a policy rule, a rule or filter for " +
			"the bridge's device, rp_filter, or a network policy that forbids ICMP",
		Remedy: fmt.Sprintf("weft trace %s %s; ip rule; nft list ruleset", f.Pods[0].Addr.Addr(), f.Nodes[0].Target),
	}}
}

// unexamined names the filters that are not examined, as a part of a sentence.
func (f *Facts) unexamined() string {
	if len(f.BelowIP) == 0 {
		return ""
	}
	return "; not examined: nft list table " + listed(f.BelowIP)
}

// pod returns the pod with an address.
func (f *Facts) pod(a netip.Addr) (Pod, bool) {
	i := slices.IndexFunc(f.Pods, func(p Pod) bool { return p.Addr.Addr() == a })
	if i < 0 {
		return Pod{}, false
	}
	return f.Pods[i], true
}
