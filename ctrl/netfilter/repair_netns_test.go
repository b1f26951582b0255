package netfilter

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/nftables"

	"weft/deploy/lab"
)

// breakage is damage to the rules that occurs on real hosts.
type breakage struct {
	name string
	do   func(t *testing.T, ns *lab.NS, fw firewall)
}

func iptablesBreakages() []breakage {
	command := func(args ...string) func(*testing.T, *lab.NS, firewall) {
		return func(t *testing.T, ns *lab.NS, fw firewall) { runIn(t, ns, fw.program(ipv4), args...) }
	}
	return []breakage{
		{"nat flushed, as by a firewalld reload", func(t *testing.T, ns *lab.NS, fw firewall) {
			runIn(t, ns, fw.program(ipv4), "-t", "nat", "-F")
			runIn(t, ns, fw.program(ipv4), "-t", "nat", "-X")
			runIn(t, ns, fw.program(ipv6), "-t", "filter", "-F")
		}},
		{"own chain flushed", command("-t", "nat", "-F", chainMasquerade)},
		{"rule deleted", command("-t", "nat", "-D", chainMasquerade, "2")},
		{"rule out of order", func(t *testing.T, ns *lab.NS, fw firewall) {
			runIn(t, ns, fw.program(ipv4), "-t", "nat", "-D", chainMasquerade, "5")
			runIn(t, ns, fw.program(ipv4), "-t", "nat", "-I", chainMasquerade, "1", "-s", "10.5.0.0/16", "!",
				"-d", "224.0.0.0/4", "-m", "comment", "--comment", commentMasquerade,
				"-j", "MASQUERADE", "--random-fully")
		}},
		{"extra rule in own chain", command("-A", chainForward, "-j", "DROP")},
		{"duplicate jump",
			command("-t", "nat", "-A", "POSTROUTING", "-m", "comment", "--comment", commentMasquerade,
				"-j", chainMasquerade)},
		{"jump deleted", command("-D", "FORWARD", "-m", "comment", "--comment", commentForward, "-j", chainForward)},
		{"duplicate notrack", command("-t", "raw", "-A", "OUTPUT", "-s", "192.0.2.7", "-p", "udp", "--dport", "8285",
			"-m", "comment", "--comment", commentNoTrack, "-j", "CT", "--notrack")},
	}
}

func nftBreakages() []breakage {
	change := func(f func(conn *nftables.Conn, t *nftables.Table) error) func(*testing.T, *lab.NS, firewall) {
		return func(t *testing.T, ns *lab.NS, _ firewall) {
			inNS(t, ns, func() error {
				conn, err := dialNFT()
				if err != nil {
					return err
				}
				table := &nftables.Table{Name: tableName(ipv4), Family: nftables.TableFamilyIPv4}
				if err := f(conn, table); err != nil {
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
		{"chain flushed",
			change(func(conn *nftables.Conn, t *nftables.Table) error {
				conn.FlushChain(chain(t, "postrtg"))
				return nil
			})},
		{"rule deleted", change(func(conn *nftables.Conn, t *nftables.Table) error {
			rules, err := conn.GetRules(t, chain(t, "postrtg"))
			if err != nil {
				return err
			}
			return conn.DelRule(rules[1])
		})},
		{"duplicate rule", change(func(conn *nftables.Conn, t *nftables.Table) error {
			rules, err := conn.GetRules(t, chain(t, "forward"))
			if err != nil {
				return err
			}
			conn.AddRule(&nftables.Rule{Table: t, Chain: chain(t, "forward"), Exprs: rules[0].Exprs})
			return nil
		})},
		{"extra chain",
			change(func(conn *nftables.Conn, t *nftables.Table) error { conn.AddChain(chain(t, "more")); return nil })},
		{"chain with policy drop", change(func(conn *nftables.Conn, t *nftables.Table) error {
			drop := nftables.ChainPolicyDrop
			conn.AddChain(&nftables.Chain{Table: t, Name: "forward", Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
			return nil
		})},
		{"chain with another priority", change(func(conn *nftables.Conn, t *nftables.Table) error {
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

// TestNetnsRepairs damages the rules and checks that the listing is restored.
func TestNetnsRepairs(t *testing.T) {
	for _, fw := range firewalls() {
		t.Run(fw.name, func(t *testing.T) {
			fw.require(t)
			ns, m := newNS(t), fw.manager()
			breakages := nftBreakages()
			if !fw.nft {
				breakages = iptablesBreakages()
			}
			d := allRules()
			d.NFTables = fw.nft
			set(t, ns, m, d)
			for i, b := range breakages {
				before := fw.listRules(t, ns, ipv4) + fw.listRules(t, ns, ipv6)
				b.do(t, ns, fw)
				if fw.listRules(t, ns, ipv4)+fw.listRules(t, ns, ipv6) == before {
					t.Errorf("%s: rules did not change", b.name)
				}
				s := resync(t, ns, m)
				after := fw.listRules(t, ns, ipv4) + fw.listRules(t, ns, ipv6)
				if fw.sorted(after) != fw.sorted(before) {
					t.Errorf("%s: got%s\nwant%s", b.name, after, before)
				}
				if s.Repairs != uint64(i+1) {
					t.Errorf("%s: %d repairs counted, want %d", b.name, s.Repairs, i+1)
				}
			}
			if s := resync(t, ns, m); s.Repairs != uint64(len(breakages)) {
				t.Error("repaired rules that were in place")
			}
		})
	}
}

// TestNetnsRepairOnReport flushes the rules while the next regular comparison is far away.
func TestNetnsRepairOnReport(t *testing.T) {
	for _, fw := range firewalls()[:2] {
		t.Run(fw.name, func(t *testing.T) {
			fw.require(t)
			// Run starts goroutines, so it uses the namespace of the process.
			ns := lab.Start(t, lab.Options{Nodes: 1, PodsPerNode: -1}).Root.NS
			m := newManager(fw.host(), Options{Resync: time.Hour})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- m.Run(ctx) }()
			d := allRules()
			d.NFTables = fw.nft
			m.Set(d)
			awaitStatus(t, m, func(s Status) bool { return s.InPlace })
			want := fw.listRules(t, ns, ipv4)
			if fw.nft {
				inNS(t, ns, func() error {
					conn, err := dialNFT()
					if err != nil {
						return err
					}
					conn.FlushRuleset()
					return conn.Flush()
				})
			} else {
				runIn(t, ns, fw.program(ipv4), "-F")
			}
			start := time.Now()
			awaitStatus(t, m, func(s Status) bool { return s.Repairs > 0 })
			t.Logf("repaired after %v", time.Since(start))
			err := lab.Await(ctx, 5*time.Second, "rules", func() error {
				if got := fw.listRules(t, ns, ipv4); fw.sorted(got) != fw.sorted(want) {
					return fmt.Errorf("got%s\nwant%s", got, want)
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
			if _, err := Cleanup(context.WithoutCancel(ctx)); err != nil {
				t.Error(err)
			}
		})
	}
}

// awaitStatus waits for a status.
func awaitStatus(t *testing.T, m *Manager, ok func(Status) bool) {
	t.Helper()
	err := lab.Await(t.Context(), 10*time.Second, "status", func() error {
		if s := m.Status(); !ok(s) {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestNetnsRunRepairs checks that Run repairs a flush, in the lab's own namespace.
func TestNetnsRunRepairs(t *testing.T) {
	requireNFTables(t)
	m := newManager(realHost{}, Options{Resync: 200 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	d := allRules()
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
	conn, err := dialNFT()
	if err != nil {
		t.Fatal(err)
	}
	conn.FlushRuleset()
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	err = lab.Await(ctx, 5*time.Second, "repair", func() error {
		// The flush may fall between the two families, so one repair may not suffice.
		if m.Status().Repairs == 0 || !hasNFTTable(ipv4, tableName(ipv4)) || !hasNFTTable(ipv6, tableName(ipv6)) {
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
	if !hasNFTTable(ipv4, tableName(ipv4)) {
		t.Error("rules removed when the manager stopped")
	}
	if removed, err := Cleanup(t.Context()); err != nil || len(removed) != 2 {
		t.Errorf("removed %q, %v", removed, err)
	}
	if hasNFTTable(ipv4, tableName(ipv4)) || hasNFTTable(ipv6, tableName(ipv6)) {
		t.Error("table left after Cleanup")
	}
}

// TestNetnsOthersChainsAreNotReported checks that other programs' work on their own chains causes
// no comparison.
func TestNetnsOthersChainsAreNotReported(t *testing.T) {
	fw := firewalls()[1]
	fw.require(t)
	ns := newNS(t)
	runIn(t, ns, fw.program(ipv4), "-N", "KUBE-SERVICES")
	runIn(t, ns, fw.program(ipv4), "-A", "FORWARD", "-j", "KUBE-SERVICES")
	reports := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- ns.Do(func() error {
			return realHost{}.watch(ctx, func() { reports <- struct{}{} })
		})
	}()
	// The first report proves that the socket is open.
	err := lab.Await(ctx, 10*time.Second, "first report", func() error {
		runIn(t, ns, fw.program(ipv4), "-P", "FORWARD", "DROP")
		runIn(t, ns, fw.program(ipv4), "-P", "FORWARD", "ACCEPT")
		if len(reports) == 0 {
			return errors.New("none")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	drain := func() (n int) {
		for {
			select {
			case <-reports:
				n++
			case <-time.After(100 * time.Millisecond):
				return n
			}
		}
	}
	drain()
	runIn(t, ns, fw.program(ipv4), "-A", "KUBE-SERVICES", "-d", "10.96.0.1", "-j", "ACCEPT")
	if n := drain(); n > 0 {
		t.Errorf("%d reports of a change in a foreign chain", n)
	}
	runIn(t, ns, fw.program(ipv4), "-A", "FORWARD", "-j", "ACCEPT")
	if drain() == 0 {
		t.Error("no report of a change in FORWARD")
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
