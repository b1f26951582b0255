package netfilter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNetnsModeChange switches between every two packet filters. No rules may remain in the first
// one, including those that flannel left.
func TestNetnsModeChange(t *testing.T) {
	for _, from := range firewalls() {
		for _, to := range firewalls() {
			if from == to {
				continue
			}
			t.Run(from.name+" to "+to.name, func(t *testing.T) {
				from.require(t)
				to.require(t)
				ns := newNS(t)
				d := allRules()
				d.NFTables = from.nft
				set(t, ns, from.manager(), d)
				if !from.nft {
					// A foreign rule in the same table must stay.
					runIn(t, ns, from.program(ipv4), "-t", "nat", "-A", "POSTROUTING", "-o", "lo", "-j", "ACCEPT")
				}
				d.NFTables = to.nft
				set(t, ns, to.manager(), d)
				for _, f := range families() {
					got := from.listRules(t, ns, f)
					if !from.nft {
						want := "\n"
						if f == ipv4 {
							want = "\nnat -A POSTROUTING -o lo -j ACCEPT\n"
						}
						if left := got; left != want && !to.sharesListing(from) {
							t.Errorf("rules left in the first filter:%s", left)
						}
						if strings.Contains(got, ":FLANNEL") {
							t.Errorf("chain left:%s", got)
						}
					} else if strings.Contains(got, tableName(f)) {
						t.Errorf("rules left in the first filter:\n%s", got)
					}
				}
				if got := to.listRules(t, ns, ipv4); !strings.Contains(got, "MASQUERADE --random-fully") {
					t.Errorf("rules missing in the second filter:%s", got)
				}
			})
		}
	}
}

// sharesListing reports whether one filter lists the rules of the other.
func (fw firewall) sharesListing(other firewall) bool {
	return fw.variant == other.variant && !fw.nft && !other.nft
}

// TestNetnsFlannelModeChange removes the rules that flannel leaves when it is switched from
// iptables to nftables.
func TestNetnsFlannelModeChange(t *testing.T) {
	for _, fw := range iptablesFirewalls() {
		t.Run(fw.name, func(t *testing.T) {
			fw.require(t)
			requireNFTables(t)
			ns := newNS(t)
			for _, args := range []string{
				"-t nat -N FLANNEL-POSTRTG", "-t nat -A POSTROUTING -j FLANNEL-POSTRTG",
				"-N FLANNEL-FWD", "-A FORWARD -j FLANNEL-FWD", "-A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT",
			} {
				runIn(t, ns, fw.program(ipv4), strings.Fields(args)...)
			}
			d := allRules()
			d.NFTables = true
			set(t, ns, fw.manager(), d)
			if got := runIn(t, ns, fw.program(ipv4)+"-save"); strings.Contains(got, "FLANNEL") {
				t.Errorf("rules left:\n%s", got)
			}
		})
	}
}

// TestNetnsNoIPTables checks that a host without iptables gets nftables.
func TestNetnsNoIPTables(t *testing.T) {
	requireNFTables(t)
	t.Setenv("PATH", t.TempDir())
	ns, m := newNS(t), New(Options{})
	if s := set(t, ns, m, allRules()); s.Mode != NFTables {
		t.Errorf("mode %q", s.Mode)
	}
}

// TestNetnsOldIPTables wraps the iptables programs in scripts that reject the options that older
// programs and kernels do not support.
func TestNetnsOldIPTables(t *testing.T) {
	for _, fw := range iptablesFirewalls()[:2] {
		for _, tt := range []struct {
			name, refuses string // shell pattern
			masquerade    string // expected rule
			notes         int    // one per family
			err           string
		}{
			{"no random ports", "*--random-fully*", "-j MASQUERADE\n", 0, ""},
			{"no --wait", "*--noflush?--wait*", "-j MASQUERADE --random-fully\n", 0, ""},
			{"no notrack", "*--notrack*", "-j MASQUERADE --random-fully\n", 2, ""},
			{"no raw table", "*'*raw'*", "-j MASQUERADE --random-fully\n", 2, ""},
			{"no masquerading", "*MASQUERADE*", "", 0, ": masquerade: "},
			{"no nat table", "*'*nat'*", "", 0, ": table nat: "},
		} {
			t.Run(fw.name+", "+tt.name, func(t *testing.T) {
				fw.require(t)
				ns, old := newNS(t), firewall{variant: "-old"}
				old.install(t, fw, tt.refuses)
				m := old.manager()
				m.Set(allRules())
				inNS(t, ns, func() error { m.reconcileOnce(t.Context()); return nil })
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
				if got := fw.listRules(t, ns, ipv4); strings.Count(got, tt.masquerade) != 2 {
					t.Errorf("got%s", got)
				}
				if s := resync(t, ns, m); s.Repairs != 0 {
					t.Error("repaired rules that were in place")
				}
			})
		}
	}
}

// install creates programs of variant fw that pass everything to those of real, except arguments
// and input that match the pattern.
func (fw firewall) install(t *testing.T, real firewall, refuses string) {
	t.Helper()
	dir := t.TempDir()
	for _, f := range families() {
		for _, suffix := range []string{"", "-restore"} {
			script := fmt.Sprintf("#!/bin/sh\n[ %q ] && text=$(cat)\n"+
				"case \"$* $text\" in %s) echo refused >&2; exit 2;; esac\n"+
				"printf '%%s\\n' \"$text\" | exec %s%s \"$@\"\n", suffix, refuses, real.program(f), suffix)
			if err := os.WriteFile(filepath.Join(dir, fw.program(f)+suffix), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}
