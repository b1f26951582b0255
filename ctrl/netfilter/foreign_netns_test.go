package netfilter

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
)

// TestNetnsForeignRulesStay sets and removes rules between foreign rules.
func TestNetnsForeignRulesStay(t *testing.T) {
	for _, fw := range iptablesFirewalls() {
		t.Run(fw.name, func(t *testing.T) {
			fw.require(t)
			ns, m := newNS(t), fw.manager()
			for _, args := range []string{
				"-t nat -N KUBE-POSTROUTING", "-t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
				"-t nat -A POSTROUTING -m comment --comment kube -j KUBE-POSTROUTING",
				"-t nat -A POSTROUTING -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE",
				"-A FORWARD -i docker0 -j ACCEPT",
				"-A FORWARD -j REJECT --reject-with icmp-host-prohibited", "-P FORWARD DROP",
				"-t raw -A PREROUTING -i lo -j ACCEPT", "-t mangle -A POSTROUTING -o eth9 -j ACCEPT",
			} {
				runIn(t, ns, fw.program(ipv4), strings.Fields(args)...)
			}
			before := fw.listRules(t, ns, ipv4)
			set(t, ns, m, allRules())
			all := fw.listRules(t, ns, ipv4)
			var foreign []string
			for line := range strings.Lines(all) {
				if !strings.Contains(line, "flanneld") && !strings.Contains(line, "weft") {
					foreign = append(foreign, line)
				}
			}
			if got := strings.Join(foreign, ""); fw.sorted(got) != fw.sorted(before) {
				t.Errorf("foreign rules: got%s\nwant%s", got, before)
			}
			want := `filter -A FORWARD -i docker0 -j ACCEPT
filter -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
filter -A FORWARD -j REJECT --reject-with icmp-host-prohibited
`
			if !strings.Contains(all, want) {
				t.Errorf("reject rule precedes the jump:%s", all)
			}
			inNS(t, ns, func() error {
				removed, err := Cleanup(t.Context())
				if err == nil && len(removed) == 0 {
					err = errors.New("no rules removed")
				}
				return err
			})
			if got := fw.listRules(t, ns, ipv4); got != before {
				t.Errorf("after cleanup: got%s\nwant%s", got, before)
			}
			policy := runIn(t, ns, fw.program(ipv4), "-S", "FORWARD")
			if !strings.HasPrefix(policy, "-P FORWARD DROP\n") {
				t.Errorf("policy of FORWARD changed: %s", policy)
			}
		})
	}
}

// TestNetnsDockerRule checks that the guard is added with dockerd's rule, moves in front of it
// after a restart of dockerd, and is removed with it.
func TestNetnsDockerRule(t *testing.T) {
	docker := strings.Fields("POSTROUTING -s 10.5.77.0/24 ! -o docker0 -j MASQUERADE")
	for _, fw := range firewalls() {
		t.Run(fw.name, func(t *testing.T) {
			fw.require(t)
			program := "iptables" + fw.variant
			requireProgram(t, program)
			ns, m := newNS(t), fw.manager()
			d := allRules()
			d.NFTables = fw.nft
			if s := set(t, ns, m, d); len(s.Notes) > 0 {
				t.Errorf("notes without dockerd: %q", s.Notes)
			}
			before := fw.listRules(t, ns, ipv4)
			runIn(t, ns, program, append([]string{"-t", "nat", "-I"}, docker...)...)
			for _, when := range []string{"started", "restarted"} {
				s := resync(t, ns, m)
				if len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "would rewrite pods' sources") {
					t.Errorf("dockerd %s: notes %q", when, s.Notes)
				}
				rules := fw.listRules(t, ns, ipv4)
				if at := strings.Index(rules, keepJump); !fw.nft && (at < 0 || at > strings.Index(rules, "docker0")) {
					t.Errorf("dockerd %s:%s", when, rules)
				}
				runIn(t, ns, program, append([]string{"-t", "nat", "-D"}, docker...)...)
				runIn(t, ns, program, append([]string{"-t", "nat", "-I"}, docker...)...)
			}
			runIn(t, ns, program, append([]string{"-t", "nat", "-D"}, docker...)...)
			if s := resync(t, ns, m); len(s.Notes) > 0 {
				t.Errorf("notes after dockerd: %q", s.Notes)
			}
			if after := fw.listRules(t, ns, ipv4); !fw.nft && fw.sorted(after) != fw.sorted(before) {
				t.Errorf("after dockerd:%s", after)
			}
		})
	}
}

// TestNetnsNotes checks the notes on foreign chains that cannot be overridden.
func TestNetnsNotes(t *testing.T) {
	requireNFTables(t)
	for _, fw := range firewalls() {
		t.Run(fw.name, func(t *testing.T) {
			fw.require(t)
			ns, m := newNS(t), fw.manager()
			d := allRules()
			d.NFTables = fw.nft
			if s := set(t, ns, m, d); len(s.Notes) > 0 {
				t.Errorf("notes on an empty host: %q", s.Notes)
			}
			inNS(t, ns, func() error {
				if err := foreignTable([]Net{net4, net6}, true); err != nil {
					return err
				}
				conn, err := dialNFT()
				if err != nil {
					return err
				}
				table := conn.AddTable(&nftables.Table{Name: "closed", Family: nftables.TableFamilyINet})
				drop := nftables.ChainPolicyDrop
				conn.AddChain(&nftables.Chain{Name: "fwd", Table: table, Type: nftables.ChainTypeFilter,
					Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
				return conn.Flush()
			})
			remedy := "iptables rules cannot prevent that, nftables rules can: set EnableNFTables in the network config"
			if fw.nft {
				remedy = "weftd's chain before it prevents that"
			}
			rewrites := "nftables chain post of table foreign would rewrite pods' sources between nodes; " + remedy
			want := []string{rewrites}
			s := resync(t, ns, m)
			if !slices.Equal(s.Notes, want) {
				t.Errorf("notes\n%s\nwant\n%s", strings.Join(s.Notes, "\n"), strings.Join(want, "\n"))
			}
			if len(s.Blocked) != 2 || !strings.HasPrefix(s.Blocked[0], "nftables chain fwd of table inet closed drops ") {
				t.Errorf("blocked: %q", s.Blocked)
			}
			d.KeepSource = false
			want[0] = strings.TrimSuffix(rewrites, "; "+remedy)
			if s := set(t, ns, m, d); !slices.Equal(s.Notes, want) {
				t.Errorf("without KeepSource: notes\n%s\nwant\n%s",
					strings.Join(s.Notes, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}
