package netfilter

import (
	"net/netip"
	"slices"
	"strings"
)

// ruleset is the wanted state of one address family.
type ruleset struct {
	rules []rule
	nets  []Net // networks whose pods' source addresses are preserved
	// otherDaemon reports whether a managed rule belongs to another daemon on this host and must
	// stay.
	otherDaemon func(rule) bool
}

// rulesets returns the wanted state per family. Rules that name one of the previous networks and
// subnets still count as this daemon's.
func (d Desired) rulesets(previous []netip.Prefix) map[family]ruleset {
	own := append(prefixes(d.Nets), previous...)
	isOwn := func(p netip.Prefix) bool { return slices.Contains(own, p) }
	otherDaemon := func(r rule) bool {
		named := r.networks()
		return len(named) > 0 && !slices.ContainsFunc(named, isOwn)
	}
	all := map[family]ruleset{}
	for _, f := range families() {
		all[f] = ruleset{d.rules(f), netsOf(f, d.Nets), otherDaemon}
	}
	return all
}

// noOtherDaemon reports false for any rule. Cleanup uses it to remove the rules of all daemons.
func noOtherDaemon(rule) bool { return false }

// prefixes returns the networks and subnets of nets in the form that rules contain.
func prefixes(nets []Net) []netip.Prefix {
	var ps []netip.Prefix
	for _, n := range nets {
		ps = append(ps, n.Network.Masked(), n.Subnet.Masked())
	}
	return ps
}

// netsOf returns the elements of nets that belong to family f.
func netsOf(f family, nets []Net) []Net {
	var matching []Net
	for _, n := range nets {
		if familyOf(n.Network.Addr()) == f {
			matching = append(matching, n)
		}
	}
	return matching
}

// networks returns the networks and subnets that a rule names. It returns none for rules that all
// daemons have in common: jumps and the rule for kube-proxy's mark. Rules 16 and 17 name the
// network in their comment, since two daemons may use the same address and port.
func (r rule) networks() []netip.Prefix {
	var ps []netip.Prefix
	if suffix, ok := strings.CutPrefix(r.comment, commentNoTrack); ok {
		if p, err := netip.ParsePrefix(strings.TrimSpace(suffix)); err == nil {
			ps = append(ps, p)
		}
		return ps
	}
	for _, p := range []netip.Prefix{r.src.prefix, r.dst.prefix} {
		if p.IsValid() && p != ipv4.multicast() && p != ipv6.multicast() {
			ps = append(ps, p)
		}
	}
	return ps
}
