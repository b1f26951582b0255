package netfilter

import (
	"context"
	"errors"
	"fmt"
)

// New makes a manager for the network namespace of the process; see [Manager.Run]. It does nothing before Run and the
// first Set.
func New(o Options) *Manager { return newManager(machine{}, o) }

// machine is the real host.
type machine struct{}

func (machine) open(ctx context.Context, nftables bool, want map[family]goal) (applier, error) {
	byIPTables := func() (applier, error) { return openIPTables(ctx, want) }
	byNFTables := func() (applier, error) { return openNFT(want) }
	return choose(nftables, byIPTables, byNFTables)
}

// iptablesPair is iptables for the families that have rules.
type iptablesPair map[family]*xtables

// openIPTables takes the first variant of the programs that works for every family with rules.
func openIPTables(ctx context.Context, want map[family]goal) (applier, error) {
	var errs []error
	for _, variant := range variants() {
		pair, err := openVariant(ctx, variant, want)
		if err == nil {
			return pair, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func openVariant(ctx context.Context, variant string, want map[family]goal) (iptablesPair, error) {
	pair := iptablesPair{}
	for _, f := range families() {
		if len(want[f].rules) == 0 {
			continue
		}
		x, err := findXtables(ctx, f, variant)
		if err != nil {
			return nil, err
		}
		if err := x.probe(ctx, want[f].rules); err != nil {
			return nil, err
		}
		pair[f] = x
	}
	return pair, nil
}

func (iptablesPair) mode() Mode { return IPTables }

func (pair iptablesPair) apply(ctx context.Context, want map[family]goal) (report, error) {
	var (
		total report
		errs  []error
	)
	for _, f := range families() {
		x, ok := pair[f]
		if !ok {
			continue
		}
		r, err := x.apply(ctx, want[f])
		total.add(r)
		errs = append(errs, err)
	}
	return total, errors.Join(errs...)
}

// sweep implements host.
func (machine) sweep(ctx context.Context, chosen applier, sibling func(rule) bool) error {
	_, err := remove(ctx, chosen, sibling)
	return err
}

// remove takes our rules away from wherever the chosen applier does not look, but for a sibling's, and says in words what
// those were. What iptables-nft keeps is removed over netlink, which needs no program; what the kernel's own iptables keeps
// can only be removed by one.
func remove(ctx context.Context, chosen applier, sibling func(rule) bool) (removed []string, err error) {
	pair, _ := chosen.(iptablesPair)
	_, byNFT := chosen.(*nft)
	var errs []error
	note := func(what []string, err error) {
		removed, errs = append(removed, what...), append(errs, err)
	}
	for _, f := range families() {
		x := pair[f]
		if !byNFT {
			note(removeNFT(f, sibling))
		}
		if x == nil || x.legacy {
			note(removeXtablesNFT(f, sibling))
		}
		if x == nil || !x.legacy {
			note(removeLegacy(ctx, f, sibling))
		}
	}
	return removed, errors.Join(errs...)
}

// removeNFT removes our rules from the table, and that if nothing is left in it.
func removeNFT(f family, sibling func(rule) bool) (removed []string, err error) {
	r, err := applyNFT(f, goal{sibling: sibling})
	if noNFTables(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("remove nftables %s: %w", tableName(f), err)
	}
	if len(r.changes) > 0 {
		removed = []string{fmt.Sprintf("%s nftables table %s", f, tableName(f))}
	}
	return removed, nil
}

// removeLegacy removes our rules from the kernel's own iptables, if that holds any table they could be in.
func removeLegacy(ctx context.Context, f family, sibling func(rule) bool) (removed []string, err error) {
	held := false
	for _, l := range layouts() {
		held = held || legacyTable(f, l.table)
	}
	if !held {
		return nil, nil
	}
	var errs []error
	for _, variant := range []string{"-legacy", ""} {
		x, err := findXtables(ctx, f, variant)
		if err == nil && x.legacy {
			r, err := x.apply(ctx, goal{sibling: sibling})
			return r.changes, err
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("the kernel holds %s tables of legacy iptables, and there is no program to look into them: %w",
		f, errors.Join(errs...))
}

// Cleanup removes every rule that a Manager or flannel, of whatever network, may have left in this network namespace, in
// all the places where they could be, and says in words what those were. It goes on after an error and returns all of them.
func Cleanup(ctx context.Context) (removed []string, err error) { return remove(ctx, nil, noSibling) }
