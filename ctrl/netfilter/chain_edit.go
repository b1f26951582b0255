package netfilter

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// goal is what the rules of one address family are to be.
type goal struct {
	rules   []rule
	nets    []Net           // whose pods' sources are to be kept
	sibling func(rule) bool // whether a rule is that of another daemon on this host, and stands
}

// goals are those of d, where rules that name a former network or subnet of ours are ours still.
func (d Desired) goals(former []netip.Prefix) map[family]goal {
	own := append(prefixes(d.Nets), former...)
	sibling := func(r rule) bool {
		names := r.names()
		return len(names) > 0 && !slices.ContainsFunc(names, func(p netip.Prefix) bool { return slices.Contains(own, p) })
	}
	all := map[family]goal{}
	for _, f := range families() {
		all[f] = goal{d.rules(f), netsOf(f, d.Nets), sibling}
	}
	return all
}

// noSibling is for whoever removes the rules of every daemon.
func noSibling(rule) bool { return false }

// prefixes are the networks and subnets of nets, as rules name them.
func prefixes(nets []Net) []netip.Prefix {
	var ps []netip.Prefix
	for _, n := range nets {
		ps = append(ps, n.Network.Masked(), n.Subnet.Masked())
	}
	return ps
}

func netsOf(f family, nets []Net) []Net {
	var some []Net
	for _, n := range nets {
		if familyOf(n.Network.Addr()) == f {
			some = append(some, n)
		}
	}
	return some
}

// names are the networks and subnets that a rule is for. It has none if every daemon has the same one: a jump, the rule
// for kube-proxy's mark. A rule against tracking tells by its comment, since two daemons may have one address and port.
func (r rule) names() []netip.Prefix {
	var ps []netip.Prefix
	if tag, ok := strings.CutPrefix(r.comment, commentNoTrack); ok {
		if p, err := netip.ParsePrefix(strings.TrimSpace(tag)); err == nil {
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

// found is a rule of the kernel's; exact, if rule says all of it.
type found struct {
	rule
	exact bool
}

// mend is what to do to a chain that daemons share. Its zero value is nothing.
type mend struct {
	drop  []int  // places of rules to delete, from 0
	front []rule // to be put at the head of the chain, in this order
	back  []rule // to be appended
	void  bool   // nothing is left in the chain, which goes too
}

func (m mend) nothing() bool { return !m.void && len(m.drop)+len(m.front)+len(m.back) == 0 }

// mend compares a shared chain with the rules wanted in it. Daemons need no order among each other, since a rule matches
// only what its own network sends or receives, but for the rule that all have, which belongs in front of all. What names
// no network is in order if that rule is; and while others still need it, it stays when we want nothing any more.
func (g goal) mend(want []rule, have []found) mend {
	var m mend
	shared := slices.ContainsFunc(have, func(h found) bool { return g.sibling(h.rule) })
	inPlace := len(want) > 0
	var mine []rule
	for i, h := range have {
		if g.sibling(h.rule) || len(want) == 0 && shared && len(h.names()) == 0 {
			continue
		}
		m.drop, mine = append(m.drop, i), append(mine, h.rule)
		inPlace = inPlace && h.exact
	}
	if inPlace && slices.Equal(mine, want) {
		return mend{}
	}
	for _, r := range want {
		if len(r.names()) == 0 {
			m.front = append(m.front, r)
		} else {
			m.back = append(m.back, r)
		}
	}
	m.void = len(want) == 0 && !shared
	return m
}

// words says for the log what is done.
func (m mend) words() string {
	switch set := len(m.front) + len(m.back); {
	case m.void:
		return "removed"
	case set > 0:
		return fmt.Sprintf("%d rules set", set)
	}
	return fmt.Sprintf("%d rules removed", len(m.drop))
}
