package netfilter

import (
	"context"
	"fmt"
	"strings"
)

// probeChainName is the name of a chain that exists only within a probe's transaction.
const probeChainName = "WEFT-PROBE"

// iptablesVariant is iptables of one variant (legacy or nft) for one address family.
type iptablesVariant struct {
	tables
	family family
	name   string // of the program: "iptables", "ip6tables-legacy", ...
	legacy bool

	hasRandomFully bool           // MASQUERADE has --random-fully
	unavailable    optionalTables // tables whose rules are not supported
}

// variantOf returns the variant of programs.
func variantOf(p *iptablesPrograms) *iptablesVariant {
	return &iptablesVariant{tables: p, family: p.family, name: p.program, legacy: p.legacy}
}

// probe tests whether the variant and the kernel support the wanted rules. Each test is one
// transaction that leaves nothing behind. Tables without a wanted rule are not accessed, since an
// existing table costs time per packet even if it is empty.
func (v *iptablesVariant) probe(ctx context.Context, want []rule) error {
	v.unavailable = optionalTables{}
	for _, l := range layouts() {
		if len(forIPTables(l.table, want)) == 0 {
			continue
		}
		err := v.probeVerdict(ctx, l.table, verdictAccept)
		if err == nil && l.table == tableRaw {
			err = v.probeVerdict(ctx, l.table, verdictNoTrack)
		}
		switch {
		case isOptional(l.table):
			v.unavailable[l.table] = err
		case err != nil:
			return fmt.Errorf("probe %s: table %s: %w", v.name, l.table, err)
		case l.table == tableNAT:
			if err := v.probeVerdict(ctx, l.table, verdictMasquerade); err != nil {
				return fmt.Errorf("probe %s: masquerade: %w", v.name, err)
			}
			v.hasRandomFully = v.probeVerdict(ctx, l.table, verdictMasqueradeRandom) == nil
		}
	}
	return nil
}

// probeVerdict adds and removes a chain with one rule, in one transaction.
func (v *iptablesVariant) probeVerdict(ctx context.Context, table string, action verdict) error {
	target := rule{verdict: action}.target()
	return v.restore(ctx, strings.Join([]string{
		"*" + table, ":" + probeChainName + " - [0:0]", "-A " + probeChainName + " -j " + target,
		"-F " + probeChainName, "-X " + probeChainName, "COMMIT", "",
	}, "\n"))
}

// degrade replaces or omits the optional rules that this host does not support.
func (v *iptablesVariant) degrade(want []rule) (rs []rule, notes []string) {
	for _, r := range want {
		switch {
		case v.unavailable[r.table] != nil:
			continue
		case r.verdict == verdictMasqueradeRandom && !v.hasRandomFully:
			r.verdict = verdictMasquerade
		}
		rs = append(rs, r)
	}
	return rs, v.unavailable.notes()
}

func (v *iptablesVariant) apply(ctx context.Context, want ruleset) (report, error) {
	supported, trackNotes := keepTracked(v.family, want)
	var notes []string
	supported.rules, notes = v.degrade(supported.rules)
	notes = append(notes, trackNotes...)
	r, err := applyTables(ctx, v.tables, supported)
	for i := range r.changes {
		r.changes[i] = v.name + " " + r.changes[i]
	}
	r.notes = append(append(r.notes, notes...), v.foreignRules(want.nets).inspect(want.rules)...)
	r.add(reportForwardDrops(v.family, want))
	if err != nil {
		return r, fmt.Errorf("%s: %w", v.name, err)
	}
	return r, nil
}

// foreignRules returns the inspector for the nftables tables that the variant does not show. With
// the legacy variant that includes the tables of iptables-nft.
func (v *iptablesVariant) foreignRules(nets []Net) foreignRules {
	skip := []string{tableName(v.family)}
	if !v.legacy {
		skip = append(skip, tableNAT, tableFilter, tableRaw)
	}
	return foreignRules{family: v.family, nets: nets, skipTables: skip,
		remedy: "iptables rules cannot prevent that, nftables rules can: " +
			"set EnableNFTables in the network config"}
}
