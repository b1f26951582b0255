package netfilter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

const (
	// lockWait is the number of seconds that an iptables program waits for the xtables lock.
	lockWait = 5
	// execTimeout limits one run of a program, which may have to wait for that lock.
	execTimeout = 2 * lockWait * time.Second
	// probeChainName is the name of a chain that exists only within a probe's transaction.
	probeChainName = "WEFT-PROBE"
	// exitNoChain is the exit status of iptables if a chain does not exist or cannot be read.
	exitNoChain = 1
)

// iptablesPrograms are the host's iptables programs of one variant (legacy or nft) for one address
// family.
type iptablesPrograms struct {
	family      family
	program     string // "iptables", "ip6tables-legacy", ...
	legacy      bool
	lister      *iptables.IPTables
	restorePath string // path of iptables-restore
	hasWait     bool   // iptables-restore has --wait

	hasRandomFully bool           // MASQUERADE has --random-fully
	unavailable    optionalTables // tables whose rules are not supported
}

// findPrograms finds the programs of a variant. It does not access the kernel.
func findPrograms(ctx context.Context, f family, variant string) (*iptablesPrograms, error) {
	base, protocol := "iptables", iptables.ProtocolIPv4
	if f == ipv6 {
		base, protocol = "ip6tables", iptables.ProtocolIPv6
	}
	p := &iptablesPrograms{family: f, program: base + variant, hasWait: true}
	path, err := exec.LookPath(p.program + "-restore")
	if err != nil {
		return nil, fmt.Errorf("find %s-restore: %w", p.program, err)
	}
	p.restorePath = path
	p.lister, err = iptables.New(iptables.IPFamily(protocol), iptables.Timeout(lockWait),
		iptables.Path(p.program))
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", p.program, err)
	}
	version, err := p.run(ctx, p.program, "", "--version")
	if err != nil {
		return nil, err
	}
	p.legacy = !strings.Contains(version, "nf_tables")
	return p, nil
}

// probe tests whether the programs and the kernel support the wanted rules. Each test is one
// transaction that leaves nothing behind. Tables without a wanted rule are not accessed, since an
// existing table costs time per packet even if it is empty.
func (p *iptablesPrograms) probe(ctx context.Context, want []rule) error {
	p.unavailable = optionalTables{}
	for _, l := range layouts() {
		if len(forIPTables(l.table, want)) == 0 {
			continue
		}
		err := p.probeTable(ctx, l.table)
		if err == nil && l.table == tableRaw {
			err = p.probeVerdict(ctx, l.table, verdictNoTrack)
		}
		switch {
		case isOptional(l.table):
			p.unavailable[l.table] = err
		case err != nil:
			return fmt.Errorf("probe %s: table %s: %w", p.program, l.table, err)
		case l.table == tableNAT:
			if err := p.probeVerdict(ctx, l.table, verdictMasquerade); err != nil {
				return fmt.Errorf("probe %s: masquerade: %w", p.program, err)
			}
			p.hasRandomFully = p.probeVerdict(ctx, l.table, verdictMasqueradeRandom) == nil
		}
	}
	return nil
}

// probeTable tests whether a table can hold a rule with verdictAccept, and sets hasWait. Programs
// before 1.6.2 have no --wait.
func (p *iptablesPrograms) probeTable(ctx context.Context, table string) error {
	p.hasWait = true
	err := p.probeVerdict(ctx, table, verdictAccept)
	if err == nil {
		return nil
	}
	p.hasWait = false
	if p.probeVerdict(ctx, table, verdictAccept) == nil {
		return nil
	}
	p.hasWait = true
	return err
}

// probeVerdict adds and removes a chain with one rule, in one transaction.
func (p *iptablesPrograms) probeVerdict(ctx context.Context, table string, v verdict) error {
	target := rule{verdict: v}.target()
	return p.restore(ctx, strings.Join([]string{
		"*" + table, ":" + probeChainName + " - [0:0]", "-A " + probeChainName + " -j " + target,
		"-F " + probeChainName, "-X " + probeChainName, "COMMIT", "",
	}, "\n"))
}

// degrade replaces or omits the optional rules that this host does not support.
func (p *iptablesPrograms) degrade(want []rule) (rs []rule, notes []string) {
	for _, r := range want {
		switch {
		case p.unavailable[r.table] != nil:
			continue
		case r.verdict == verdictMasqueradeRandom && !p.hasRandomFully:
			r.verdict = verdictMasquerade
		}
		rs = append(rs, r)
	}
	return rs, p.unavailable.notes()
}

func (p *iptablesPrograms) apply(ctx context.Context, want ruleset) (report, error) {
	supported, trackNotes := keepTracked(p.family, want)
	var notes []string
	supported.rules, notes = p.degrade(supported.rules)
	notes = append(notes, trackNotes...)
	r, err := applyTables(ctx, p, supported)
	for i := range r.changes {
		r.changes[i] = p.program + " " + r.changes[i]
	}
	r.notes = append(append(r.notes, notes...), p.foreignRules(want.nets).inspect(want.rules)...)
	r.add(reportForwardDrops(p.family, want))
	if err != nil {
		return r, fmt.Errorf("%s: %w", p.program, err)
	}
	return r, nil
}

// foreignRules returns the inspector for the nftables tables that these programs do not show. With
// the legacy variant that includes the tables of iptables-nft.
func (p *iptablesPrograms) foreignRules(nets []Net) foreignRules {
	skip := []string{tableName(p.family)}
	if !p.legacy {
		skip = append(skip, tableNAT, tableFilter, tableRaw)
	}
	return foreignRules{family: p.family, nets: nets, skipTables: skip,
		remedy: "iptables rules cannot prevent that, nftables rules can: " +
			"set EnableNFTables in the network config"}
}

// has implements tables.
func (p *iptablesPrograms) has(table string) bool {
	if p.legacy {
		return hasLegacyTable(p.family, table)
	}
	return hasNFTTable(p.family, table)
}

// hasLegacyTable reports whether legacy iptables has a table in this network namespace. The file
// that lists them does not exist in a kernel without legacy iptables.
func hasLegacyTable(f family, table string) bool {
	file := "/proc/thread-self/net/ip_tables_names"
	if f == ipv6 {
		file = "/proc/thread-self/net/ip6_tables_names"
	}
	names, err := os.ReadFile(file)
	return err == nil && strings.Contains("\n"+string(names), "\n"+table+"\n")
}

// list implements tables.
func (p *iptablesPrograms) list(table, chain string) ([]string, bool, error) {
	lines, err := p.lister.List(table, chain)
	var exitErr *iptables.Error
	if errors.As(err, &exitErr) && exitErr.ExitStatus() == exitNoChain {
		return nil, false, nil
	}
	return lines, err == nil, err
}

// restore implements tables.
func (p *iptablesPrograms) restore(ctx context.Context, text string) error {
	args := []string{"--noflush"}
	if p.hasWait {
		args = append(args, "--wait", fmt.Sprint(lockWait))
	}
	_, err := p.run(ctx, p.restorePath, text, args...)
	return err
}

// run runs a program without a shell, with input as its standard input. Only lister starts programs
// by other means.
func (p *iptablesPrograms) run(
	ctx context.Context, program, input string, args ...string,
) (output string, err error) {
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		message := strings.Join(strings.Fields(stderr.String()), " ")
		return "", fmt.Errorf("run %s %s: %w: %s", program, strings.Join(args, " "), err, message)
	}
	return stdout.String(), nil
}
