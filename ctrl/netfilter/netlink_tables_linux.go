package netfilter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
)

// netlinkTables gives access to the tables of iptables-nft without its programs. It implements
// tables. The programs list its rules as if they had set them.
type netlinkTables struct{ family family }

func (t netlinkTables) has(table string) bool { return hasNFTTable(t.family, table) }

func (t netlinkTables) table(name string) *nftables.Table {
	return &nftables.Table{Name: name, Family: nftFamily(t.family)}
}

// list implements tables.
func (t netlinkTables) list(table, chain string) (lines []string, exists bool, err error) {
	conn, err := dialNFT()
	if err != nil {
		return nil, false, err
	}
	chains, _, err := chainsOf(conn, t.table(table))
	named := func(c *nftables.Chain) bool { return c.Name == chain }
	if err != nil || !slices.ContainsFunc(chains, named) {
		return nil, false, err
	}
	rules, err := t.read(conn, table, chain)
	for _, r := range rules {
		lines = append(lines, "-A "+chain+" "+r.spec)
	}
	return lines, true, err
}

// listedRule is a rule in both forms.
type listedRule struct {
	spec   string
	handle uint64
}

func (t netlinkTables) read(conn *nftables.Conn, table, chain string) ([]listedRule, error) {
	kernel, err := conn.GetRules(t.table(table), &nftables.Chain{Name: chain, Table: t.table(table)})
	if err != nil {
		return nil, err
	}
	rules := make([]listedRule, len(kernel))
	for i, k := range kernel {
		rules[i] = listedRule{xtablesSpec(t.family, k), k.Handle}
	}
	return rules, nil
}

// restore implements tables, for the commands that plan writes and those of probes.
func (t netlinkTables) restore(_ context.Context, text string) error {
	conn, err := dialNFT()
	if err != nil {
		return err
	}
	var edit *tableEdit
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		name, isTable := strings.CutPrefix(line, "*")
		switch {
		case isTable:
			edit, err = t.edit(conn, name)
		case edit == nil:
			err = errors.New("no table")
		case line == "COMMIT":
			if !edit.existed && len(edit.chains) == 0 {
				conn.DelTable(edit.table) // a probe
			}
			err = commit(conn)
		default:
			err = edit.command(line)
		}
		if err != nil {
			return fmt.Errorf("line %q: %w", line, err)
		}
	}
	return nil
}

// tableEdit adds the changes of one table to conn's next transaction.
type tableEdit struct {
	netlinkTables
	conn    *nftables.Conn
	table   *nftables.Table
	existed bool
	chains  map[string][]listedRule // by name, after the changes so far; handle 0 if added
}

func (t netlinkTables) edit(conn *nftables.Conn, table string) (*tableEdit, error) {
	e := &tableEdit{netlinkTables: t, conn: conn, table: t.table(table),
		chains: map[string][]listedRule{}}
	chains, exists, err := chainsOf(conn, e.table)
	if err != nil {
		return nil, err
	}
	if e.existed = exists; !exists {
		conn.AddTable(e.table)
	}
	for _, c := range chains {
		if e.chains[c.Name], err = t.read(conn, table, c.Name); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// command adds one line.
func (e *tableEdit) command(line string) error {
	command, rest, _ := strings.Cut(line, " ")
	name, spec, _ := strings.Cut(strings.TrimPrefix(rest, ":"), " ")
	if probe, ok := strings.CutPrefix(command, ":"); ok { // ":CHAIN - [0:0]"
		command, name = "-N", probe
	}
	chain := &nftables.Chain{Name: name, Table: e.table}
	_, exists := e.chains[name]
	if !exists && command != "-N" {
		if err := e.addHook(name); err != nil {
			return err
		}
	}
	switch command {
	case "-N":
		e.conn.AddChain(chain)
		e.chains[name] = nil
	case "-A":
		return e.insert(chain, len(e.chains[name]), spec)
	case "-I":
		number, spec, _ := strings.Cut(spec, " ")
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 {
			return fmt.Errorf("bad rule number %q", number)
		}
		return e.insert(chain, n-1, spec)
	case "-D":
		return e.remove(chain, spec)
	case "-F":
		e.conn.FlushChain(chain)
		e.chains[name] = nil
	case "-X":
		e.conn.DelChain(chain)
		delete(e.chains, name)
	default:
		return errors.New("unknown command")
	}
	return nil
}

// insert adds a rule at an index of a chain, or at its end.
func (e *tableEdit) insert(chain *nftables.Chain, at int, spec string) error {
	p, ok := parse(e.table.Name, "-A "+chain.Name+" "+spec)
	if !ok || !p.exact() {
		return errors.New("rule not supported")
	}
	exprs, err := xtablesExprs(e.family, p.rule)
	if err != nil {
		return err
	}
	rules := e.chains[chain.Name]
	k := &nftables.Rule{Table: e.table, Chain: chain, Exprs: exprs}
	switch {
	case at >= len(rules):
		e.conn.AddRule(k)
		at = len(rules)
	case rules[at].handle == 0:
		return errors.New("cannot insert before a new rule")
	default:
		k.Position = rules[at].handle
		e.conn.InsertRule(k)
	}
	e.chains[chain.Name] = slices.Insert(rules, at, listedRule{spec: spec})
	return nil
}

// remove deletes the first rule with a specification.
func (e *tableEdit) remove(chain *nftables.Chain, spec string) error {
	rules := e.chains[chain.Name]
	at := slices.IndexFunc(rules, func(r listedRule) bool { return r.spec == spec && r.handle != 0 })
	if at < 0 {
		return errors.New("no such rule")
	}
	k := &nftables.Rule{Table: e.table, Chain: chain, Handle: rules[at].handle}
	e.chains[chain.Name] = slices.Delete(rules, at, at+1)
	return e.conn.DelRule(k)
}

// addHook adds a built-in chain as iptables-nft does.
func (e *tableEdit) addHook(name string) error {
	for _, c := range baseChains() {
		hook := c
		switch {
		case c.table != e.table.Name:
			continue
		case c.table == tableNAT && name == hookPostrouting && c.chain == chainMasquerade,
			c.table == tableFilter && name == hookForward && c.chain == chainForward,
			c.chain == name:
			hook.name = name
			addChain(e.conn, e.table, hook)
			e.chains[name] = nil
			return nil
		}
	}
	return fmt.Errorf("no chain %s", name)
}
