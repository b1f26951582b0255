package netfilter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
)

const (
	// probeTableName is the name of a table that exists only within a probe's transaction.
	probeTableName = "weft-probe"
	// keepSourcePriority places the guard just before priority srcnat (100), which iptables' nat
	// table and flannel's chain have.
	keepSourcePriority = 100 - 1
)

// baseChain is a base chain of the nftables table. It holds the rules of one iptables chain, given
// by table and chain.
type baseChain struct {
	name         string
	table, chain string
	kind         nftables.ChainType
	hook         nftables.ChainHook
	priority     nftables.ChainPriority
}

func baseChains() []baseChain {
	const nat, filter = nftables.ChainTypeNAT, nftables.ChainTypeFilter
	return []baseChain{
		{"keep-source", tableNAT, chainKeepSource,
			nat, *nftables.ChainHookPostrouting, keepSourcePriority},
		{"postrtg", tableNAT, chainMasquerade,
			nat, *nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource},
		{"forward", tableFilter, chainForward,
			filter, *nftables.ChainHookForward, *nftables.ChainPriorityFilter},
		{"prerouting", tableRaw, hookPrerouting,
			filter, *nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw},
		{"output", tableRaw, hookOutput,
			filter, *nftables.ChainHookOutput, *nftables.ChainPriorityRaw},
		{"tunnel-forward", tableMangle, hookForward,
			filter, *nftables.ChainHookForward, *nftables.ChainPriorityMangle},
		{"tunnel-input", tableMangle, hookInput,
			filter, *nftables.ChainHookInput, *nftables.ChainPriorityMangle},
	}
}

// nftApplier is the applier for nftables. It handles both families over netlink.
type nftApplier struct {
	noRandomPorts map[family]bool           // masquerade has no random ports
	unavailable   map[family]optionalTables // tables whose rules the kernel does not support
}

// openNFT tests whether the kernel supports the wanted rules. Optional rules that it does not
// support are degraded later; for others openNFT returns an error.
func openNFT(want map[family]ruleset) (applier, error) {
	n := &nftApplier{noRandomPorts: map[family]bool{}, unavailable: map[family]optionalTables{}}
	for _, f := range families() {
		n.unavailable[f] = optionalTables{}
		for _, c := range baseChains() {
			rules := forNFTables(c, want[f].rules)
			if len(rules) == 0 {
				continue
			}
			err := probeChain(f, c, rules)
			if err != nil && c.chain == chainMasquerade {
				n.noRandomPorts[f] = true
				err = probeChain(f, c, n.degrade(f, rules))
			}
			if err != nil && isOptional(c.table) {
				n.unavailable[f][c.table], err = err, nil
			}
			if err != nil {
				return nil, fmt.Errorf("probe nftables chain %s: %w", c.name, err)
			}
		}
	}
	return n, nil
}

// probeChain adds a chain with its rules to a separate table and removes them again, in one
// transaction.
func probeChain(f family, c baseChain, rules []rule) error {
	conn, err := dialNFT()
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: probeTableName, Family: nftFamily(f)}
	conn.AddTable(t)
	chain := addChain(conn, t, c)
	for _, r := range rules {
		conn.AddRule(toNFTRule(f, t, chain, r))
	}
	conn.DelTable(t)
	return commit(conn)
}

// forNFTables returns the rules of a chain in their nftables form. That form has no jumps from
// built-in chains, and only the comments that identify a rule's daemon.
func forNFTables(c baseChain, want []rule) []rule {
	rs := inChain(want, c.table, c.chain)
	for i := range rs {
		if rs[i].verdict != verdictNoTrack {
			rs[i].comment = ""
		}
	}
	return rs
}

// degrade replaces or omits the optional rules that this kernel does not support.
func (n *nftApplier) degrade(f family, want []rule) []rule {
	var rs []rule
	for _, r := range want {
		if n.unavailable[f][r.table] != nil {
			continue
		}
		if r.verdict == verdictMasqueradeRandom && n.noRandomPorts[f] {
			r.verdict = verdictMasquerade
		}
		rs = append(rs, r)
	}
	return rs
}

// apply makes the table of each family hold exactly the wanted rules among this daemon's. It
// repairs a table in one transaction, so that no packet sees a partial change.
func (n *nftApplier) apply(_ context.Context, want map[family]ruleset) (report, error) {
	var (
		total report
		errs  []error
	)
	for _, f := range families() {
		s, notes := keepTracked(f, want[f])
		s.rules = n.degrade(f, s.rules)
		r, err := applyNFT(f, s)
		if len(s.rules) == 0 && isNFTUnsupported(err) {
			err = nil // there are no rules to remove
		}
		r.notes = append(append(r.notes, notes...), n.unavailable[f].notes()...)
		foreign := foreignRules{family: f, nets: s.nets, skipTables: []string{tableName(f)},
			remedy: "weftd's chain before it prevents that"}
		r.notes = append(r.notes, foreign.inspect(want[f].rules)...)
		r.add(reportForwardDrops(f, want[f]))
		total.add(r)
		if err != nil {
			errs = append(errs, fmt.Errorf("nftables %s: %w", tableName(f), err))
		}
	}
	return total, errors.Join(errs...)
}

func (*nftApplier) mode() Mode { return NFTables }

// applyNFT implements apply for one family. It retries, because another daemon may change the table
// between listing and change.
func applyNFT(f family, want ruleset) (report, error) {
	var (
		done    report
		lastErr error
	)
	for range maxAttempts {
		conn, err := dialNFT()
		if err != nil {
			return done, err
		}
		wrong, err := queueRepair(conn, f, want)
		if err != nil || len(wrong) == 0 {
			return done, err
		}
		if lastErr = commit(conn); lastErr == nil {
			done.changes = append(done.changes, wrong...)
			lastErr = fmt.Errorf("rules do not read back as set: %s", strings.Join(wrong, ", "))
		}
	}
	return done, lastErr
}

// queueRepair adds to conn's next transaction the operations that make the table match, and returns
// descriptions of the differences. Other daemons' rules stay, and so does a table that has any.
func queueRepair(conn *nftables.Conn, f family, want ruleset) (wrong []string, err error) {
	t := &nftables.Table{Name: tableName(f), Family: nftFamily(f)}
	chains, exists, err := chainsOf(conn, t)
	if err != nil {
		return nil, err
	}
	if !exists && len(want.rules) > 0 {
		conn.AddTable(t)
	}
	needed := len(want.rules) > 0
	for _, c := range sharedChains(t, chains) {
		if c.kernel == nil && len(forNFTables(c.baseChain, want.rules)) == 0 {
			continue
		}
		e, err := c.queueEdit(conn, f, want)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", c.name, err)
		}
		needed = needed || !e.deleteChain
		if !e.isEmpty() {
			wrong = append(wrong, fmt.Sprintf("table %s %s: %s", t.Name, c.name, e.summary()))
		}
	}
	if exists && !needed {
		conn.DelTable(t)
		wrong = append(wrong, fmt.Sprintf("table %s: removed", t.Name))
	}
	return wrong, nil
}

// sharedChain is a chain of the nftables table, in which other daemons may have rules too.
type sharedChain struct {
	baseChain
	table  *nftables.Table
	kernel *nftables.Chain // nil if it does not exist
}

// sharedChains returns the base chains, whether or not they exist, followed by any other chains of
// the table.
func sharedChains(t *nftables.Table, have []*nftables.Chain) []sharedChain {
	var all []sharedChain
	for _, c := range baseChains() {
		s := sharedChain{baseChain: c, table: t}
		named := func(k *nftables.Chain) bool { return k.Name == c.name }
		if i := slices.IndexFunc(have, named); i >= 0 {
			s.kernel = have[i]
			have = slices.Delete(have, i, i+1)
		}
		all = append(all, s)
	}
	for _, k := range have {
		all = append(all, sharedChain{baseChain{name: k.Name}, t, k})
	}
	return all
}

// queueEdit implements queueRepair for one chain, and returns the edit.
func (c sharedChain) queueEdit(conn *nftables.Conn, f family, want ruleset) (chainEdit, error) {
	wanted := forNFTables(c.baseChain, want.rules)
	var kernel []*nftables.Rule
	if c.kernel != nil {
		var err error
		if kernel, err = conn.GetRules(c.table, c.kernel); err != nil {
			return chainEdit{}, err
		}
	}
	chain := c.kernel
	if len(wanted) > 0 && (chain == nil || !c.matches(chain)) {
		kernel = slices.DeleteFunc(kernel, func(k *nftables.Rule) bool {
			return !want.otherDaemon(fromNFTRule(f, c.baseChain, k).rule)
		})
		chain = c.recreate(conn, kernel)
	}
	have := make([]kernelRule, len(kernel))
	for i, k := range kernel {
		have[i] = fromNFTRule(f, c.baseChain, k)
	}
	e := want.edit(wanted, have)
	for _, i := range e.deletes {
		old := &nftables.Rule{Table: c.table, Chain: chain, Handle: kernel[i].Handle}
		if err := conn.DelRule(old); err != nil {
			return e, err
		}
	}
	for _, r := range slices.Backward(e.inserts) {
		conn.InsertRule(toNFTRule(f, c.table, chain, r))
	}
	for _, r := range e.appends {
		conn.AddRule(toNFTRule(f, c.table, chain, r))
	}
	if e.deleteChain {
		conn.DelChain(chain)
	}
	return e, nil
}

// recreate replaces a chain that has the wrong hook, priority or policy, or creates a missing one.
// It restores the rules in keep.
func (c sharedChain) recreate(conn *nftables.Conn, keep []*nftables.Rule) *nftables.Chain {
	if c.kernel != nil {
		conn.FlushChain(c.kernel)
		conn.DelChain(c.kernel)
	}
	chain := addChain(conn, c.table, c.baseChain)
	for _, k := range keep {
		conn.AddRule(&nftables.Rule{
			Table: c.table, Chain: chain, Exprs: k.Exprs, UserData: k.UserData,
		})
	}
	return chain
}

// matches reports whether a kernel chain has the type, hook, priority and policy of c.
func (c baseChain) matches(have *nftables.Chain) bool {
	return have.Type == c.kind && have.Hooknum != nil && *have.Hooknum == c.hook &&
		have.Priority != nil && *have.Priority == c.priority &&
		have.Policy != nil && *have.Policy == nftables.ChainPolicyAccept
}
