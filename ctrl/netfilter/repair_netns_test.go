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

// breakage is something that goes wrong with our rules on real hosts.
type breakage struct {
	name string
	do   func(t *testing.T, ns *lab.NS, w firewall)
}

func iptablesBreakages() []breakage {
	command := func(args ...string) func(*testing.T, *lab.NS, firewall) {
		return func(t *testing.T, ns *lab.NS, w firewall) { runIn(t, ns, w.program(ipv4), args...) }
	}
	return []breakage{
		{"nat flushed, as by a firewalld reload", func(t *testing.T, ns *lab.NS, w firewall) {
			runIn(t, ns, w.program(ipv4), "-t", "nat", "-F")
			runIn(t, ns, w.program(ipv4), "-t", "nat", "-X")
			runIn(t, ns, w.program(ipv6), "-t", "filter", "-F")
		}},
		{"our chain emptied", command("-t", "nat", "-F", chainMasquerade)},
		{"a rule deleted", command("-t", "nat", "-D", chainMasquerade, "2")},
		{"a rule in the wrong place", func(t *testing.T, ns *lab.NS, w firewall) {
			runIn(t, ns, w.program(ipv4), "-t", "nat", "-D", chainMasquerade, "5")
			runIn(t, ns, w.program(ipv4), "-t", "nat", "-I", chainMasquerade, "1", "-s", "10.5.0.0/16", "!",
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
	change := func(f func(conn *nftables.Conn, t *nftables.Table) error) func(*testing.T, *lab.NS, firewall) {
		return func(t *testing.T, ns *lab.NS, _ firewall) {
			inNS(t, ns, func() error {
				conn, err := dialNFT()
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
	for _, w := range firewalls() {
		t.Run(w.name, func(t *testing.T) {
			w.require(t)
			ns, m := newNS(t), w.manager()
			breakages := nftBreakages()
			if !w.nft {
				breakages = iptablesBreakages()
			}
			d := allRules()
			d.NFTables = w.nft
			set(t, ns, m, d)
			for i, b := range breakages {
				before := w.listRules(t, ns, ipv4) + w.listRules(t, ns, ipv6)
				b.do(t, ns, w)
				if w.listRules(t, ns, ipv4)+w.listRules(t, ns, ipv6) == before {
					t.Errorf("%s: nothing was broken", b.name)
				}
				s := resync(t, ns, m)
				if after := w.listRules(t, ns, ipv4) + w.listRules(t, ns, ipv6); w.sorted(after) != w.sorted(before) {
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

// TestNetnsRunHeals lets the loop itself find a flush, in the lab's own namespace.
func TestNetnsRunHeals(t *testing.T) {
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
		// The flush may have come between the two families, so one repair need not be all.
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
		t.Error("the rules did not stay when the manager stopped")
	}
	if removed, err := Cleanup(t.Context()); err != nil || len(removed) != 2 {
		t.Errorf("removed %q, %v", removed, err)
	}
	if hasNFTTable(ipv4, tableName(ipv4)) || hasNFTTable(ipv6, tableName(ipv6)) {
		t.Error("a table is left after Cleanup")
	}
}
