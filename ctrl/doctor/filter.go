package doctor

import (
	"fmt"
	"slices"
	"strings"

	"weft/ctrl/netfilter"
)

func filterChecks() []check {
	return []check{
		{name: "forward-drop", needs: []source{fromSubnet, fromFilter}, find: findForwardDrop},
		{name: "prerouting-drop", needs: []source{fromSubnet, fromFilter}, find: findPreroutingDrop},
		{name: "untracked", needs: []source{fromSubnet, fromFilter}, find: findUntracked},
		{name: "conntrack-zone", needs: []source{fromSubnet, fromFilter}, find: findZone},
		{name: "docker-isolation", needs: []source{fromSubnet, fromFilter}, find: findDockerIsolation},
		{name: "tunnel-port-dropped", needs: []source{fromKernel, fromFilter}, find: findPortDropped},
		{name: "rules-missing", needs: []source{fromEnv, fromFilter}, find: findRulesMissing},
		{name: "masquerade-foreign", needs: []source{fromSubnet, fromFilter}, find: findMasquerade},
		{name: "icmp-errors-dropped", needs: []source{fromFilter}, find: findICMPErrorsDropped},
	}
}

// hasDocker reports whether dockerd's chains exist.
func (f *Facts) hasDocker() bool {
	return slices.ContainsFunc(f.Filter.Chains, func(c string) bool {
		return c == "DOCKER" || strings.HasPrefix(c, "DOCKER-")
	})
}

func findForwardDrop(f *Facts) []Finding {
	var out []Finding
	for _, blocked := range f.Filter.Blocked {
		evidence, remedy, _ := strings.Cut(blocked, "; remedy: ")
		cause := "a firewall drops forwarded packets, and accepts of the overlay cannot undo that"
		switch {
		case f.hasDocker():
			cause = "dockerd sets this policy, and nothing accepts the pods' packets before it"
		case slices.ContainsFunc(f.Filter.Chains, func(c string) bool { return strings.HasPrefix(c, "ufw-") }):
			cause = "ufw sets this policy, and nothing accepts the pods' packets before it"
		}
		out = append(out, Finding{Evidence: evidence, Cause: cause, Remedy: remedy})
	}
	return out
}

// findPreroutingDrop looks at chains that see packets of pods before they are routed. Doubtful
// verdicts do not count.
func findPreroutingDrop(f *Facts) []Finding {
	if len(findDockerIsolation(f)) > 0 {
		return nil
	}
	var out []Finding
	for _, n := range f.Nodes {
		for _, v := range n.Pods {
			same := func(o Finding) bool { return strings.HasPrefix(o.Evidence, v.String()) }
			if !v.Dropped || !v.Certain || slices.ContainsFunc(out, same) {
				continue
			}
			out = append(out, Finding{
				Evidence: v.String() + ": packets between pods of this node and of " + n.Name,
				Cause:    "a firewall drops packets of pods as they arrive, before they are forwarded",
				Remedy:   v.Remedy,
			})
		}
	}
	return out
}

// translates reports whether packets of pods need address translation for Services. That of
// kube-proxy with IPVS has its chains, too.
func (f *Facts) translates() bool {
	return f.Filter.Translates || slices.ContainsFunc(f.Filter.Chains, func(c string) bool {
		return c == "KUBE-SERVICES" || c == "nat-prerouting" // of iptables, of nftables
	})
}

// findUntracked looks for packets of pods that bypass connection tracking, although their addresses
// are to be translated.
func findUntracked(f *Facts) []Finding {
	var out []Finding
	add := func(t netfilter.Tracking, what, lost string) {
		same := func(o Finding) bool { return o.Remedy == t.Remedy }
		if t.Untracked && !slices.ContainsFunc(out, same) {
			out = append(out, Finding{
				Evidence: fmt.Sprintf("%s exempts %s from connection tracking", t.Rule, what),
				Cause:    "the addresses of untracked packets are not translated: " + lost,
				Remedy:   t.Remedy,
			})
		}
	}
	for _, n := range f.Nodes {
		if f.translates() {
			const lost = "connections to Services fail, and filters do not see what is established"
			add(n.Sent, "packets of pods to "+n.Name, lost)
			add(n.Returned, "packets of pods of "+n.Name, lost)
		}
	}
	if f.Env.IPMasq {
		add(f.Outbound, "packets of pods to addresses outside the pod network",
			"pods reach neither Services nor the internet, as they are not masqueraded")
	}
	return out
}

// findZone looks for packets of pods that are tracked in another zone than the answers.
func findZone(f *Facts) []Finding {
	for _, n := range f.Nodes {
		if n.Sent.Zone == n.Returned.Zone || n.Sent.Untracked || n.Returned.Untracked {
			continue
		}
		set := n.Sent
		if set.Zone == 0 {
			set = n.Returned
		}
		return []Finding{{
			Evidence: fmt.Sprintf("%s sets the zone %d: packets of pods to %s are tracked in zone %d, the answers in %d",
				set.Rule, set.Zone, n.Name, n.Sent.Zone, n.Returned.Zone),
			Cause: "answers do not belong to a connection of the other zone: they are not translated back, so " +
				"Services fail, and filters take them for new connections",
			Remedy: set.Remedy,
		}}
	}
	return nil
}

// findDockerIsolation judges packets of other nodes' pods to a docker0 in the node's subnet.
func findDockerIsolation(f *Facts) []Finding {
	for _, v := range f.Docker {
		if !v.Dropped || !v.Certain {
			continue
		}
		return []Finding{{
			Evidence: v.String() + ": packets of other nodes to the containers of docker0",
			Cause:    "dockerd drops packets to its bridge that it did not publish a port for",
			Remedy: fmt.Sprintf("iptables -I DOCKER-USER -s %s -j ACCEPT, or dockerd's option "+
				"allow-direct-routing; docs/docker.md", f.network()),
		}}
	}
	return nil
}

// findPortDropped looks at this host's filters on tunnel packets. Doubtful verdicts do not count.
func findPortDropped(f *Facts) []Finding {
	var out []Finding
	add := func(n Node, direction string, verdicts []netfilter.Verdict) {
		for _, v := range verdicts {
			same := func(o Finding) bool { return strings.HasPrefix(o.Evidence, v.String()) }
			if !v.Dropped || !v.Certain || slices.ContainsFunc(out, same) {
				continue
			}
			out = append(out, Finding{
				Evidence: fmt.Sprintf("%s: tunnel packets %s %s (%s), UDP port %d", v, direction, n.Name,
					n.Public, f.tunnelPort()),
				Cause:  "a firewall of this host blocks the tunnel",
				Remedy: f.acceptPort(v),
			})
		}
	}
	for _, n := range f.Nodes {
		add(n, "from", n.In)
		add(n, "to", n.Out)
	}
	return out
}

// acceptPort returns the command that accepts the tunnel's port in the chain of a verdict.
func (f *Facts) acceptPort(v netfilter.Verdict) string {
	command, match, _ := strings.Cut(v.Remedy, " -s ")
	if match != "" {
		return fmt.Sprintf("%s -p udp --dport %d -j ACCEPT", command, f.tunnelPort())
	}
	command, _, _ = strings.Cut(v.Remedy, " ip saddr")
	command, _, _ = strings.Cut(command, " ip6 saddr")
	return fmt.Sprintf("%s udp dport %d accept", command, f.tunnelPort())
}

func findRulesMissing(f *Facts) []Finding {
	fix := "restart the daemon; iptables -t nat -S and iptables -S show the rules"
	if f.Daemon.Rules.Error != "" {
		return []Finding{{
			Evidence: "the daemon's rules are not in place: " + f.Daemon.Rules.Error,
			Cause:    "the packet filter refuses the rules, or another program removes them all the time",
			Remedy:   fix,
		}}
	}
	flushed := !f.RulesFound && f.Env.IPMasq && !slices.Contains(f.Filter.Chains, "postrtg")
	if len(f.RuleChanges) == 0 || !f.RulesFound && !flushed {
		return nil
	}
	return []Finding{{
		Evidence: "changes that the rules need: " + strings.Join(f.RuleChanges, "; "),
		Cause: "another program flushed, reordered or duplicated the rules (a firewall was restarted, " +
			"iptables-restore), and no daemon has repaired them since",
		Remedy: fix,
	}}
}

// guarded reports whether the guard of pods' source addresses exists.
func (f *Facts) guarded() bool {
	return slices.Contains(f.Filter.Chains, "WEFT-KEEP-SOURCE") ||
		slices.Contains(f.Filter.Chains, "keep-source")
}

func findMasquerade(f *Facts) []Finding {
	if f.guarded() || len(f.Filter.Masquerades) == 0 {
		return nil
	}
	return []Finding{{
		Evidence: listed(f.Filter.Masquerades) + " rewrites the sources of packets between pods",
		Cause: "another program masquerades the pod network, so pods see addresses of nodes, and network " +
			"policies fail; the guard against it is off or cannot work there",
		Remedy: fmt.Sprintf("exclude the pod network there: iptables -t nat -I POSTROUTING -s %[1]s -d %[1]s -j ACCEPT",
			f.network()),
	}}
}

// findICMPErrorsDropped matters only if tunnel packets are not tracked: ICMP errors about tracked
// ones are RELATED.
func findICMPErrorsDropped(f *Facts) []Finding {
	if f.Filter.ICMPErrors == "" || !f.Filter.NoTrack {
		return nil
	}
	return []Finding{{
		Evidence: f.Filter.ICMPErrors + " drops ICMP errors in conntrack state INVALID, and tunnel packets are not tracked",
		Cause: "routers' messages that a packet is too big never arrive, so large packets vanish where the " +
			"path is narrower than the interface",
		Remedy: "iptables -I INPUT -p icmp --icmp-type fragmentation-needed -j ACCEPT, or --notrack=false",
	}}
}
