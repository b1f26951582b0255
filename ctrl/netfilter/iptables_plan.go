package netfilter

import (
	"fmt"
	"slices"
	"strings"
)

// listing is what `iptables -S CHAIN` prints, by chain, for the chains of one table's layout. A chain that does not exist
// has no entry.
type listing map[string][]string

// plan compares what one table has with what is wanted, and returns the lines for iptables-restore --noflush that make it
// so, and what they change in words for the log. Nothing to do: both are empty. Rules of others stay, in their order.
func plan(l layout, g goal, have listing) (lines, changes []string) {
	var create, remove []string
	var occupied []string // chains of ours that only siblings have rules in
	for _, chain := range l.own {
		listed, exists := have[chain]
		want := inChain(g.rules, l.table, chain)
		if !exists && len(want) == 0 {
			continue
		}
		if !exists {
			// Refused if a sibling makes the chain meanwhile; naming it instead would empty it.
			create = append(create, "-N "+chain)
		}
		more, m := planOwn(g, chain, want, rulesIn(l.table, listed))
		lines = append(lines, more...)
		if m.void {
			remove = append(remove, "-X "+chain)
		} else if len(want) == 0 {
			occupied = append(occupied, chain)
		}
		if !m.nothing() {
			changes = append(changes, fmt.Sprintf("%s %s: %s", l.table, chain, m.words()))
		}
	}
	for _, chain := range l.hooks {
		more, change := planHook(l, g, chain, occupied, have[chain])
		lines = append(lines, more...)
		if change != "" {
			changes = append(changes, change)
		}
	}
	return slices.Concat(create, lines, remove), changes
}

// planOwn does the part of plan for what is in a chain of ours, rule by rule: a sibling may write to the same chain
// between our look and our change.
func planOwn(g goal, chain string, want []rule, listed []parsed) (lines []string, m mend) {
	have := make([]found, len(listed))
	for i, p := range listed {
		have[i] = found{p.rule, p.exact()}
	}
	m = g.mend(want, have)
	for _, i := range m.drop {
		lines = append(lines, deletion(listed[i]))
	}
	for i, r := range m.front {
		lines = append(lines, fmt.Sprintf("-I %s %d %s", chain, i+1, r.text()))
	}
	for _, r := range m.back {
		lines = append(lines, "-A "+chain+" "+r.text())
	}
	return lines, m
}

func deletion(p parsed) string { return "-D" + strings.TrimPrefix(p.line, "-A") }

// planHook does the part of plan for one built-in chain, where our rules stand among others'. The jumps there belong to
// whoever has rules in the chain that they lead to.
func planHook(l layout, g goal, chain string, occupied, listed []string) (lines []string, change string) {
	var mine, foreign []parsed
	inPlace := true
	for _, p := range rulesIn(l.table, listed) {
		if ours(l, p) && !g.sibling(p.rule) {
			inPlace = inPlace && !slices.ContainsFunc(foreign, spoils(p.rule))
			mine = append(mine, p)
		} else {
			foreign = append(foreign, p)
		}
	}
	want := inChain(g.rules, l.table, chain)
	for _, p := range mine {
		if r := entrance(p.target); slices.Contains(occupied, p.target) && !slices.Contains(want, r) {
			want = append(want, r)
		}
	}
	slices.SortStableFunc(want, func(a, b rule) int { return slices.Index(l.own, a.to) - slices.Index(l.own, b.to) })
	have, allExact := bare(mine)
	if inPlace && allExact && slices.Equal(have, want) {
		return nil, ""
	}
	for _, p := range mine {
		lines = append(lines, deletion(p))
	}
	lines = append(lines, insertions(want, foreign)...)
	return lines, fmt.Sprintf("%s %s: %s", l.table, chain, difference(have, want, inPlace, allExact))
}

// insertions puts our rules, in their order, among the foreign ones of a built-in chain: each in front of the first rule
// that would spoil it, else at the end as flannel does.
func insertions(want []rule, foreign []parsed) []string {
	lines := make([]string, len(want))
	end := len(foreign)
	for i, r := range slices.Backward(want) {
		if at := slices.IndexFunc(foreign[:end], spoils(r)); at >= 0 {
			end = at
		}
		if end == len(foreign) {
			lines[i] = "-A " + r.chain + " " + r.text()
		} else {
			// The i rules of ours before this one are in already, and places count from 1.
			lines[i] = fmt.Sprintf("-I %s %d %s", r.chain, end+i+1, r.text())
		}
	}
	return lines
}

// spoils returns a test for rules that must not stand before r: for the protection of sources one that may rewrite
// sources, for the rest one that no packet gets past.
func spoils(r rule) func(parsed) bool {
	if r.verdict == jump && r.to == chainKeepSource {
		return mayRewrite
	}
	return ends
}

// rewrites tells whether a rule of the nat table can change a packet's source by itself.
func rewrites(p parsed) bool {
	return slices.Contains([]string{"MASQUERADE", "SNAT", "NETMAP"}, p.target)
}

// mayRewrite also takes in a rule that leads to a chain of somebody else's, such as those of CNI plugins and firewalld. What
// is in there we do not follow: it changes with every pod, and in front of it our protection does no harm.
func mayRewrite(p parsed) bool {
	// kube-proxy's chain is on every node of a cluster, and rewrites only what is marked for it.
	return rewrites(p) || !keepsSources(p.target) && p.target != "KUBE-POSTROUTING"
}

// keepsSources tells whether a target is one of those of iptables-extensions(8) that leave addresses as they are. What is
// none of them is taken for a chain.
func keepsSources(target string) bool {
	return slices.Contains([]string{"", "ACCEPT", "DROP", "REJECT", "RETURN", "QUEUE", "NFQUEUE", "LOG", "NFLOG", "ULOG",
		"AUDIT", "TRACE", "MARK", "CONNMARK", "CLASSIFY", "SET"}, target)
}

// ends tells whether every packet ends at the rule: it has no condition, and its target lets nothing through to the next
// rule. Hosts that deny by default close their FORWARD chain in this way.
func ends(p parsed) bool {
	conditional := p.src.prefix.IsValid() || p.dst.prefix.IsValid() || p.udpPort != 0 || p.marked || p.others > 0
	return !conditional && (rewrites(p) || slices.Contains([]string{"ACCEPT", "DROP", "REJECT", "RETURN"}, p.target))
}

// ours tells whether a rule in a built-in chain was made by us, by flannel, or by a sibling or an earlier run of either: it
// jumps to a chain of ours or carries our comment.
func ours(l layout, p parsed) bool {
	if slices.Contains(l.own, p.target) {
		return true
	}
	comments := []string{commentMasquerade, commentForward, commentKeepSource}
	return slices.Contains(comments, p.comment) || strings.HasPrefix(p.comment, commentNoTrack)
}

// catches tells whether a rule of somebody else's may rewrite the source of what pods of n send each other between nodes.
// One that looks at the packet's mark is for packets that were marked for it.
func catches(p parsed, n Net) bool {
	return mayRewrite(p) && !p.marked && between(p.src, p.dst, n)
}

// between tells whether the addresses take in packets from node to node. What stays on this node is not meant.
func between(src, dst addrMatch, n Net) bool {
	network := n.Network.Masked()
	return src.mayMatch(network) && dst.mayMatch(network) && !dst.within(n.Subnet.Masked())
}

// rulesIn reads a listed chain.
func rulesIn(table string, listed []string) []parsed {
	var ps []parsed
	for _, line := range listed {
		if p, ok := parse(table, line); ok {
			ps = append(ps, p)
		}
	}
	return ps
}

// bare strips parsed rules to their values, and tells whether those say all.
func bare(ps []parsed) (rs []rule, exact bool) {
	exact = true
	for _, p := range ps {
		rs = append(rs, p.rule)
		exact = exact && p.exact()
	}
	return rs, exact
}

// inChain picks the rules of one chain.
func inChain(rs []rule, table, chain string) []rule {
	var some []rule
	for _, r := range rs {
		if r.table == table && r.chain == chain {
			some = append(some, r)
		}
	}
	return some
}

// difference says in words what is wrong with our rules in a built-in chain.
func difference(have, want []rule, placed, exact bool) string {
	missing, extra := 0, len(have)
	for _, r := range want {
		if slices.Contains(have, r) {
			extra--
		} else {
			missing++
		}
	}
	switch {
	case missing > 0 && extra == 0:
		return fmt.Sprintf("%d rules set", missing)
	case missing > 0:
		return fmt.Sprintf("%d rules set, %d old ones removed", missing, extra)
	case extra > 0:
		return fmt.Sprintf("%d old or double rules removed", extra)
	case !exact:
		return "altered rules replaced"
	case !placed:
		return "our rules moved in front of what made them void"
	default:
		return "order of our rules restored"
	}
}
