package netfilter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// attempts is how often a change of one table is tried when somebody else changes the same chains in between.
const attempts = 3

// report is what an applier did and saw.
type report struct {
	changes []string // what was set right, in words; empty if all was in place
	notes   []string // what the operator should know although nothing failed
}

func (r *report) add(more report) {
	r.changes = append(r.changes, more.changes...)
	for _, note := range more.notes {
		if !slices.Contains(r.notes, note) { // both families see the same
			r.notes = append(r.notes, note)
		}
	}
}

// stayTracked is the note about a host that cannot leave packets untracked. Nothing depends on it but speed.
func stayTracked(why error) string {
	return fmt.Sprintf("our own packets stay in connection tracking: %v", why)
}

// tables is iptables for one address family.
type tables interface {
	// has tells whether the kernel holds the table, without bringing it into being.
	has(table string) bool
	// list returns the lines of `iptables -S chain`, and false for a chain that does not exist.
	list(table, chain string) (lines []string, exists bool, err error)
	// restore hands text to iptables-restore --noflush. One table's part takes effect as a whole or not at all.
	restore(ctx context.Context, text string) error
}

// applyTables makes the tables of one family hold exactly the wanted rules among ours. A table that fails does not hold up
// the others.
func applyTables(ctx context.Context, t tables, g goal) (report, error) {
	var (
		total report
		errs  []error
	)
	for _, l := range layouts() {
		part := g
		part.rules = lowered(l.table, g.rules)
		if len(part.rules) == 0 && !t.has(l.table) {
			continue
		}
		r, err := applyTable(ctx, t, l, part)
		total.add(r)
		if err != nil {
			errs = append(errs, fmt.Errorf("table %s: %w", l.table, err))
		}
	}
	return total, errors.Join(errs...)
}

// lowered picks the rules of one table, in the words that iptables has.
func lowered(table string, want []rule) []rule {
	var rs []rule
	for _, r := range want {
		if r.table != table {
			continue
		}
		if r.verdict == keepSource {
			r.verdict = accept
		}
		rs = append(rs, r)
	}
	return rs
}

func applyTable(ctx context.Context, t tables, l layout, g goal) (report, error) {
	var (
		done    report
		lastErr error
	)
	for range attempts {
		have, err := read(t, l)
		if err != nil {
			return done, err
		}
		now := g
		var notes []string
		now.rules, notes = unprotected(l, g, have)
		lines, changes := plan(l, now, have)
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
			lastErr = fmt.Errorf("rules do not read back as they were set: %s", strings.Join(changes, ", "))
		}
	}
	return done, lastErr
}

// read lists the chains of one table that concern us.
func read(t tables, l layout) (listing, error) {
	have := listing{}
	for _, chain := range slices.Concat(l.hooks, l.own) {
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

// unprotected leaves the protection of sources out of want where nobody can rewrite them, so that a host without such a
// rule holds flannel's rules and no others. A rule that does is named even where no protection is wanted; one that leads
// to others is not, since it seldom leads to one that does.
func unprotected(l layout, g goal, have listing) (rest []rule, notes []string) {
	caught := false
	for _, p := range rulesIn(l.table, have[hookPostrouting]) {
		if ours(l, p) || !slices.ContainsFunc(g.nets, func(n Net) bool { return catches(p, n) }) {
			continue
		}
		caught = true
		if rewrites(p) {
			notes = append(notes,
				fmt.Sprintf("%q in %s %s would rewrite pods' sources between nodes", p.line, l.table, hookPostrouting))
		}
	}
	isGuard := func(r rule) bool { return r.comment == commentKeepSource }
	switch {
	case !slices.ContainsFunc(g.rules, isGuard):
		return g.rules, notes
	case !caught:
		return slices.DeleteFunc(slices.Clone(g.rules), isGuard), nil
	}
	for i := range notes {
		notes[i] += "; our rules before it keep them"
	}
	return g.rules, notes
}
