package netfilter

import (
	"context"
	"errors"
	"fmt"
)

// Cleanup removes every rule that a Manager or flannel may have left in this network namespace, for
// any network and with any mechanism, and returns descriptions of the removed rules. It continues
// after errors and returns all of them.
func Cleanup(ctx context.Context) (removed []string, err error) {
	return remove(ctx, nil, noOtherDaemon)
}

// removeElsewhere implements host.
func (realHost) removeElsewhere(
	ctx context.Context, current applier, otherDaemon func(rule) bool,
) error {
	_, err := remove(ctx, current, otherDaemon)
	return err
}

// remove removes the managed rules, except other daemons', from all places that current does not
// manage, and describes them. The rules of iptables-nft are removed over netlink, which needs no
// program. The rules of legacy iptables can only be removed by its program.
func remove(
	ctx context.Context, current applier, otherDaemon func(rule) bool,
) (removed []string, err error) {
	programs, _ := current.(iptablesApplier)
	_, isNFT := current.(*nftApplier)
	var errs []error
	add := func(descriptions []string, err error) {
		removed, errs = append(removed, descriptions...), append(errs, err)
	}
	for _, f := range families() {
		p := programs[f]
		if !isNFT {
			add(removeNFT(f, otherDaemon))
		}
		if p == nil || p.legacy {
			add(removeIPTablesNFT(f, otherDaemon))
		}
		if p == nil || !p.legacy {
			add(removeLegacy(ctx, f, otherDaemon))
		}
	}
	return removed, errors.Join(errs...)
}

// removeNFT removes the managed rules from the nftables table, and the table if it is then empty.
func removeNFT(f family, otherDaemon func(rule) bool) (removed []string, err error) {
	r, err := applyNFT(f, ruleset{otherDaemon: otherDaemon})
	if isNFTUnsupported(err) {
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

// removeLegacy removes the managed rules from legacy iptables if the kernel has one of its tables.
func removeLegacy(
	ctx context.Context, f family, otherDaemon func(rule) bool,
) (removed []string, err error) {
	hasTable := false
	for _, l := range layouts() {
		hasTable = hasTable || hasLegacyTable(f, l.table)
	}
	if !hasTable {
		return nil, nil
	}
	var errs []error
	for _, variant := range []string{"-legacy", ""} {
		p, err := findPrograms(ctx, f, variant)
		if err == nil && p.legacy {
			r, err := variantOf(p).apply(ctx, ruleset{otherDaemon: otherDaemon})
			return r.changes, err
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("kernel has legacy %s iptables tables, but no program can list them: %w",
		f, errors.Join(errs...))
}
