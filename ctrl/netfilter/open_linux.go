package netfilter

import (
	"context"
	"errors"
	"slices"
)

// New returns a manager for the network namespace of the process. It does nothing before the first
// Set and [Manager.Run].
func New(o Options) *Manager { return newManager(realHost{}, o) }

// realHost implements host with the programs and the kernel of this machine.
type realHost struct{}

func (realHost) open(
	ctx context.Context, nftables bool, want map[family]ruleset,
) (applier, error) {
	return choose(nftables,
		func() (applier, error) { return openIPTables(ctx, want) },
		func() (applier, error) { return openNFT(want) })
}

// iptablesApplier is the applier for iptables. It has an entry for each family with rules.
type iptablesApplier map[family]*iptablesVariant

// openIPTables opens the first variant of the programs that works for all families with rules,
// beginning with the one that the host uses.
func openIPTables(ctx context.Context, want map[family]ruleset) (applier, error) {
	var errs []error
	for _, variant := range hostVariants(ctx) {
		a, err := openVariant(ctx, variant, want)
		if err == nil {
			return a, nil
		}
		errs = append(errs, err)
	}
	if !usesIPTablesNFT(want) {
		return nil, errors.Join(errs...)
	}
	a, err := openNetlinkTables(ctx, want)
	if err == nil {
		return a, nil
	}
	return nil, errors.Join(append(errs, err)...)
}

// usesIPTablesNFT reports whether another program has set rules of iptables-nft. On other hosts the
// rules need not be in its tables.
func usesIPTablesNFT(want map[family]ruleset) bool {
	return slices.ContainsFunc(families(), func(f family) bool {
		return len(want[f].rules) > 0 && (hasNFTTable(f, tableFilter) || hasNFTTable(f, tableNAT))
	})
}

// openNetlinkTables opens the tables of iptables-nft without its programs.
func openNetlinkTables(ctx context.Context, want map[family]ruleset) (applier, error) {
	a := iptablesApplier{}
	for _, f := range families() {
		if len(want[f].rules) == 0 {
			continue
		}
		a[f] = &iptablesVariant{tables: netlinkTables{f}, family: f,
			name: "netlink " + programName(f, "-nft")}
		if err := a[f].probe(ctx, want[f].rules); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func openVariant(
	ctx context.Context, variant string, want map[family]ruleset,
) (iptablesApplier, error) {
	a := iptablesApplier{}
	for _, f := range families() {
		if len(want[f].rules) == 0 {
			continue
		}
		p, err := findPrograms(ctx, f, variant)
		if err != nil {
			return nil, err
		}
		a[f] = variantOf(p)
		if err := a[f].probe(ctx, want[f].rules); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (iptablesApplier) mode() Mode { return IPTables }

func (a iptablesApplier) apply(ctx context.Context, want map[family]ruleset) (report, error) {
	var (
		total report
		errs  []error
	)
	for _, f := range families() {
		p, ok := a[f]
		if !ok {
			continue
		}
		r, err := p.apply(ctx, want[f])
		total.add(r)
		errs = append(errs, err)
	}
	return total, errors.Join(errs...)
}
