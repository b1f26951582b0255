package netfilter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"

	"weft/deploy/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// firewall is a packet filter under test: nftables, or iptables with one variant of its programs.
type firewall struct {
	name    string
	nft     bool
	variant string // suffix of the iptables programs
	netlink bool   // without the programs
}

func firewalls() []firewall {
	return []firewall{{name: "nftables", nft: true}, {name: "iptables-nft", variant: "-nft"},
		{name: "iptables-legacy", variant: "-legacy"},
		{name: "iptables-nft over netlink", variant: "-nft", netlink: true}}
}

// iptablesFirewalls returns all but nftables.
func iptablesFirewalls() []firewall { return firewalls()[1:] }

// variantHost is the real host limited to one variant of the iptables programs.
type variantHost struct {
	realHost
	variant string
	netlink bool
}

func (h variantHost) open(ctx context.Context, nftables bool, want map[family]ruleset) (applier, error) {
	byIPTables := func() (applier, error) {
		if h.netlink {
			return openNetlinkTables(ctx, want)
		}
		return openVariant(ctx, h.variant, want)
	}
	noNFTables := func() (applier, error) { return nil, errors.New("disabled in this test") }
	if nftables {
		return h.realHost.open(ctx, true, want)
	}
	return choose(false, byIPTables, noNFTables)
}

func (fw firewall) manager() *Manager { return newManager(fw.host(), Options{}) }

func (fw firewall) host() host { return variantHost{variant: fw.variant, netlink: fw.netlink} }

// require skips the test if the programs are not installed or the kernel does not support them. It
// requires much less than the probes under test, so that their faults do not cause a skip.
func (fw firewall) require(t *testing.T) {
	t.Helper()
	if fw.nft {
		requireNFTables(t)
		return
	}
	for _, f := range families() {
		requireProgram(t, fw.program(f))
		if out, err := exec.Command(fw.program(f), "-t", "nat", "-S").CombinedOutput(); err != nil {
			t.Skipf("NOT TESTED: %s: %v: %s", fw.program(f), err, out)
		}
	}
}

// requireNFTables skips the test if an empty nftables table cannot be added.
func requireNFTables(t *testing.T) {
	t.Helper()
	conn, err := dialNFT()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families() {
		conn.DelTable(conn.AddTable(&nftables.Table{Name: "required", Family: nftFamily(f)}))
	}
	if err := conn.Flush(); isNFTUnsupported(err) {
		t.Skipf("NOT TESTED: no nftables in this kernel: %v", err)
	}
}

func requireProgram(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
}

// program returns the name of the iptables program for a family.
func (fw firewall) program(f family) string {
	if f == ipv6 {
		return "ip6tables" + fw.variant
	}
	return "iptables" + fw.variant
}

func newNS(t *testing.T) *lab.NS {
	t.Helper()
	ns, err := lab.NewNS("filter")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// inNS calls f in a namespace.
func inNS(t *testing.T, ns *lab.NS, f func() error) {
	t.Helper()
	if err := ns.Do(f); err != nil {
		t.Fatal(err)
	}
}

// runIn runs a program in a namespace and returns its output.
func runIn(t *testing.T, ns *lab.NS, program string, args ...string) string {
	t.Helper()
	var out, stderr bytes.Buffer
	inNS(t, ns, func() error {
		cmd := exec.Command(program, args...)
		cmd.Stdout, cmd.Stderr = &out, &stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, &stderr)
		}
		return nil
	})
	return out.String()
}

// set applies d once in a namespace. It fails the test if the rules are not in place.
func set(t *testing.T, ns *lab.NS, m *Manager, d Desired) Status {
	t.Helper()
	m.Set(d)
	return resync(t, ns, m)
}

// resync compares and repairs the rules once in a namespace.
func resync(t *testing.T, ns *lab.NS, m *Manager) Status {
	t.Helper()
	inNS(t, ns, func() error {
		m.reconcileOnce(t.Context())
		return nil
	})
	s := m.Status()
	if !s.InPlace || s.Err != nil {
		t.Fatalf("not in place: %v", s.Err)
	}
	return s
}

// listRules lists all rules in a namespace that fw can see, of any program, without counters and
// handles.
func (fw firewall) listRules(t *testing.T, ns *lab.NS, f family) string {
	t.Helper()
	if !fw.nft {
		return restoreText(runIn(t, ns, fw.program(f)+"-save"))
	}
	var b strings.Builder
	inNS(t, ns, func() error { return listNFT(&b, f) })
	return b.String()
}

// restoreText converts the output of iptables-save to the format of the texts in desired_test.go,
// in the order of layouts.
func restoreText(saved string) string {
	byTable := map[string][]string{}
	table := ""
	for line := range strings.Lines(saved) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name
		} else if strings.HasPrefix(line, "-A") {
			byTable[table] = append(byTable[table], table+" "+line+"\n")
		}
	}
	text := "\n"
	for _, table := range []string{tableNAT, tableFilter, tableRaw} {
		text += strings.Join(byTable[table], "")
		delete(byTable, table)
	}
	for _, table := range slices.Sorted(maps.Keys(byTable)) {
		text += strings.Join(byTable[table], "")
	}
	return text
}

// listNFT writes all rules of a family's tables, as far as possible in iptables syntax.
func listNFT(b *strings.Builder, f family) error {
	conn, err := dialNFT()
	if err != nil {
		return err
	}
	chains, err := conn.ListChainsOfTableFamily(nftFamily(f))
	if err != nil {
		return err
	}
	slices.SortStableFunc(chains, func(a, b *nftables.Chain) int {
		return strings.Compare(a.Table.Name+" "+a.Name, b.Table.Name+" "+b.Name)
	})
	for _, c := range chains {
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "%s %s:", c.Table.Name, c.Name)
		if c.Hooknum != nil {
			fmt.Fprintf(b, " %s hook %d priority %d policy %d", c.Type, *c.Hooknum, *c.Priority, *c.Policy)
		}
		b.WriteByte('\n')
		for _, r := range rules {
			fmt.Fprintf(b, "\t%s (%d expressions)\n", fromNFTRule(f, baseChain{}, r).spec(), len(r.Exprs))
		}
	}
	return nil
}

// sorted sorts the rules by chain: the programs list chains in the order of their creation.
func (fw firewall) sorted(text string) string {
	lines := strings.SplitAfter(strings.TrimPrefix(text, "\n"), "\n")
	slices.SortStableFunc(lines, func(a, b string) int {
		key := func(line string) string { return strings.Join(append(strings.Fields(line), "", "", "")[:3], " ") }
		return strings.Compare(key(a), key(b))
	})
	return "\n" + strings.Join(lines, "")
}
