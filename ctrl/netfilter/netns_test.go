package netfilter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"weft/deploy/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// way is one way to set rules that a test goes through.
type way struct {
	name    string
	nft     bool
	variant string // of the iptables programs
}

func ways() []way {
	return []way{{name: "nftables", nft: true}, {name: "iptables-nft", variant: "-nft"},
		{name: "iptables-legacy", variant: "-legacy"}}
}

// iptablesWays leaves nftables out.
func iptablesWays() []way { return ways()[1:] }

// ofVariant is this machine with one variant of the iptables programs.
type ofVariant struct {
	machine
	variant string
}

func (h ofVariant) open(ctx context.Context, nftables bool, want map[family]goal) (applier, error) {
	byIPTables := func() (applier, error) { return openVariant(ctx, h.variant, want) }
	noNFTables := func() (applier, error) { return nil, errors.New("not in this test") }
	if nftables {
		return h.machine.open(ctx, true, want)
	}
	return choose(false, byIPTables, noNFTables)
}

func (w way) manager() *Manager { return newManager(ofVariant{variant: w.variant}, Options{}) }

// need skips where the programs are not installed or the kernel lacks what they need, and says so. It asks for much less
// than our own probes do, so that those cannot hide behind it.
func (w way) need(t *testing.T) {
	t.Helper()
	if w.nft {
		needTables(t)
		return
	}
	for _, f := range families() {
		needProgram(t, w.program(f))
		if out, err := exec.Command(w.program(f), "-t", "nat", "-S").CombinedOutput(); err != nil {
			t.Skipf("NOT TESTED: %s: %v: %s", w.program(f), err, out)
		}
	}
}

// needTables makes an empty nftables table and takes it away again.
func needTables(t *testing.T) {
	t.Helper()
	conn, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families() {
		conn.DelTable(conn.AddTable(&nftables.Table{Name: "needed", Family: kernelFamily(f)}))
	}
	if err := conn.Flush(); noNFTables(err) {
		t.Skipf("NOT TESTED: no nftables in this kernel: %v", err)
	}
}

func needProgram(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
}

// program is the iptables program of one family.
func (w way) program(f family) string {
	if f == ipv6 {
		return "ip6tables" + w.variant
	}
	return "iptables" + w.variant
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

func do(t *testing.T, ns *lab.NS, f func() error) {
	t.Helper()
	if err := ns.Do(f); err != nil {
		t.Fatal(err)
	}
}

// run starts a program in a namespace and returns what it prints.
func run(t *testing.T, ns *lab.NS, program string, args ...string) string {
	t.Helper()
	var out, stderr bytes.Buffer
	do(t, ns, func() error {
		cmd := exec.Command(program, args...)
		cmd.Stdout, cmd.Stderr = &out, &stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, &stderr)
		}
		return nil
	})
	return out.String()
}

// set applies d once in the namespace, and expects it to work.
func set(t *testing.T, ns *lab.NS, m *Manager, d Desired) Status {
	t.Helper()
	m.Set(d)
	return resync(t, ns, m)
}

func resync(t *testing.T, ns *lab.NS, m *Manager) Status {
	t.Helper()
	do(t, ns, func() error {
		m.once(t.Context())
		return nil
	})
	s := m.Status()
	if !s.InPlace || s.Err != nil {
		t.Fatalf("not in place: %v", s.Err)
	}
	return s
}

// rulesOf lists all rules in a namespace that w can see, ours and others', without counters and handles.
func (w way) rulesOf(t *testing.T, ns *lab.NS, f family) string {
	t.Helper()
	if !w.nft {
		return restoreText(run(t, ns, w.program(f)+"-save"))
	}
	var b strings.Builder
	do(t, ns, func() error { return listNFT(&b, f) })
	return b.String()
}

// restoreText turns the output of iptables-save into the form of the texts in desired_test.go, tables in our order.
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

// listNFT writes every rule of a family's tables, ours in iptables' words.
func listNFT(b *strings.Builder, f family) error {
	conn, err := dial()
	if err != nil {
		return err
	}
	chains, err := conn.ListChainsOfTableFamily(kernelFamily(f))
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
			fmt.Fprintf(b, "\t%s (%d expressions)\n", kernelRule(f, baseChain{}, r).text(), len(r.Exprs))
		}
	}
	return nil
}

// TestNetnsRulesAreFlannels compares the kernel's listing with what flannel leaves, character by character.
func TestNetnsRulesAreFlannels(t *testing.T) {
	for _, w := range iptablesWays() {
		t.Run(w.name, func(t *testing.T) {
			w.need(t)
			ns, m := newNS(t), w.manager()
			d := Desired{Nets: []Net{net4, net6}, Masquerade: true, Forward: true, KeepSource: true}
			set(t, ns, m, d)
			forward6 := strings.ReplaceAll(flannelForward, "10.5.0.0/16", "fc00::/48")
			for f, want := range map[family]string{
				ipv4: flannelMasquerade + flannelForward[1:],
				ipv6: flannelMasquerade6 + forward6[1:],
			} {
				if got := w.sorted(w.rulesOf(t, ns, f)); got != w.sorted(want) {
					t.Errorf("%s: got%s\nwant%s", f, got, want)
				}
			}
			d.NoRandomPorts, d.Forward, d.Nets = true, false, d.Nets[:1]
			set(t, ns, m, d)
			plain := strings.ReplaceAll(flannelMasquerade, " --random-fully", "")
			if got := w.rulesOf(t, ns, ipv4); got != plain {
				t.Errorf("plain ports: got%s\nwant%s", got, plain)
			}
			if got := w.rulesOf(t, ns, ipv6); got != "\n" {
				t.Errorf("IPv6 switched off: got%s", got)
			}
			set(t, ns, m, Desired{Nets: d.Nets})
			if got := w.rulesOf(t, ns, ipv4); got != "\n" {
				t.Errorf("nothing wanted: got%s", got)
			}
		})
	}
}

// sorted puts the rules of one chain together: the programs list chains in the order in which they were made.
func (w way) sorted(text string) string {
	lines := strings.SplitAfter(strings.TrimPrefix(text, "\n"), "\n")
	slices.SortStableFunc(lines, func(a, b string) int {
		key := func(line string) string { return strings.Join(append(strings.Fields(line), "", "", "")[:3], " ") }
		return strings.Compare(key(a), key(b))
	})
	return "\n" + strings.Join(lines, "")
}

// breakage is something that goes wrong with our rules on real hosts.
type breakage struct {
	name string
	do   func(t *testing.T, ns *lab.NS, w way)
}

func iptablesBreakages() []breakage {
	command := func(args ...string) func(*testing.T, *lab.NS, way) {
		return func(t *testing.T, ns *lab.NS, w way) { run(t, ns, w.program(ipv4), args...) }
	}
	return []breakage{
		{"nat flushed, as by a firewalld reload", func(t *testing.T, ns *lab.NS, w way) {
			run(t, ns, w.program(ipv4), "-t", "nat", "-F")
			run(t, ns, w.program(ipv4), "-t", "nat", "-X")
			run(t, ns, w.program(ipv6), "-t", "filter", "-F")
		}},
		{"our chain emptied", command("-t", "nat", "-F", chainMasquerade)},
		{"a rule deleted", command("-t", "nat", "-D", chainMasquerade, "2")},
		{"a rule in the wrong place", func(t *testing.T, ns *lab.NS, w way) {
			run(t, ns, w.program(ipv4), "-t", "nat", "-D", chainMasquerade, "5")
			run(t, ns, w.program(ipv4), "-t", "nat", "-I", chainMasquerade, "1", "-s", "10.5.0.0/16", "!",
				"-d", "224.0.0.0/4", "-m", "comment", "--comment", commentMasquerade, "-j", "MASQUERADE", "--random-fully")
		}},
		{"a rule more in our chain", command("-A", chainForward, "-j", "DROP")},
		{"our jump double",
			command("-t", "nat", "-A", "POSTROUTING", "-m", "comment", "--comment", commentMasquerade,
				"-j", chainMasquerade)},
		{"our jump deleted", command("-D", "FORWARD", "-m", "comment", "--comment", commentForward, "-j", chainForward)},
		{"notrack double", command("-t", "raw", "-A", "OUTPUT", "-s", "192.0.2.7", "-p", "udp", "--dport", "8285",
			"-m", "comment", "--comment", commentNoTrack, "-j", "CT", "--notrack")},
	}
}

func nftBreakages() []breakage {
	change := func(f func(conn *nftables.Conn, t *nftables.Table) error) func(*testing.T, *lab.NS, way) {
		return func(t *testing.T, ns *lab.NS, _ way) {
			do(t, ns, func() error {
				conn, err := dial()
				if err != nil {
					return err
				}
				if err := f(conn, &nftables.Table{Name: tableName(ipv4), Family: nftables.TableFamilyIPv4}); err != nil {
					return err
				}
				return conn.Flush()
			})
		}
	}
	chain := func(t *nftables.Table, name string) *nftables.Chain { return &nftables.Chain{Table: t, Name: name} }
	return []breakage{
		{"all flushed", change(func(conn *nftables.Conn, _ *nftables.Table) error { conn.FlushRuleset(); return nil })},
		{"table deleted", change(func(conn *nftables.Conn, t *nftables.Table) error { conn.DelTable(t); return nil })},
		{"chain emptied",
			change(func(conn *nftables.Conn, t *nftables.Table) error { conn.FlushChain(chain(t, "postrtg")); return nil })},
		{"a rule deleted", change(func(conn *nftables.Conn, t *nftables.Table) error {
			rules, err := conn.GetRules(t, chain(t, "postrtg"))
			if err != nil {
				return err
			}
			return conn.DelRule(rules[1])
		})},
		{"a rule double", change(func(conn *nftables.Conn, t *nftables.Table) error {
			rules, err := conn.GetRules(t, chain(t, "forward"))
			if err != nil {
				return err
			}
			conn.AddRule(&nftables.Rule{Table: t, Chain: chain(t, "forward"), Exprs: rules[0].Exprs})
			return nil
		})},
		{"a chain more",
			change(func(conn *nftables.Conn, t *nftables.Table) error { conn.AddChain(chain(t, "more")); return nil })},
		{"a chain that drops", change(func(conn *nftables.Conn, t *nftables.Table) error {
			drop := nftables.ChainPolicyDrop
			conn.AddChain(&nftables.Chain{Table: t, Name: "forward", Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
			return nil
		})},
		{"a chain hooked elsewhere", change(func(conn *nftables.Conn, t *nftables.Table) error {
			rules, err := conn.GetRules(t, chain(t, "forward"))
			if err != nil {
				return err
			}
			conn.FlushChain(chain(t, "forward"))
			conn.DelChain(chain(t, "forward"))
			policy, priority := nftables.ChainPolicyAccept, nftables.ChainPriority(7)
			c := conn.AddChain(&nftables.Chain{Table: t, Name: "forward", Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookForward, Priority: &priority, Policy: &policy})
			for _, r := range rules {
				conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: r.Exprs})
			}
			return nil
		})},
	}
}

// TestNetnsRepairs breaks our rules among others', and expects the listing to be what it was.
func TestNetnsRepairs(t *testing.T) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			w.need(t)
			ns, m := newNS(t), w.manager()
			breakages := nftBreakages()
			if !w.nft {
				breakages = iptablesBreakages()
			}
			d := everything()
			d.NFTables = w.nft
			set(t, ns, m, d)
			for i, b := range breakages {
				before := w.rulesOf(t, ns, ipv4) + w.rulesOf(t, ns, ipv6)
				b.do(t, ns, w)
				if w.rulesOf(t, ns, ipv4)+w.rulesOf(t, ns, ipv6) == before {
					t.Errorf("%s: nothing was broken", b.name)
				}
				s := resync(t, ns, m)
				if after := w.rulesOf(t, ns, ipv4) + w.rulesOf(t, ns, ipv6); w.sorted(after) != w.sorted(before) {
					t.Errorf("%s: got%s\nwant%s", b.name, after, before)
				}
				if s.Repairs != uint64(i+1) {
					t.Errorf("%s: %d repairs counted, want %d", b.name, s.Repairs, i+1)
				}
			}
			if s := resync(t, ns, m); s.Repairs != uint64(len(breakages)) {
				t.Error("repaired something that was in place")
			}
		})
	}
}

// TestNetnsChangesSayTheFamily reads the log of a start: each change is of a place that exists once.
func TestNetnsChangesSayTheFamily(t *testing.T) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			w.need(t)
			var log bytes.Buffer
			m := newManager(ofVariant{variant: w.variant}, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
			set(t, newNS(t), m, everythingBy(w))
			for _, f := range families() {
				want := w.program(f) + " nat FLANNEL-POSTRTG: 6 rules set;"
				if w.nft {
					want = "table " + tableName(f) + " postrtg: 6 rules set;"
				}
				if !strings.Contains(log.String(), want) {
					t.Errorf("%q is not in %s", want, &log)
				}
			}
		})
	}
}

// TestNetnsForeignRulesStay puts others' rules between ours.
func TestNetnsForeignRulesStay(t *testing.T) {
	for _, w := range iptablesWays() {
		t.Run(w.name, func(t *testing.T) {
			w.need(t)
			ns, m := newNS(t), w.manager()
			for _, args := range []string{
				"-t nat -N KUBE-POSTROUTING", "-t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
				"-t nat -A POSTROUTING -m comment --comment kube -j KUBE-POSTROUTING",
				"-t nat -A POSTROUTING -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE",
				"-A FORWARD -i docker0 -j ACCEPT", "-A FORWARD -j REJECT --reject-with icmp-host-prohibited", "-P FORWARD DROP",
				"-t raw -A PREROUTING -i lo -j ACCEPT", "-t mangle -A POSTROUTING -o eth9 -j ACCEPT",
			} {
				run(t, ns, w.program(ipv4), strings.Fields(args)...)
			}
			before := w.rulesOf(t, ns, ipv4)
			set(t, ns, m, everything())
			all := w.rulesOf(t, ns, ipv4)
			var foreign []string
			for line := range strings.Lines(all) {
				if !strings.Contains(line, "flanneld") && !strings.Contains(line, "weft") {
					foreign = append(foreign, line)
				}
			}
			if got := strings.Join(foreign, ""); w.sorted(got) != w.sorted(before) {
				t.Errorf("others' rules: got%s\nwant%s", got, before)
			}
			want := `filter -A FORWARD -i docker0 -j ACCEPT
filter -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
filter -A FORWARD -j REJECT --reject-with icmp-host-prohibited
`
			if !strings.Contains(all, want) {
				t.Errorf("the closing rule shuts pods out:%s", all)
			}
			do(t, ns, func() error {
				removed, err := Cleanup(t.Context())
				if err == nil && len(removed) == 0 {
					err = errors.New("nothing was removed")
				}
				return err
			})
			if got := w.rulesOf(t, ns, ipv4); got != before {
				t.Errorf("after cleanup: got%s\nwant%s", got, before)
			}
			if policy := run(t, ns, w.program(ipv4), "-S", "FORWARD"); !strings.HasPrefix(policy, "-P FORWARD DROP\n") {
				t.Errorf("the policy of FORWARD was changed: %s", policy)
			}
		})
	}
}

// TestNetnsOneWayAtATime goes from each way to each other one and expects nothing of the first to be left, with rules that
// flannel itself left behind as well.
func TestNetnsOneWayAtATime(t *testing.T) {
	for _, from := range ways() {
		for _, to := range ways() {
			if from == to {
				continue
			}
			t.Run(from.name+" to "+to.name, func(t *testing.T) {
				from.need(t)
				to.need(t)
				ns := newNS(t)
				d := everything()
				d.NFTables = from.nft
				set(t, ns, from.manager(), d)
				if !from.nft {
					// A foreign rule in the same table must live on.
					run(t, ns, from.program(ipv4), "-t", "nat", "-A", "POSTROUTING", "-o", "lo", "-j", "ACCEPT")
				}
				d.NFTables = to.nft
				set(t, ns, to.manager(), d)
				for _, f := range families() {
					got := from.rulesOf(t, ns, f)
					if !from.nft {
						want := "\n"
						if f == ipv4 {
							want = "\nnat -A POSTROUTING -o lo -j ACCEPT\n"
						}
						if left := got; left != want && !to.sharesListing(from) {
							t.Errorf("left of the first:%s", left)
						}
						if strings.Contains(got, ":FLANNEL") {
							t.Errorf("a chain was left:%s", got)
						}
					} else if strings.Contains(got, tableName(f)) {
						t.Errorf("left of the first:\n%s", got)
					}
				}
				if got := to.rulesOf(t, ns, ipv4); !strings.Contains(got, "MASQUERADE --random-fully") {
					t.Errorf("the second is not there:%s", got)
				}
			})
		}
	}
}

// sharesListing tells whether one program lists what the other one set.
func (w way) sharesListing(other way) bool { return w.variant == other.variant && !w.nft && !other.nft }

// TestNetnsFlannelLeftovers: what flannel leaves when it is told to use nftables after iptables.
func TestNetnsFlannelLeftovers(t *testing.T) {
	for _, w := range iptablesWays() {
		t.Run(w.name, func(t *testing.T) {
			w.need(t)
			needTables(t)
			ns := newNS(t)
			for _, args := range []string{
				"-t nat -N FLANNEL-POSTRTG", "-t nat -A POSTROUTING -j FLANNEL-POSTRTG",
				"-N FLANNEL-FWD", "-A FORWARD -j FLANNEL-FWD", "-A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT",
			} {
				run(t, ns, w.program(ipv4), strings.Fields(args)...)
			}
			d := everything()
			d.NFTables = true
			set(t, ns, w.manager(), d)
			if got := run(t, ns, w.program(ipv4)+"-save"); strings.Contains(got, "FLANNEL") {
				t.Errorf("left:\n%s", got)
			}
		})
	}
}

// TestNetnsDockerRule: the guard comes when dockerd does, stays in front when dockerd starts again, and goes with it.
func TestNetnsDockerRule(t *testing.T) {
	docker := strings.Fields("POSTROUTING -s 10.5.77.0/24 ! -o docker0 -j MASQUERADE")
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			w.need(t)
			program := "iptables" + w.variant
			needProgram(t, program)
			ns, m := newNS(t), w.manager()
			d := everything()
			d.NFTables = w.nft
			if s := set(t, ns, m, d); len(s.Notes) > 0 {
				t.Errorf("notes without dockerd: %q", s.Notes)
			}
			before := w.rulesOf(t, ns, ipv4)
			run(t, ns, program, append([]string{"-t", "nat", "-I"}, docker...)...)
			for _, when := range []string{"started", "started again"} {
				s := resync(t, ns, m)
				if len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "would rewrite pods' sources") {
					t.Errorf("dockerd %s: notes %q", when, s.Notes)
				}
				rules := w.rulesOf(t, ns, ipv4)
				if at := strings.Index(rules, keepJump); !w.nft && (at < 0 || at > strings.Index(rules, "docker0")) {
					t.Errorf("dockerd %s:%s", when, rules)
				}
				run(t, ns, program, append([]string{"-t", "nat", "-D"}, docker...)...)
				run(t, ns, program, append([]string{"-t", "nat", "-I"}, docker...)...)
			}
			run(t, ns, program, append([]string{"-t", "nat", "-D"}, docker...)...)
			if s := resync(t, ns, m); len(s.Notes) > 0 {
				t.Errorf("notes after dockerd: %q", s.Notes)
			}
			if after := w.rulesOf(t, ns, ipv4); !w.nft && w.sorted(after) != w.sorted(before) {
				t.Errorf("after dockerd:%s", after)
			}
		})
	}
}

// TestNetnsRunHeals lets the loop itself find a flush, in the lab's own namespace.
func TestNetnsRunHeals(t *testing.T) {
	needTables(t)
	m := newManager(machine{}, Options{Resync: 200 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	d := everything()
	d.NFTables = true
	m.Set(d)
	inPlace := func() error {
		if s := m.Status(); !s.InPlace {
			return fmt.Errorf("not in place: %w", s.Err)
		}
		return nil
	}
	if err := lab.Await(ctx, 5*time.Second, "rules", inPlace); err != nil {
		t.Fatal(err)
	}
	conn, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	conn.FlushRuleset()
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	err = lab.Await(ctx, 5*time.Second, "repair", func() error {
		// The flush may have come between the two families, so one repair need not be all.
		if m.Status().Repairs == 0 || !nftTable(ipv4, tableName(ipv4)) || !nftTable(ipv6, tableName(ipv6)) {
			return errors.New("not repaired")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if !nftTable(ipv4, tableName(ipv4)) {
		t.Error("the rules did not stay when the manager stopped")
	}
	if removed, err := Cleanup(t.Context()); err != nil || len(removed) != 2 {
		t.Errorf("removed %q, %v", removed, err)
	}
	if nftTable(ipv4, tableName(ipv4)) || nftTable(ipv6, tableName(ipv6)) {
		t.Error("a table is left after Cleanup")
	}
}

// TestNetnsWithoutPrograms: a host without iptables gets nftables.
func TestNetnsWithoutPrograms(t *testing.T) {
	needTables(t)
	t.Setenv("PATH", t.TempDir())
	ns, m := newNS(t), New(Options{})
	if s := set(t, ns, m, everything()); s.Mode != NFTables {
		t.Errorf("mode %q", s.Mode)
	}
}

// TestNetnsNotes: what we cannot change, the operator is told.
func TestNetnsNotes(t *testing.T) {
	needTables(t)
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			w.need(t)
			ns, m := newNS(t), w.manager()
			d := everything()
			d.NFTables = w.nft
			if s := set(t, ns, m, d); len(s.Notes) > 0 {
				t.Errorf("notes on an empty host: %q", s.Notes)
			}
			do(t, ns, func() error {
				if err := foreignTable([]Net{net4, net6}, true); err != nil {
					return err
				}
				conn, err := dial()
				if err != nil {
					return err
				}
				table := conn.AddTable(&nftables.Table{Name: "closed", Family: nftables.TableFamilyINet})
				drop := nftables.ChainPolicyDrop
				conn.AddChain(&nftables.Chain{Name: "fwd", Table: table, Type: nftables.ChainTypeFilter,
					Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
				return conn.Flush()
			})
			outcome := "rules of iptables cannot prevent it, with EnableNFTables in the network config ours can"
			if w.nft {
				outcome = "our chain before it keeps them"
			}
			rewrites := "nftables chain post of table foreign would rewrite pods' sources between nodes; " + outcome
			drops := "nftables chain fwd of table closed drops what it does not accept itself; no rule of another table can change that"
			want := []string{rewrites, drops}
			if s := resync(t, ns, m); !slices.Equal(s.Notes, want) {
				t.Errorf("notes\n%s\nwant\n%s", strings.Join(s.Notes, "\n"), strings.Join(want, "\n"))
			}
			d.KeepSource = false
			want[0] = strings.TrimSuffix(rewrites, "; "+outcome)
			if s := set(t, ns, m, d); !slices.Equal(s.Notes, want) {
				t.Errorf("without KeepSource: notes\n%s\nwant\n%s", strings.Join(s.Notes, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// TestNetnsNoTrack sends to our port and to another one, and looks which of them the kernel keeps track of.
func TestNetnsNoTrack(t *testing.T) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			w.need(t)
			ns, m := newNS(t), w.manager()
			if _, err := ns.ReadSysctl("netfilter/nf_conntrack_count"); err != nil {
				t.Skipf("NOT TESTED: %v", err)
			}
			own := netip.MustParseAddrPort("127.0.0.1:8285")
			set(t, ns, m, Desired{Nets: []Net{net4}, Masquerade: true, NFTables: w.nft, NoTrack: []netip.AddrPort{own}})
			tracked := func() (count string) {
				count, err := ns.ReadSysctl("netfilter/nf_conntrack_count")
				if err != nil {
					t.Fatal(err)
				}
				return count
			}
			for _, tt := range []struct {
				port uint16
				want string
			}{{8285, "0"}, {8286, "1"}} {
				do(t, ns, func() error {
					c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(own.Addr(), tt.port)))
					if err != nil {
						return err
					}
					_, err = c.Write([]byte("x"))
					return errors.Join(err, c.Close())
				})
				if got := tracked(); got != tt.want {
					t.Errorf("port %d: %s flows tracked, want %s", tt.port, got, tt.want)
				}
			}
		})
	}
}

// TestNetnsOlderHosts puts programs in front of the real ones that refuse what older programs or kernels do not know.
func TestNetnsOlderHosts(t *testing.T) {
	for _, w := range iptablesWays() {
		for _, tt := range []struct {
			name, refuses string // a pattern of the shell
			masquerade    string // what the rules say then
			notes         int    // each family has programs of its own
			err           string
		}{
			{"no random ports", "*--random-fully*", "-j MASQUERADE\n", 0, ""},
			{"no --wait", "*--noflush?--wait*", "-j MASQUERADE --random-fully\n", 0, ""},
			{"no notrack", "*--notrack*", "-j MASQUERADE --random-fully\n", 2, ""},
			{"no raw table", "*'*raw'*", "-j MASQUERADE --random-fully\n", 2, ""},
			{"no masquerading", "*MASQUERADE*", "", 0, "cannot masquerade here"},
			{"no nat table", "*'*nat'*", "", 0, "does not work here"},
		} {
			t.Run(w.name+", "+tt.name, func(t *testing.T) {
				w.need(t)
				ns, old := newNS(t), way{variant: "-old"}
				old.install(t, w, tt.refuses)
				m := old.manager()
				m.Set(everything())
				do(t, ns, func() error { m.once(t.Context()); return nil })
				s := m.Status()
				if tt.err != "" {
					if s.InPlace || !errors.Is(s.Err, ErrUnsupported) || !strings.Contains(s.Err.Error(), tt.err) {
						t.Errorf("%+v", s)
					}
					return
				}
				if !s.InPlace || len(s.Notes) != tt.notes {
					t.Fatalf("%+v", s)
				}
				if got := w.rulesOf(t, ns, ipv4); strings.Count(got, tt.masquerade) != 2 {
					t.Errorf("got%s", got)
				}
				if s := resync(t, ns, m); s.Repairs != 0 {
					t.Error("set again what was in place")
				}
			})
		}
	}
}

// install makes programs of a variant that pass all on to those of real, except what matches a pattern.
func (w way) install(t *testing.T, real way, refuses string) {
	t.Helper()
	dir := t.TempDir()
	for _, f := range families() {
		for _, suffix := range []string{"", "-restore"} {
			script := fmt.Sprintf("#!/bin/sh\n[ %q ] && text=$(cat)\ncase \"$* $text\" in %s) echo refused >&2; exit 2;; esac\n"+
				"printf '%%s\\n' \"$text\" | exec %s%s \"$@\"\n", suffix, refuses, real.program(f), suffix)
			if err := os.WriteFile(filepath.Join(dir, w.program(f)+suffix), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}
