package netfilter

import (
	"fmt"
	"slices"
	"strings"
)

// listing holds the output of `iptables -S CHAIN` by chain, for the chains of one table's layout. A
// chain that does not exist has no entry.
type listing map[string][]string

// plan compares one table with the wanted rules. It returns the lines for iptables-restore
// --noflush that make the table match, and descriptions of the changes for the log. Both are empty
// if the table already matches. Foreign rules stay, in their order.
func plan(l layout, want ruleset, have listing) (lines, changes []string) {
	var create, remove []string
	var occupied []string // own chains that hold only other daemons' rules
	for _, chain := range l.ownChains {
		listed, exists := have[chain]
		wanted := inChain(want.rules, l.table, chain)
		if !exists && len(wanted) == 0 {
			continue
		}
		if !exists {
			// If another daemon creates the chain concurrently, -N fails and the attempt is
			// retried. A line ":chain" would flush that daemon's rules.
			create = append(create, "-N "+chain)
		}
		more, e := planOwnChain(want, chain, wanted, parseChain(l.table, listed))
		lines = append(lines, more...)
		if e.deleteChain {
			remove = append(remove, "-X "+chain)
		} else if len(wanted) == 0 {
			occupied = append(occupied, chain)
		}
		if !e.isEmpty() {
			changes = append(changes, fmt.Sprintf("%s %s: %s", l.table, chain, e.summary()))
		}
	}
	for _, chain := range l.hooks {
		// A missing chain of dockerd has no wanted rules; see dropDockerRules.
		more, change := planHook(l, want, chain, occupied, have[chain])
		lines = append(lines, more...)
		if change != "" {
			changes = append(changes, change)
		}
	}
	return slices.Concat(create, lines, remove), changes
}

// planOwnChain plans the changes inside an own chain. It changes single rules, because another
// daemon may write to the chain after it was listed.
func planOwnChain(
	want ruleset, chain string, wanted []rule, listed []parsedRule,
) (lines []string, e chainEdit) {
	have := make([]kernelRule, len(listed))
	for i, p := range listed {
		have[i] = kernelRule{p.rule, p.exact()}
	}
	e = want.edit(wanted, have)
	for _, i := range e.deletes {
		lines = append(lines, deletion(listed[i]))
	}
	for i, r := range e.inserts {
		lines = append(lines, fmt.Sprintf("-I %s %d %s", chain, i+1, r.spec()))
	}
	for _, r := range e.appends {
		lines = append(lines, "-A "+chain+" "+r.spec())
	}
	return lines, e
}

// deletion returns the line that deletes a listed rule.
func deletion(p parsedRule) string { return "-D" + strings.TrimPrefix(p.line, "-A") }

// planHook plans the changes to a built-in chain, which holds this daemon's rules among others.
// Jumps to the occupied chains stay, because other daemons need them.
func planHook(
	l layout, want ruleset, chain string, occupied, listed []string,
) (lines []string, change string) {
	var own, others []parsedRule
	inPlace := true
	for _, p := range parseChain(l.table, listed) {
		if isManaged(l, p) && !want.otherDaemon(p.rule) {
			inPlace = inPlace && !slices.ContainsFunc(others, mustComeAfter(p.rule))
			own = append(own, p)
		} else {
			others = append(others, p)
		}
	}
	wanted := inChain(want.rules, l.table, chain)
	for _, p := range own {
		r := jumpTo(p.target)
		if slices.Contains(occupied, p.target) && !slices.Contains(wanted, r) {
			wanted = append(wanted, r)
		}
	}
	slices.SortStableFunc(wanted, func(a, b rule) int {
		return slices.Index(l.ownChains, a.to) - slices.Index(l.ownChains, b.to)
	})
	have, allExact := ruleValues(own)
	if inPlace && allExact && slices.Equal(have, wanted) {
		return nil, ""
	}
	for _, p := range own {
		lines = append(lines, deletion(p))
	}
	lines = append(lines, insertions(wanted, others)...)
	summary := hookSummary(have, wanted, inPlace, allExact)
	return lines, fmt.Sprintf("%s %s: %s", l.table, chain, summary)
}

// insertions returns the lines that add the wanted rules to a built-in chain, in their order. Each
// rule is inserted in front of the first of the others that must come after it, or appended if
// there is none, as flannel does.
func insertions(want []rule, others []parsedRule) []string {
	lines := make([]string, len(want))
	end := len(others)
	for i, r := range slices.Backward(want) {
		if at := slices.IndexFunc(others[:end], mustComeAfter(r)); at >= 0 {
			end = at
		}
		if end == len(others) {
			lines[i] = "-A " + r.chain + " " + r.spec()
		} else {
			// Rule numbers start at 1. The i rules before this one are already inserted.
			lines[i] = fmt.Sprintf("-I %s %d %s", r.chain, end+i+1, r.spec())
		}
	}
	return lines
}

// mustComeAfter returns a test for rules that must come after r. If r is the jump to the guard,
// these are the rules that may rewrite sources. If r drops packets, these are the rules that end
// the table for others. For other rules, these are catch-all rules.
func mustComeAfter(r rule) func(parsedRule) bool {
	switch {
	case r.verdict == verdictJump && r.to == chainKeepSource:
		return mayRewriteSource
	case r.verdict == verdictDrop:
		return endsTable
	}
	return isCatchAll
}

// endsTable reports whether a rule of a built-in chain ends the table for the packets it matches.
func endsTable(p parsedRule) bool { return p.target == "ACCEPT" || p.target == "RETURN" }

// rewritesSource reports whether a rule of the nat table rewrites sources itself.
func rewritesSource(p parsedRule) bool {
	return slices.Contains([]string{"MASQUERADE", "SNAT", "NETMAP"}, p.target)
}

// mayRewriteSource reports whether a rule rewrites sources itself or jumps to a foreign chain that
// might, such as those of CNI plugins and firewalld. The contents of those chains are not
// inspected: they change with every pod, and an unneeded guard does no harm.
func mayRewriteSource(p parsedRule) bool {
	// kube-proxy's chain exists on every node of a cluster, and rewrites only packets with its
	// mark.
	return rewritesSource(p) || !neverRewrites(p.target) && p.target != "KUBE-POSTROUTING"
}

// neverRewrites reports whether a target is one of those in iptables-extensions(8) that do not
// change addresses. Any other target is assumed to be a chain.
func neverRewrites(target string) bool {
	return slices.Contains([]string{"", "ACCEPT", "DROP", "REJECT", "RETURN", "QUEUE", "NFQUEUE",
		"LOG", "NFLOG", "ULOG", "AUDIT", "TRACE", "MARK", "CONNMARK", "CLASSIFY", "SET"}, target)
}

// isCatchAll reports whether no packet gets past the rule: it matches all packets, and its target
// is terminating. Hosts that deny by default end their FORWARD chain with such a rule.
func isCatchAll(p parsedRule) bool {
	matchesAll := !p.src.prefix.IsValid() && !p.dst.prefix.IsValid() && p.udpPort == 0 &&
		!p.matchesMark && p.unknownMatches == 0
	terminating := []string{"ACCEPT", "DROP", "REJECT", "RETURN"}
	return matchesAll && (rewritesSource(p) || slices.Contains(terminating, p.target))
}

// isManaged reports whether a rule in a built-in chain was added by a Weft or flannel daemon: it
// jumps to an own chain or has one of the own comments.
func isManaged(l layout, p parsedRule) bool {
	if slices.Contains(l.ownChains, p.target) {
		return true
	}
	comments := []string{commentMasquerade, commentForward, commentKeepSource, commentTunnelPort,
		commentDocker}
	return slices.Contains(comments, p.comment) || strings.HasPrefix(p.comment, commentNoTrack)
}

// mayRewritePodSource reports whether a foreign rule may rewrite the source of packets that pods of
// n send to pods on other nodes. A rule that matches the packet mark does not count, because pods'
// packets to other nodes do not have its mark.
func mayRewritePodSource(p parsedRule, n Net) bool {
	return mayRewriteSource(p) && !p.matchesMark && coversNodeToNode(p.src, p.dst, n)
}

// coversNodeToNode reports whether the address matches include packets between pods on different
// nodes. Matches limited to destinations on this node do not.
func coversNodeToNode(src, dst addrMatch, n Net) bool {
	network := n.Network.Masked()
	return src.overlaps(network) && dst.overlaps(network) && !dst.within(n.Subnet.Masked())
}

// parseChain parses the rules of a listed chain.
func parseChain(table string, listed []string) []parsedRule {
	var ps []parsedRule
	for _, line := range listed {
		if p, ok := parse(table, line); ok {
			ps = append(ps, p)
		}
	}
	return ps
}

// ruleValues returns the rules of ps, and whether all of them are exact.
func ruleValues(ps []parsedRule) (rs []rule, allExact bool) {
	allExact = true
	for _, p := range ps {
		rs = append(rs, p.rule)
		allExact = allExact && p.exact()
	}
	return rs, allExact
}

// inChain returns the rules of one chain.
func inChain(rs []rule, table, chain string) []rule {
	var matching []rule
	for _, r := range rs {
		if r.table == table && r.chain == chain {
			matching = append(matching, r)
		}
	}
	return matching
}

// hookSummary describes the changes to this daemon's rules in a built-in chain for the log.
func hookSummary(have, want []rule, inPlace, allExact bool) string {
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
		return fmt.Sprintf("%d rules set, %d old rules removed", missing, extra)
	case extra > 0:
		return fmt.Sprintf("%d old or duplicate rules removed", extra)
	case !allExact:
		return "altered rules replaced"
	case !inPlace:
		return "rules moved before a rule that bypassed them"
	default:
		return "order of rules restored"
	}
}
