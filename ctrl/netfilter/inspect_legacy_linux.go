package netfilter

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// legacyPrograms returns the programs of legacy iptables, and nil if the kernel has none of its
// tables or this host no such program.
func legacyPrograms(ctx context.Context, f family) *iptablesPrograms {
	if !slices.ContainsFunc(layouts(), func(l layout) bool { return hasLegacyTable(f, l.table) }) {
		return nil
	}
	for _, variant := range []string{"-legacy", ""} {
		if p, err := findPrograms(ctx, f, variant); err == nil && p.legacy {
			return p
		}
	}
	return nil
}

// readLegacy adds the results of the rules of legacy iptables.
func (c *Conflicts) readLegacy(ctx context.Context, f family, n Net) error {
	p := legacyPrograms(ctx, f)
	if p == nil {
		return nil
	}
	saved, err := p.run(ctx, p.program+"-save", "")
	if err != nil {
		return err
	}
	table := ""
	for line := range strings.Lines(saved) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name
		}
		if chain, ok := strings.CutPrefix(line, ":"); ok {
			name, _, _ := strings.Cut(chain, " ")
			c.Chains = append(c.Chains, name)
		}
		r, ok := parse(table, line)
		switch {
		case !ok:
		case table == tableRaw && (r.target == "NOTRACK" || strings.HasSuffix(line, "-j CT --notrack")):
			c.NoTrack = true
		case table == tableNAT && rewritesDestination(r.target):
			c.Translates = true
		case table == tableNAT && r.chain == hookPostrouting && r.rewritesSource() && !r.matchesMark &&
			!hasManagedName(line) && coversNodeToNode(r.src, r.dst, n):
			c.Masquerades = append(c.Masquerades, fmt.Sprintf("%s rule %q", p.program, line))
		}
	}
	slices.Sort(c.Chains)
	return nil
}

// rewritesSource reports whether the rule changes the source address of packets.
func (p parsedRule) rewritesSource() bool { return p.target == "MASQUERADE" || p.target == "SNAT" }
