package netfilter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxAttempts is the number of times a change of one table is tried if another program changes the
// same chains concurrently.
const maxAttempts = 3

// tables is iptables for one address family.
type tables interface {
	// has reports whether the kernel has the table, without creating it.
	has(table string) bool
	// list returns the lines of `iptables -S chain`. exists is false if there is no such chain.
	list(table, chain string) (lines []string, exists bool, err error)
	// restore passes text to iptables-restore --noflush, which commits each table atomically.
	restore(ctx context.Context, text string) error
}

// applyTables makes the tables of one family hold exactly the wanted rules among this daemon's. If
// one table fails, the others are still applied.
func applyTables(ctx context.Context, t tables, want ruleset) (report, error) {
	var (
		total report
		errs  []error
	)
	for _, l := range layouts() {
		ofTable := want
		ofTable.rules = forIPTables(l.table, want.rules)
		if len(ofTable.rules) == 0 && !t.has(l.table) {
			continue
		}
		r, err := applyTable(ctx, t, l, ofTable)
		total.add(r)
		if err != nil {
			errs = append(errs, fmt.Errorf("table %s: %w", l.table, err))
		}
	}
	return total, errors.Join(errs...)
}

// forIPTables returns the rules of one table, with verdicts that iptables supports.
func forIPTables(table string, want []rule) []rule {
	var rs []rule
	for _, r := range want {
		if r.table != table {
			continue
		}
		if r.verdict == verdictKeepSource {
			r.verdict = verdictAccept
		}
		rs = append(rs, r)
	}
	return rs
}

func applyTable(ctx context.Context, t tables, l layout, want ruleset) (report, error) {
	var (
		done    report
		lastErr error
	)
	for range maxAttempts {
		have, err := listChains(t, l)
		if err != nil {
			return done, err
		}
		needed := want
		var notes []string
		needed.rules, notes = neededRules(l, want, have)
		lines, changes := plan(l, needed, have)
		if len(lines) == 0 {
			done.notes = notes
			return done, nil
		}
		lastErr = t.restore(ctx, "*"+l.table+"\n"+strings.Join(lines, "\n")+"\nCOMMIT\n")
		if ctx.Err() != nil {
			return done, ctx.Err()
		}
		if lastErr == nil {
			done.changes = append(done.changes, changes...)
			lastErr = fmt.Errorf("rules do not read back as set: %s", strings.Join(changes, ", "))
		}
	}
	return done, lastErr
}

// neededRules returns the wanted rules of a table that the other rules there call for.
func neededRules(l layout, want ruleset, have listing) (needed []rule, notes []string) {
	needed, notes = dropUnneededGuard(l, want, have)
	return dropDockerRules(l, needed, have), notes
}

// listChains lists the chains of one table that can hold managed rules.
func listChains(t tables, l layout) (listing, error) {
	have := listing{}
	for _, chain := range slices.Concat(l.hooks, l.ownChains) {
		lines, exists, err := t.list(l.table, chain)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", chain, err)
		}
		if exists {
			have[chain] = lines
		}
	}
	return have, nil
}

// dropDockerRules returns the wanted rules, without rules 20 to 22 if dockerd's chain does not
// exist.
func dropDockerRules(l layout, want []rule, have listing) []rule {
	if _, exists := have[chainDockerUser]; exists || l.table != tableFilter {
		return want
	}
	return slices.DeleteFunc(slices.Clone(want), func(r rule) bool {
		return r.comment == commentDocker
	})
}

// dropUnneededGuard returns the wanted rules, without the guard (rules 11 to 15) if no foreign rule
// can rewrite pods' sources. Such a host then holds flannel's rules and no others.
//
// The notes name every foreign rule that rewrites sources itself, even if no guard is wanted. They
// do not name jumps to foreign chains, since few of those chains rewrite sources.
func dropUnneededGuard(l layout, want ruleset, have listing) (needed []rule, notes []string) {
	endangered := false
	for _, p := range parseChain(l.table, have[hookPostrouting]) {
		mayRewrite := func(n Net) bool { return mayRewritePodSource(p, n) }
		if isManaged(l, p) || !slices.ContainsFunc(want.nets, mayRewrite) {
			continue
		}
		endangered = true
		if rewritesSource(p) {
			notes = append(notes, fmt.Sprintf(
				"%q in %s %s would rewrite pods' sources between nodes",
				p.line, l.table, hookPostrouting))
		}
	}
	isGuard := func(r rule) bool { return r.comment == commentKeepSource }
	switch {
	case !slices.ContainsFunc(want.rules, isGuard):
		return want.rules, notes
	case !endangered:
		return slices.DeleteFunc(slices.Clone(want.rules), isGuard), nil
	}
	for i := range notes {
		notes[i] += "; weftd's rules before it prevent that"
	}
	return want.rules, notes
}
