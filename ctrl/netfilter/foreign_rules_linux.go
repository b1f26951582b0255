package netfilter

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
)

// foreignRules inspects other programs' nftables chains for conflicts with the wanted rules.
type foreignRules struct {
	family     family
	nets       []Net
	skipTables []string // own tables, and tables inspected by other means
	remedy     string   // how the wanted rules handle a chain that rewrites sources
}

// inspect returns notes on chains that conflict with the wanted rules of one family. The notes only
// inform the operator, so a failed inspection is itself just a note.
func (fr foreignRules) inspect(want []rule) (notes []string) {
	if len(want) == 0 {
		return nil
	}
	var chains []*nftables.Chain
	conn, err := dialNFT()
	if err == nil {
		chains, err = conn.ListChainsOfTableFamily(nftFamily(fr.family))
	}
	for _, c := range chains {
		if c.Hooknum == nil || slices.Contains(fr.skipTables, c.Table.Name) {
			continue
		}
		var rewrites bool
		if rewrites, err = fr.rewritesPodSource(conn, c); rewrites {
			notes = append(notes, fr.rewriteNote(c, want))
		}
		if err != nil {
			break
		}
	}
	if err != nil && !isNFTUnsupported(err) {
		notes = append(notes, fmt.Sprintf("cannot inspect other programs' nftables rules: %v", err))
	}
	return notes
}

func withoutVerdict(rules []rule, v verdict) []rule {
	return slices.DeleteFunc(slices.Clone(rules), func(r rule) bool { return r.verdict == v })
}

func hasVerdict(rules []rule, v verdict) bool {
	return slices.ContainsFunc(rules, func(r rule) bool { return r.verdict == v })
}

// rewriteNote returns the note for a chain that rewrites pods' sources.
func (fr foreignRules) rewriteNote(c *nftables.Chain, want []rule) string {
	note := describeChain(c) + " would rewrite pods' sources between nodes"
	if hasVerdict(want, verdictKeepSource) {
		note += "; " + fr.remedy
	}
	return note
}

func describeChain(c *nftables.Chain) string {
	return fmt.Sprintf("nftables chain %s of table %s", c.Name, c.Table.Name)
}

// rewritesPodSource reports whether a rule of a base chain may rewrite the source of packets that
// pods send to pods on other nodes. Rules that match the packet mark do not count; see
// [mayRewritePodSource].
func (fr foreignRules) rewritesPodSource(conn *nftables.Conn, c *nftables.Chain) (bool, error) {
	if c.Type != nftables.ChainTypeNAT || *c.Hooknum != *nftables.ChainHookPostrouting {
		return false, nil
	}
	rules, err := conn.GetRules(c.Table, c)
	return slices.ContainsFunc(rules, func(r *nftables.Rule) bool {
		d := decode(fr.family, r.Exprs)
		return d.rewritesSource && !d.matchesMark && slices.ContainsFunc(fr.nets,
			func(n Net) bool { return coversNodeToNode(d.src, d.dst, n) })
	}), err
}
