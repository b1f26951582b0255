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
	// lockWait is how many seconds an iptables program waits for another one to release the tables.
	lockWait = 5
	// execLimit bounds a call of a program, which may have to wait for that lock.
	execLimit = 2 * lockWait * time.Second
	// probeChain exists only within the transaction that asks what the host can do.
	probeChain = "WEFT-PROBE"
	// notExist is the exit status by which iptables says that a chain does not exist, or that it cannot read it.
	notExist = 1
)

// xtables is iptables of one variant (legacy or nft) for one address family, through the host's programs.
type xtables struct {
	family  family
	program string // "iptables", "ip6tables-legacy", ...
	legacy  bool
	lister  *iptables.IPTables
	path    string // of the restore program
	wait    bool   // it knows --wait

	randomFully bool  // MASQUERADE takes --random-fully
	noTrackErr  error // why packets cannot be left untracked; nil if they can
}

// variants are the endings of the programs' names in the order in which they are tried. The plain name is the variant
// that the host has chosen.
func variants() []string { return []string{"", "-nft", "-legacy"} }

// findXtables finds the programs of a variant. It does not touch the kernel.
func findXtables(ctx context.Context, f family, variant string) (*xtables, error) {
	base, protocol := "iptables", iptables.ProtocolIPv4
	if f == ipv6 {
		base, protocol = "ip6tables", iptables.ProtocolIPv6
	}
	x := &xtables{family: f, program: base + variant, wait: true}
	path, err := exec.LookPath(x.program + "-restore")
	if err != nil {
		return nil, fmt.Errorf("find %s-restore: %w", x.program, err)
	}
	x.path = path
	x.lister, err = iptables.New(iptables.IPFamily(protocol), iptables.Timeout(lockWait), iptables.Path(x.program))
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", x.program, err)
	}
	version, err := x.run(ctx, x.program, "", "--version")
	if err != nil {
		return nil, err
	}
	x.legacy = !strings.Contains(version, "nf_tables")
	return x, nil
}

// probe asks the kernel, through the programs, for what the rules need: one transaction each, that leaves nothing behind.
// Tables without a wanted rule are not touched, since their mere presence costs time per packet.
func (x *xtables) probe(ctx context.Context, want []rule) error {
	for _, l := range layouts() {
		if len(lowered(l.table, want)) == 0 {
			continue
		}
		err := x.tryAccept(ctx, l.table)
		switch {
		case l.table == tableRaw:
			x.noTrackErr = err
			if err == nil {
				x.noTrackErr = x.try(ctx, l.table, rule{verdict: noTrack}.target())
			}
		case err != nil:
			return fmt.Errorf("%s does not work here: %w", x.program, err)
		case l.table == tableNAT:
			if err := x.try(ctx, l.table, rule{verdict: masquerade}.target()); err != nil {
				return fmt.Errorf("%s cannot masquerade here: %w", x.program, err)
			}
			x.randomFully = x.try(ctx, l.table, rule{verdict: masqueradeRandom}.target()) == nil
		}
	}
	return nil
}

// tryAccept asks for the least that a table can do. Programs before 1.6.2 do not know --wait.
func (x *xtables) tryAccept(ctx context.Context, table string) error {
	target := rule{verdict: accept}.target()
	x.wait = true
	err := x.try(ctx, table, target)
	if err == nil {
		return nil
	}
	x.wait = false
	if x.try(ctx, table, target) == nil {
		return nil
	}
	x.wait = true
	return err
}

// try makes a chain with one rule and takes both away again, in one transaction.
func (x *xtables) try(ctx context.Context, table, target string) error {
	return x.restore(ctx, strings.Join([]string{
		"*" + table, ":" + probeChain + " - [0:0]", "-A " + probeChain + " -j " + target,
		"-F " + probeChain, "-X " + probeChain, "COMMIT", "",
	}, "\n"))
}

// fit leaves out of want what this host cannot do and what the rest does not depend on.
func (x *xtables) fit(want []rule) (rs []rule, notes []string) {
	for _, r := range want {
		switch {
		case r.verdict == noTrack && x.noTrackErr != nil:
			if len(notes) == 0 {
				notes = append(notes, stayTracked(x.noTrackErr))
			}
			continue
		case r.verdict == masqueradeRandom && !x.randomFully:
			r.verdict = masquerade
		}
		rs = append(rs, r)
	}
	return rs, notes
}

func (x *xtables) apply(ctx context.Context, g goal) (report, error) {
	fitting := g
	var notes []string
	fitting.rules, notes = x.fit(g.rules)
	r, err := applyTables(ctx, x, fitting)
	for i := range r.changes {
		r.changes[i] = x.program + " " + r.changes[i]
	}
	r.notes = append(append(r.notes, notes...), x.onlooker(g.nets).look(g.rules)...)
	if err != nil {
		return r, fmt.Errorf("%s: %w", x.program, err)
	}
	return r, nil
}

// onlooker sees what iptables does not: tables of nftables, those of iptables-nft included if this is the other variant.
func (x *xtables) onlooker(nets []Net) onlooker {
	own := []string{tableName(x.family)}
	if !x.legacy {
		own = append(own, tableNAT, tableFilter, tableRaw)
	}
	return onlooker{family: x.family, nets: nets, own: own,
		outcome: "rules of iptables cannot prevent it, with EnableNFTables in the network config ours can"}
}

// has implements tables.
func (x *xtables) has(table string) bool {
	if x.legacy {
		return legacyTable(x.family, table)
	}
	return nftTable(x.family, table)
}

// legacyTable looks at the list of tables that the kernel's own iptables holds in this network namespace. It does not
// exist in a kernel without it.
func legacyTable(f family, table string) bool {
	file := "/proc/thread-self/net/ip_tables_names"
	if f == ipv6 {
		file = "/proc/thread-self/net/ip6_tables_names"
	}
	names, err := os.ReadFile(file)
	return err == nil && strings.Contains("\n"+string(names), "\n"+table+"\n")
}

// list implements tables.
func (x *xtables) list(table, chain string) ([]string, bool, error) {
	lines, err := x.lister.List(table, chain)
	var status *iptables.Error
	if errors.As(err, &status) && status.ExitStatus() == notExist {
		return nil, false, nil
	}
	return lines, err == nil, err
}

// restore implements tables.
func (x *xtables) restore(ctx context.Context, text string) error {
	args := []string{"--noflush"}
	if x.wait {
		args = append(args, "--wait", fmt.Sprint(lockWait))
	}
	_, err := x.run(ctx, x.path, text, args...)
	return err
}

// run is the only place that starts a program ourselves: no shell, the text on its standard input.
func (x *xtables) run(ctx context.Context, program, input string, args ...string) (output string, err error) {
	ctx, cancel := context.WithTimeout(ctx, execLimit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		said := strings.Join(strings.Fields(stderr.String()), " ")
		return "", fmt.Errorf("run %s %s: %w: %s", program, strings.Join(args, " "), err, said)
	}
	return stdout.String(), nil
}
