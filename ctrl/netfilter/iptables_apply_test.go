package netfilter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

const (
	dockerRule   = "-s 10.5.77.0/24 ! -o docker0 -j MASQUERADE"
	hairpinRule  = "-s 10.5.77.2/32 -d 10.5.77.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE"
	kubeRule     = `-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING`
	cniRule      = `-s 10.5.77.2/32 -m comment --comment "name: \"cbr0\" id: \"x\"" -j CNI-0123`
	logRule      = "-j LOG --log-prefix x"
	masqJump     = `-m comment --comment "flanneld masq" -j FLANNEL-POSTRTG`
	keepJump     = `-m comment --comment "weft keep source" -j WEFT-KEEP-SOURCE`
	forwardJump  = `-m comment --comment "flanneld forward" -j FLANNEL-FWD`
	oldMasq      = `-s 10.4.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE`
	otherMasq    = `-s 10.6.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE`
	otherNoTrack = `-d 192.0.2.7/32 -p udp -m udp --dport 8285 ` +
		`-m comment --comment "weft notrack 10.6.0.0/16" -j CT --notrack`
	rejectAll = "-j REJECT --reject-with icmp-host-prohibited"
)

// previous holds an earlier network of this daemon.
var previous = []netip.Prefix{netip.MustParsePrefix("10.4.0.0/16")}

// chainText returns the IPv4 rules of allRules in one chain, as iptables prints them.
func chainText(table, chain string) []string {
	var text []string
	for _, r := range inChain(forIPTables(table, allRules().rules(ipv4)), table, chain) {
		text = append(text, r.spec())
	}
	return text
}

func applied(t *testing.T, f *fakeTables, d Desired) report {
	t.Helper()
	r, err := applyTables(t.Context(), f, d.rulesets(previous)[ipv4])
	if err != nil {
		t.Fatal(err)
	}
	before := len(f.restores)
	again, err := applyTables(t.Context(), f, d.rulesets(previous)[ipv4])
	if err != nil || len(again.changes) > 0 || len(f.restores) != before {
		t.Fatalf("second apply: changes %v, error %v", again.changes, err)
	}
	return r
}

// TestApplyHookChain fills one built-in chain and compares its rules after apply.
func TestApplyHookChain(t *testing.T) {
	for _, tt := range []struct {
		name    string
		table   string
		hook    string
		have    []string
		want    []string
		changes string // of this chain
		notes   int
	}{
		{"empty", tableNAT, hookPostrouting, nil, []string{masqJump}, "1 rules set", 0},
		{"in place", tableNAT, hookPostrouting, []string{masqJump}, []string{masqJump}, "", 0},
		{"after other rules", tableNAT, hookPostrouting, []string{logRule}, []string{logRule, masqJump},
			"1 rules set", 0},
		{"before rules added later", tableNAT, hookPostrouting, []string{masqJump, logRule},
			[]string{masqJump, logRule}, "", 0},
		{"another chain", tableNAT, hookPostrouting, []string{logRule, cniRule},
			[]string{logRule, keepJump, cniRule, masqJump}, "2 rules set", 0},
		{"kube-proxy's chain", tableNAT, hookPostrouting, []string{logRule, kubeRule},
			[]string{logRule, kubeRule, masqJump}, "1 rules set", 0},
		{"a pod's own chain", tableNAT, hookPostrouting, []string{keepJump, masqJump, cniRule},
			[]string{keepJump, masqJump, cniRule}, "", 0},
		{"a pod's own chain added in front", tableNAT, hookPostrouting, []string{cniRule, keepJump, masqJump},
			[]string{keepJump, cniRule, masqJump}, "rules moved before a rule that bypassed them", 0},
		{"a chain for foreign addresses", tableNAT, hookPostrouting, []string{"-s 10.6.1.2/32 -j CNI-0123"},
			[]string{"-s 10.6.1.2/32 -j CNI-0123", masqJump}, "1 rules set", 0},
		{"duplicate", tableNAT, hookPostrouting, []string{masqJump, logRule, masqJump}, []string{logRule, masqJump},
			"1 old or duplicate rules removed", 0},
		{"old flannel rule, previous network", tableNAT, hookPostrouting, []string{oldMasq, logRule},
			[]string{logRule, masqJump},
			"1 rules set, 1 old rules removed", 0},
		{"old flannel rule, other daemon's network", tableNAT, hookPostrouting, []string{otherMasq, logRule},
			[]string{otherMasq, logRule, masqJump}, "1 rules set", 0},
		{"with another comment", tableNAT, hookPostrouting, []string{"-j FLANNEL-POSTRTG"}, []string{masqJump},
			"1 rules set, 1 old rules removed", 0},
		{"as a goto", tableNAT, hookPostrouting, []string{`-m comment --comment "flanneld masq" -g FLANNEL-POSTRTG`},
			[]string{masqJump},
			"altered rules replaced", 0},
		{"on a condition", tableNAT, hookPostrouting, []string{"-o eth0 " + masqJump}, []string{masqJump},
			"altered rules replaced", 0},
		{"after a rule that accepts all", tableNAT, hookPostrouting, []string{logRule, "-j ACCEPT", masqJump},
			[]string{logRule, masqJump, "-j ACCEPT"}, "rules moved before a rule that bypassed them", 0},
		{"after a rule that rewrites all", tableNAT, hookPostrouting, []string{"-j SNAT --to-source 192.0.2.1"},
			[]string{keepJump, masqJump, "-j SNAT --to-source 192.0.2.1"}, "2 rules set", 1},
		{"docker's rule", tableNAT, hookPostrouting, []string{dockerRule}, []string{keepJump, dockerRule, masqJump},
			"2 rules set", 1},
		{"docker's rule, guarded", tableNAT, hookPostrouting, []string{logRule, keepJump, dockerRule, masqJump},
			[]string{logRule, keepJump, dockerRule, masqJump}, "", 1},
		{"docker's rule added in front", tableNAT, hookPostrouting, []string{dockerRule, keepJump, masqJump},
			[]string{keepJump, dockerRule, masqJump}, "rules moved before a rule that bypassed them", 1},
		{"docker's rule after the jump", tableNAT, hookPostrouting, []string{masqJump, dockerRule},
			[]string{keepJump, dockerRule, masqJump}, "1 rules set", 1},
		{"docker's rule gone", tableNAT, hookPostrouting, []string{keepJump, masqJump}, []string{masqJump},
			"1 old or duplicate rules removed", 0},
		{"guard after the other rules", tableNAT, hookPostrouting, []string{masqJump, keepJump, dockerRule},
			[]string{keepJump, dockerRule, masqJump},
			"order of rules restored", 1},
		{"a container's own published port", tableNAT, hookPostrouting, []string{hairpinRule},
			[]string{hairpinRule, masqJump}, "1 rules set", 0},
		{"rewriting of marked packets", tableNAT, hookPostrouting,
			[]string{"-m mark --mark 0x2000/0x2000 -j MASQUERADE"},
			[]string{"-m mark --mark 0x2000/0x2000 -j MASQUERADE", masqJump}, "1 rules set", 0},
		{"rewriting of foreign addresses", tableNAT, hookPostrouting,
			[]string{"-s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE"},
			[]string{"-s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE", masqJump}, "1 rules set", 0},

		{"forward, empty", tableFilter, hookForward, nil, []string{forwardJump}, "1 rules set", 0},
		{"forward, rejected at the end", tableFilter, hookForward, []string{"-j DOCKER-USER", rejectAll},
			[]string{"-j DOCKER-USER", forwardJump, rejectAll}, "1 rules set", 0},
		{"forward, rejected before the jump", tableFilter, hookForward, []string{rejectAll, forwardJump},
			[]string{forwardJump, rejectAll},
			"rules moved before a rule that bypassed them", 0},
		{"forward, rejected for one device", tableFilter, hookForward, []string{"-i eth1 " + rejectAll, forwardJump},
			[]string{"-i eth1 " + rejectAll, forwardJump}, "", 0},
		{"forward, a log without effect", tableFilter, hookForward, []string{"-j LOG --log-prefix x", forwardJump},
			[]string{"-j LOG --log-prefix x", forwardJump}, "", 0},

		{"raw, empty", tableRaw, hookPrerouting, nil, chainText(tableRaw, hookPrerouting), "1 rules set", 0},
		{"raw, other address", tableRaw, hookPrerouting,
			[]string{strings.NewReplacer("192.0.2.7", "192.0.2.9", "10.6.0.0", "10.5.0.0").Replace(otherNoTrack),
				"-i lo -j ACCEPT"},
			slices.Concat([]string{"-i lo -j ACCEPT"},
				chainText(tableRaw, hookPrerouting)), "1 rules set, 1 old rules removed", 0},
		{"raw, other daemon's rule for the same address", tableRaw, hookPrerouting, []string{otherNoTrack},
			slices.Concat([]string{otherNoTrack}, chainText(tableRaw, hookPrerouting)), "1 rules set", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeTables()
			for _, l := range layouts() {
				for _, own := range l.ownChains {
					f.chains[l.table][own] = chainText(l.table, own)
				}
			}
			f.chains[tt.table][tt.hook] = tt.have
			r := applied(t, f, allRules())
			if got := f.chains[tt.table][tt.hook]; !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
			prefix := tt.table + " " + tt.hook + ": "
			var changes []string
			for _, c := range r.changes {
				if text, ok := strings.CutPrefix(c, prefix); ok {
					changes = append(changes, text)
				}
			}
			if got := strings.Join(changes, ", "); got != tt.changes {
				t.Errorf("changes %q, want %q", got, tt.changes)
			}
			if len(r.notes) != tt.notes {
				t.Errorf("notes %q, want %d", r.notes, tt.notes)
			}
		})
	}
}

// TestApplyOwnChain repairs an own chain with every kind of fault.
func TestApplyOwnChain(t *testing.T) {
	right := chainText(tableNAT, chainMasquerade)
	for name, have := range map[string][]string{
		"empty":         nil,
		"in place":      right,
		"one missing":   right[1:],
		"one duplicate": append(slices.Clone(right), right[2]),
		"one extra":     append([]string{"-j ACCEPT"}, right...),
		"order":         {right[0], right[2], right[1], right[3], right[4], right[5]},
		"plain ports":   append(slices.Clone(right[:4]), strings.TrimSuffix(right[4], " --random-fully"), right[5]),
		"old network":   {oldMasq},
		"foreign rule":  {"-m conntrack --ctstate NEW -j DROP"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeTables()
			f.chains[tableNAT][hookPostrouting] = []string{masqJump}
			f.chains[tableNAT][chainMasquerade] = have
			r := applied(t, f, allRules())
			if got := f.chains[tableNAT][chainMasquerade]; !slices.Equal(got, right) {
				t.Errorf("got\n%s", strings.Join(got, "\n"))
			}
			changed := slices.Contains(r.changes, "nat FLANNEL-POSTRTG: 6 rules set")
			if changed == (name == "in place") {
				t.Errorf("changes %q", r.changes)
			}
		})
	}
}

// TestApplyRemovesRules withdraws each kind of rule.
func TestApplyRemovesRules(t *testing.T) {
	for name, rest := range map[string]func(*Desired){
		"masquerade": func(d *Desired) { d.Masquerade = false },
		"forward":    func(d *Desired) { d.Forward = false },
		"guard":      func(d *Desired) { d.KeepSource = false },
		"notrack":    func(d *Desired) { d.NoTrack = nil },
		"all":        func(d *Desired) { *d = Desired{Nets: d.Nets} },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeTables()
			f.chains[tableNAT][hookPostrouting] = []string{dockerRule}
			d := allRules()
			applied(t, f, d)
			rest(&d)
			applied(t, f, d)
			want := newFakeTables()
			want.chains[tableNAT][hookPostrouting] = []string{dockerRule}
			applied(t, want, d)
			if got, fresh := fmt.Sprint(f.chains), fmt.Sprint(want.chains); got != fresh {
				t.Errorf("got\n%s\nwant, as on a fresh host,\n%s", got, fresh)
			}
		})
	}
}

// TestApplyKeepsForeignRules starts with random mixes of foreign and managed rules, intact and
// altered. Foreign rules must stay in their order, and the wanted rules must be complete.
func TestApplyKeepsForeignRules(t *testing.T) {
	foreign := []string{logRule, kubeRule, cniRule, dockerRule, hairpinRule, "-j ACCEPT", "-o eth0 -j MASQUERADE",
		"-m mark --mark 0x1/0x1 -j RETURN"}
	mine := []string{masqJump, keepJump, oldMasq, "-j FLANNEL-POSTRTG"}
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 4))
		f := newFakeTables()
		var others []string
		for range rng.IntN(10) {
			from := mine
			if rng.IntN(2) == 0 {
				from = foreign
			}
			line := from[rng.IntN(len(from))]
			f.chains[tableNAT][hookPostrouting] = append(f.chains[tableNAT][hookPostrouting], line)
			if !slices.Contains(mine, line) {
				others = append(others, line)
			}
		}
		f.chains[tableNAT][chainMasquerade] = nil
		applied(t, f, allRules())
		guarded := slices.Contains(others, dockerRule) || slices.Contains(others, "-o eth0 -j MASQUERADE") ||
			slices.Contains(others, cniRule)
		var left []string
		var jumps []string
		for i, line := range f.chains[tableNAT][hookPostrouting] {
			switch line {
			case masqJump:
				if slices.Contains(f.chains[tableNAT][hookPostrouting][:i], "-j ACCEPT") {
					t.Errorf("seed %d: jump stands after a catch-all rule", seed)
				}
				jumps = append(jumps, line)
			case keepJump:
				rewrites := func(l string) bool { return strings.HasSuffix(l, "MASQUERADE") || l == cniRule }
				if slices.ContainsFunc(left, rewrites) {
					t.Errorf("seed %d: guard stands after a rule that rewrites sources", seed)
				}
				jumps = append(jumps, line)
			default:
				left = append(left, line)
			}
		}
		want := []string{masqJump}
		if guarded {
			want = []string{keepJump, masqJump}
		}
		if !slices.Equal(left, others) || !slices.Equal(jumps, want) {
			t.Fatalf("seed %d: got %q, foreign rules were %q", seed, f.chains[tableNAT][hookPostrouting], others)
		}
	}
}

func TestApplyFailures(t *testing.T) {
	broken := errors.New("resource temporarily unavailable")
	t.Run("restore fails", func(t *testing.T) {
		f := newFakeTables()
		f.fail = broken
		r, err := applyTables(t.Context(), f, allRules().rulesets(nil)[ipv4])
		if !errors.Is(err, broken) || len(r.changes) > 0 || len(f.restores) != 4*maxAttempts {
			t.Errorf("%v, %v, %d restores", err, r, len(f.restores))
		}
	})
	t.Run("one table fails, the others are applied", func(t *testing.T) {
		f := newFakeTables()
		f.listFails = chainForward
		_, err := applyTables(t.Context(), f, allRules().rulesets(nil)[ipv4])
		if err == nil || err.Error() != "table filter: list FLANNEL-FWD: cannot list FLANNEL-FWD" {
			t.Errorf("error %v", err)
		}
		if len(f.chains[tableNAT][chainMasquerade]) == 0 || len(f.chains[tableRaw][hookOutput]) == 0 {
			t.Error("nat or raw not applied")
		}
	})
	t.Run("rules do not read back", func(t *testing.T) {
		f := newFakeTables()
		f.distort = func(r string) string { return strings.ReplaceAll(r, "RETURN", "CONTINUE") }
		_, err := applyTables(t.Context(), f, allRules().rulesets(nil)[ipv4])
		if err == nil || !strings.Contains(err.Error(),
			"do not read back as set: nat FLANNEL-POSTRTG: 6 rules set") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		f := newFakeTables()
		ctx, cancel := context.WithCancel(t.Context())
		f.meddle = func(string) { cancel() }
		if _, err := applyTables(ctx, f, allRules().rulesets(nil)[ipv4]); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("absent tables are not listed", func(t *testing.T) {
		f := newFakeTables()
		f.absent = func(table string) bool { return table == tableRaw }
		d := allRules()
		d.NoTrack = nil
		applied(t, f, d)
		if len(f.listed[tableRaw]) > 0 || len(f.listed[tableNAT]) == 0 {
			t.Errorf("listed %v", f.listed)
		}
	})
}

func TestApplyConcurrentChanges(t *testing.T) {
	t.Run("another program changes the chain", func(t *testing.T) {
		f := newFakeTables()
		f.chains[tableNAT][hookPostrouting] = []string{oldMasq}
		times := 0
		f.meddle = func(table string) {
			if times++; times == 1 {
				f.chains[table][hookPostrouting] = []string{dockerRule}
			}
		}
		if r := applied(t, f, allRules()); len(r.notes) != 1 {
			t.Errorf("notes %q", r.notes)
		}
		if want := []string{keepJump, dockerRule, masqJump}; !slices.Equal(f.chains[tableNAT][hookPostrouting], want) {
			t.Errorf("got %q", f.chains[tableNAT][hookPostrouting])
		}
	})
	t.Run("another daemon creates the same chains", func(t *testing.T) {
		f := newFakeTables()
		accepted := "-s 10.6.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT"
		f.meddle = func(table string) {
			if table == tableFilter && f.chains[table][chainForward] == nil {
				f.chains[table][hookForward], f.chains[table][chainForward] = []string{forwardJump}, []string{accepted}
			}
		}
		applied(t, f, allRules())
		want := append([]string{accepted}, chainText(tableFilter, chainForward)...)
		if got := f.chains[tableFilter]; !slices.Equal(got[chainForward], want) || len(got[hookForward]) != 1 {
			t.Errorf("got %q", got)
		}
	})
}
