package netfilter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// fakeTables is a plain in-memory model of iptables. It implements iptables-restore --noflush for
// the commands that plan writes. Chains hold the rule specifications after "-A CHAIN ".
type fakeTables struct {
	chains map[string]map[string][]string // by table and chain

	restores  []string                  // input of every restore
	fail      error                     // returned by the next restores
	listFails string                    // chain that cannot be listed
	meddle    func(table string)        // called before each restore; simulates another program
	distort   func(rule string) string  // changes how a rule is listed; nil lists it as added
	absent    func(table string) bool   // reports tables that the kernel does not have; nil means none
	listed    map[string]map[string]int // number of listings by table and chain
}

func newFakeTables() *fakeTables {
	f := &fakeTables{chains: map[string]map[string][]string{}, listed: map[string]map[string]int{}}
	for _, l := range layouts() {
		f.chains[l.table], f.listed[l.table] = map[string][]string{}, map[string]int{}
		for _, hook := range l.hooks {
			if hook != chainDockerUser {
				f.chains[l.table][hook] = nil
			}
		}
	}
	return f
}

func (f *fakeTables) has(table string) bool { return f.absent == nil || !f.absent(table) }

func (f *fakeTables) list(table, chain string) ([]string, bool, error) {
	f.listed[table][chain]++
	if chain == f.listFails {
		return nil, false, errors.New("cannot list " + chain)
	}
	rules, exists := f.chains[table][chain]
	if !exists {
		return nil, false, nil
	}
	lines := []string{"-N " + chain}
	for _, r := range rules {
		lines = append(lines, "-A "+chain+" "+f.listing(r))
	}
	return lines, true, nil
}

func (f *fakeTables) listing(r string) string {
	if f.distort == nil {
		return r
	}
	return f.distort(r)
}

func (f *fakeTables) restore(_ context.Context, text string) error {
	f.restores = append(f.restores, text)
	if f.fail != nil {
		return f.fail
	}
	var table string
	var work map[string][]string
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name
			if f.meddle != nil {
				f.meddle(table)
			}
			work = map[string][]string{}
			for chain, rules := range f.chains[table] {
				work[chain] = slices.Clone(rules)
			}
			continue
		}
		if line == "COMMIT" {
			f.chains[table] = work
			continue
		}
		if err := f.command(work, line); err != nil {
			return fmt.Errorf("line %q failed: %w", line, err)
		}
	}
	return nil
}

// command runs one line on the chains of a table.
func (f *fakeTables) command(chains map[string][]string, line string) error {
	command, rest, _ := strings.Cut(line, " ")
	chain, spec, _ := strings.Cut(rest, " ")
	rules, exists := chains[chain]
	if command == "-N" && !exists {
		chains[chain] = nil
		return nil
	}
	if !exists {
		return errors.New("no such chain")
	}
	switch command {
	case "-A":
		chains[chain] = append(rules, spec)
	case "-I":
		number, spec, _ := strings.Cut(spec, " ")
		at, err := strconv.Atoi(number)
		if err != nil || at < 1 || at > len(rules)+1 {
			return errors.New("no such place")
		}
		chains[chain] = slices.Insert(rules, at-1, spec)
	case "-D":
		at := slices.IndexFunc(rules, func(r string) bool { return f.listing(r) == spec })
		if at < 0 {
			return errors.New("no such rule")
		}
		chains[chain] = slices.Delete(rules, at, at+1)
	case "-F":
		chains[chain] = nil
	case "-X":
		if len(rules) > 0 || slices.ContainsFunc(slices.Concat(slices.Collect(maps.Values(chains))...),
			func(r string) bool { return strings.HasSuffix(r, "-j "+chain) }) {
			return errors.New("chain in use")
		}
		delete(chains, chain)
	default:
		return errors.New("unknown command")
	}
	return nil
}
