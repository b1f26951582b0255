package netfilter

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

// removeXtablesNFT removes our rules, not a sibling's, and chains from the tables that iptables-nft keeps in nftables. The
// rest of those tables is not touched. It returns what it removed, in words.
func removeXtablesNFT(f family, sibling func(rule) bool) (removed []string, err error) {
	conn, err := dial()
	if err != nil {
		return nil, err
	}
	for _, l := range layouts() {
		n, err := queueRemoval(conn, f, l, sibling)
		if noNFTables(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("remove rules from table %s of iptables-nft: %w", l.table, err)
		}
		if n > 0 {
			removed = append(removed, fmt.Sprintf("%s iptables-nft table %s: %d rules and chains", f, l.table, n))
		}
	}
	if err := flush(conn); err != nil {
		return nil, fmt.Errorf("remove rules from the tables of iptables-nft: %w", err)
	}
	return removed, nil
}

// queueRemoval puts into conn's next transaction what takes our rules out of one table, and returns how many rules and
// chains that are. A chain that a sibling has rules in stays, and so does what jumps to it.
func queueRemoval(conn *nftables.Conn, f family, l layout, sibling func(rule) bool) (n int, err error) {
	chains, _, err := chainsOf(conn, &nftables.Table{Name: l.table, Family: kernelFamily(f)})
	if err != nil {
		return 0, err
	}
	var (
		rules    []xtRule
		void     []*nftables.Chain
		occupied []string
	)
	for _, c := range chains {
		if !slices.Contains(l.own, c.Name) {
			continue
		}
		listed, err := listXT(conn, f, c)
		if err != nil {
			return 0, err
		}
		var have []found
		for _, r := range listed {
			have = append(have, found{rule: r.rule})
		}
		m := goal{sibling: sibling}.mend(nil, have)
		for _, i := range m.drop {
			rules = append(rules, listed[i])
		}
		if m.void {
			void = append(void, c)
		} else {
			occupied = append(occupied, c.Name)
		}
	}
	for _, c := range chains {
		if !slices.Contains(l.hooks, c.Name) {
			continue
		}
		listed, err := listXT(conn, f, c)
		if err != nil {
			return 0, err
		}
		rules = append(rules, slices.DeleteFunc(listed, func(r xtRule) bool {
			return !ours(l, r.parsed) || sibling(r.rule) || slices.Contains(occupied, r.target)
		})...)
	}
	for _, r := range rules {
		if err := conn.DelRule(r.kernel); err != nil {
			return 0, err
		}
	}
	for _, c := range void {
		conn.DelChain(c)
	}
	return len(rules) + len(void), nil
}

// xtRule is a rule of iptables-nft's in the kernel's form, as far as we need to understand it.
type xtRule struct {
	parsed
	kernel *nftables.Rule
}

func listXT(conn *nftables.Conn, f family, c *nftables.Chain) ([]xtRule, error) {
	kernel, err := conn.GetRules(c.Table, c)
	if err != nil {
		return nil, err
	}
	rules := make([]xtRule, len(kernel))
	for i, k := range kernel {
		k.Table, k.Chain = c.Table, c
		rules[i] = xtRule{parsed{rule: decode(f, k.Exprs).rule}, k}
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

// onlooker looks through others' nftables chains for what our rules work against, or in vain.
type onlooker struct {
	family  family
	nets    []Net
	own     []string // tables that are ours, or that are looked through elsewhere
	outcome string   // what our rules do about a chain that rewrites sources
}

// look returns what there is to say about the wanted rules of one family. It is only for the operator's information, so
// where it cannot look that is all it says.
func (o onlooker) look(want []rule) (notes []string) {
	guarded := slices.ContainsFunc(want, func(r rule) bool { return r.verdict == keepSource })
	forwards := slices.ContainsFunc(want, func(r rule) bool { return r.verdict == accept })
	if len(want) == 0 {
		return nil
	}
	conn, err := dial()
	for _, kf := range []nftables.TableFamily{kernelFamily(o.family), nftables.TableFamilyINet} {
		var chains []*nftables.Chain
		if err == nil {
			chains, err = conn.ListChainsOfTableFamily(kf)
		}
		for _, c := range chains {
			if c.Hooknum == nil || slices.Contains(o.own, c.Table.Name) {
				continue
			}
			if forwards && dropsForwarded(c) {
				notes = append(notes, name(c)+" drops what it does not accept itself; no rule of another table can change that")
			}
			if err == nil && kf != nftables.TableFamilyINet {
				var caught bool
				if caught, err = o.catches(conn, c); caught {
					note := name(c) + " would rewrite pods' sources between nodes"
					if guarded {
						note += "; " + o.outcome
					}
					notes = append(notes, note)
				}
			}
		}
	}
	if err != nil && !noNFTables(err) {
		notes = append(notes, fmt.Sprintf("cannot look through others' nftables rules: %v", err))
	}
	return notes
}

func name(c *nftables.Chain) string {
	return fmt.Sprintf("nftables chain %s of table %s", c.Name, c.Table.Name)
}

func dropsForwarded(c *nftables.Chain) bool {
	return *c.Hooknum == *nftables.ChainHookForward && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
}

// catches is [catches] for the rules of a base chain.
func (o onlooker) catches(conn *nftables.Conn, c *nftables.Chain) (bool, error) {
	if c.Type != nftables.ChainTypeNAT || *c.Hooknum != *nftables.ChainHookPostrouting {
		return false, nil
	}
	rules, err := conn.GetRules(c.Table, c)
	return slices.ContainsFunc(rules, func(r *nftables.Rule) bool {
		d := decode(o.family, r.Exprs)
		return d.rewrites && !d.marked && slices.ContainsFunc(o.nets, func(n Net) bool { return between(d.src, d.dst, n) })
	}), err
}
