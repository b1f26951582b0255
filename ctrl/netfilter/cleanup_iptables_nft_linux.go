package netfilter

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

// removeIPTablesNFT removes the managed rules, except other daemons', and the own chains from the
// nftables tables of iptables-nft, and describes them. Everything else in those tables stays.
func removeIPTablesNFT(f family, otherDaemon func(rule) bool) (removed []string, err error) {
	conn, err := dialNFT()
	if err != nil {
		return nil, err
	}
	for _, l := range layouts() {
		n, err := queueRemoval(conn, f, l, otherDaemon)
		if isNFTUnsupported(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("remove rules from table %s of iptables-nft: %w", l.table, err)
		}
		if n > 0 {
			removed = append(removed,
				fmt.Sprintf("%s iptables-nft table %s: %d rules and chains", f, l.table, n))
		}
	}
	if err := commit(conn); err != nil {
		return nil, fmt.Errorf("remove rules from the tables of iptables-nft: %w", err)
	}
	return removed, nil
}

// queueRemoval adds to conn's next transaction the removal of the managed rules and own chains of
// one table, and returns their number. A chain in which other daemons have rules stays, and so do
// the jumps to it.
func queueRemoval(
	conn *nftables.Conn, f family, l layout, otherDaemon func(rule) bool,
) (n int, err error) {
	chains, _, err := chainsOf(conn, &nftables.Table{Name: l.table, Family: nftFamily(f)})
	if err != nil {
		return 0, err
	}
	var (
		rules    []iptablesNFTRule
		unused   []*nftables.Chain
		occupied []string
	)
	for _, c := range chains {
		if !slices.Contains(l.ownChains, c.Name) {
			continue
		}
		deletes, deleteChain, err := removableFromOwnChain(conn, f, c, otherDaemon)
		if err != nil {
			return 0, err
		}
		rules = append(rules, deletes...)
		if deleteChain {
			unused = append(unused, c)
		} else {
			occupied = append(occupied, c.Name)
		}
	}
	for _, c := range chains {
		if !slices.Contains(l.hooks, c.Name) {
			continue
		}
		listed, err := listIPTablesNFT(conn, f, c)
		if err != nil {
			return 0, err
		}
		for _, r := range listed {
			needed := otherDaemon(r.rule) || slices.Contains(occupied, r.target)
			if isManaged(l, r.parsedRule) && !needed {
				rules = append(rules, r)
			}
		}
	}
	return len(rules) + len(unused), queueDeletions(conn, rules, unused)
}

// queueDeletions adds the deletion of rules and of empty chains to conn's next transaction.
func queueDeletions(
	conn *nftables.Conn, rules []iptablesNFTRule, chains []*nftables.Chain,
) error {
	for _, r := range rules {
		if err := conn.DelRule(r.kernel); err != nil {
			return err
		}
	}
	for _, c := range chains {
		conn.DelChain(c)
	}
	return nil
}

// removableFromOwnChain returns the rules to delete from an own chain, and whether the chain is
// empty without them.
func removableFromOwnChain(
	conn *nftables.Conn, f family, c *nftables.Chain, otherDaemon func(rule) bool,
) (deletes []iptablesNFTRule, deleteChain bool, err error) {
	listed, err := listIPTablesNFT(conn, f, c)
	if err != nil {
		return nil, false, err
	}
	have := make([]kernelRule, len(listed))
	for i, r := range listed {
		have[i] = kernelRule{rule: r.rule}
	}
	e := ruleset{otherDaemon: otherDaemon}.edit(nil, have)
	for _, i := range e.deletes {
		deletes = append(deletes, listed[i])
	}
	return deletes, e.deleteChain, nil
}

// iptablesNFTRule is a rule of iptables-nft in both forms. Only the matches that rule can express,
// the comment and the target of a jump are parsed.
type iptablesNFTRule struct {
	parsedRule
	kernel *nftables.Rule
}

func listIPTablesNFT(
	conn *nftables.Conn, f family, c *nftables.Chain,
) ([]iptablesNFTRule, error) {
	kernel, err := conn.GetRules(c.Table, c)
	if err != nil {
		return nil, err
	}
	rules := make([]iptablesNFTRule, len(kernel))
	for i, k := range kernel {
		k.Table, k.Chain = c.Table, c
		rules[i] = iptablesNFTRule{parsedRule{rule: decode(f, k.Exprs).rule}, k}
		for _, e := range k.Exprs {
			switch e := e.(type) {
			case *expr.Verdict:
				rules[i].target = e.Chain
			case *expr.Match:
				if c, ok := e.Info.(*xt.Comment); ok {
					rules[i].comment = string(*c)
				}
			}
		}
	}
	return rules, nil
}
