package netfilter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNetnsOneWayAtATime goes from each way to each other one and expects nothing of the first to be left, with rules that
// flannel itself left behind as well.
func TestNetnsOneWayAtATime(t *testing.T) {
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
					// A foreign rule in the same table must live on.
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
							t.Errorf("left of the first:%s", left)
						}
						if strings.Contains(got, ":FLANNEL") {
							t.Errorf("a chain was left:%s", got)
						}
					} else if strings.Contains(got, tableName(f)) {
						t.Errorf("left of the first:\n%s", got)
					}
				}
				if got := to.listRules(t, ns, ipv4); !strings.Contains(got, "MASQUERADE --random-fully") {
					t.Errorf("the second is not there:%s", got)
				}
			})
		}
	}
}

// sharesListing tells whether one program lists what the other one set.
func (w firewall) sharesListing(other firewall) bool {
	return w.variant == other.variant && !w.nft && !other.nft
}

// TestNetnsFlannelLeftovers: what flannel leaves when it is told to use nftables after iptables.
func TestNetnsFlannelLeftovers(t *testing.T) {
	for _, w := range iptablesFirewalls() {
		t.Run(w.name, func(t *testing.T) {
			w.require(t)
			requireNFTables(t)
			ns := newNS(t)
			for _, args := range []string{
				"-t nat -N FLANNEL-POSTRTG", "-t nat -A POSTROUTING -j FLANNEL-POSTRTG",
				"-N FLANNEL-FWD", "-A FORWARD -j FLANNEL-FWD", "-A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT",
			} {
				runIn(t, ns, w.program(ipv4), strings.Fields(args)...)
			}
			d := allRules()
			d.NFTables = true
			set(t, ns, w.manager(), d)
			if got := runIn(t, ns, w.program(ipv4)+"-save"); strings.Contains(got, "FLANNEL") {
				t.Errorf("left:\n%s", got)
			}
		})
	}
}

// TestNetnsWithoutPrograms: a host without iptables gets nftables.
func TestNetnsWithoutPrograms(t *testing.T) {
	requireNFTables(t)
	t.Setenv("PATH", t.TempDir())
	ns, m := newNS(t), New(Options{})
	if s := set(t, ns, m, allRules()); s.Mode != NFTables {
		t.Errorf("mode %q", s.Mode)
	}
}

// TestNetnsOlderHosts puts programs in front of the real ones that refuse what older programs or kernels do not know.
func TestNetnsOlderHosts(t *testing.T) {
	for _, w := range iptablesFirewalls() {
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
			{"no masquerading", "*MASQUERADE*", "", 0, ": masquerade: "},
			{"no nat table", "*'*nat'*", "", 0, ": table nat: "},
		} {
			t.Run(w.name+", "+tt.name, func(t *testing.T) {
				w.require(t)
				ns, old := newNS(t), firewall{variant: "-old"}
				old.install(t, w, tt.refuses)
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
				if got := w.listRules(t, ns, ipv4); strings.Count(got, tt.masquerade) != 2 {
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
func (w firewall) install(t *testing.T, real firewall, refuses string) {
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
