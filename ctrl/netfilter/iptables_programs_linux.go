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
	// exitNoChain is the exit status of iptables if a chain does not exist or cannot be read.
	exitNoChain = 1
)

// iptablesPrograms are the host's iptables programs of one variant (legacy or nft) for one address
// family. They implement tables.
type iptablesPrograms struct {
	family      family
	program     string // "iptables", "ip6tables-legacy", ...
	legacy      bool
	lister      *iptables.IPTables
	restorePath string // path of iptables-restore
	hasWait     bool   // iptables-restore has --wait
}

// programName returns the name of the iptables program of a variant.
func programName(f family, variant string) string {
	if f == ipv6 {
		return "ip6tables" + variant
	}
	return "iptables" + variant
}

// findPrograms finds the programs of a variant.
func findPrograms(ctx context.Context, f family, variant string) (*iptablesPrograms, error) {
	protocol := iptables.ProtocolIPv4
	if f == ipv6 {
		protocol = iptables.ProtocolIPv6
	}
	p := &iptablesPrograms{family: f, program: programName(f, variant)}
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
	// Programs before 1.6.2 have no --wait.
	_, err = p.run(ctx, p.restorePath, "", "--noflush", "--wait", fmt.Sprint(lockWait))
	p.hasWait = err == nil
	return p, nil
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
