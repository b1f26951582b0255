package netfilter

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"weft/deploy/lab"
)

// siblingOf is what a second daemon on the host wants: the same of another network, at the same address and port.
func otherDaemonOf(d Desired) Desired {
	d.Nets = []Net{
		{netip.MustParsePrefix("10.6.0.0/16"), netip.MustParsePrefix("10.6.9.0/24")},
		{netip.MustParsePrefix("fc06::/48"), netip.MustParsePrefix("fc06:0:0:9::/64")},
	}
	return d
}

// everythingBy is all that can be wanted of one way.
func allRulesIn(w firewall) Desired {
	d := allRules()
	d.NFTables = w.nft
	return d
}

// lines are a listing's, each with its chain in front, without the headings that nftables has.
func (w firewall) lines(t *testing.T, ns *lab.NS) []string {
	t.Helper()
	var all []string
	for _, f := range families() {
		heading := ""
		for line := range strings.Lines(w.sorted(w.listRules(t, ns, f))) {
			switch rule, indented := strings.CutPrefix(line, "\t"); {
			case indented:
				all = append(all, heading+rule)
			case w.nft:
				heading, _, _ = strings.Cut(line, ":")
			default:
				all = append(all, line)
			}
		}
	}
	return all
}

// docked is a namespace with a rule that pods' sources must be protected from.
func (w firewall) newDockerNS(t *testing.T) *lab.NS {
	t.Helper()
	ns := newNS(t)
	if !w.nft {
		for _, f := range families() {
			runIn(t, ns, w.program(f), "-t", "nat", "-A", "POSTROUTING", "!", "-o", "docker0", "-j", "MASQUERADE")
		}
	}
	return ns
}

// alone are the lines of one daemon that has the host for itself.
func (w firewall) linesAlone(t *testing.T, d Desired) (lines []string) {
	t.Run("alone", func(t *testing.T) {
		ns := w.newDockerNS(t)
		set(t, ns, w.manager(), d)
		lines = w.lines(t, ns)
	})
	return lines
}

// checkOf expects, of all the lines of one daemon, each to be there once and in order, or none that only it has.
func (w firewall) checkLines(t *testing.T, ns *lab.NS, step string, alone []string) {
	t.Helper()
	var got []string
	for _, line := range w.lines(t, ns) {
		if slices.Contains(alone, line) {
			got = append(got, line)
		}
	}
	if !slices.Equal(got, alone) {
		t.Errorf("%s:\n%swant\n%s", step, strings.Join(got, ""), strings.Join(alone, ""))
	}
}

// checkNone expects nothing that names one of the networks.
func (w firewall) checkNoNetworks(t *testing.T, ns *lab.NS, step string, nets []Net) {
	t.Helper()
	for _, line := range w.lines(t, ns) {
		for _, p := range prefixes(nets) {
			if strings.Contains(line, p.String()) {
				t.Errorf("%s: left %s", step, line)
			}
		}
	}
}

// TestNetnsSiblings has two daemons with other networks on one host, each in its way: both are complete, keep quiet, and
// leave the other one's rules alone when they change or go.
func TestNetnsSiblings(t *testing.T) {
	for i, wa := range firewalls() {
		for _, wb := range []firewall{wa, firewalls()[(i+1)%len(firewalls())]} {
			t.Run(wa.name+" beside "+wb.name, func(t *testing.T) {
				wa.require(t)
				wb.require(t)
				da, db := allRulesIn(wa), otherDaemonOf(allRulesIn(wb))
				aloneA, aloneB := wa.linesAlone(t, da), wb.linesAlone(t, db)
				ns := wa.newDockerNS(t)
				if wb.variant != wa.variant && !wb.nft {
					for _, f := range families() {
						runIn(t, ns, wb.program(f), "-t", "nat", "-A", "POSTROUTING", "!", "-o", "docker0", "-j", "MASQUERADE")
					}
				}
				a, b := wa.manager(), wb.manager()
				set(t, ns, a, da)
				set(t, ns, b, db)
				quiet := func(step string) {
					t.Helper()
					for range 2 {
						if ra, rb := resync(t, ns, a).Repairs, resync(t, ns, b).Repairs; ra+rb > 0 {
							t.Errorf("%s: %d and %d repairs", step, ra, rb)
						}
					}
				}
				both := func(step string) {
					t.Helper()
					quiet(step)
					wa.checkLines(t, ns, step+", the first", aloneA)
					wb.checkLines(t, ns, step+", the second", aloneB)
				}
				both("started")
				off := Desired{Nets: db.Nets, NFTables: wb.nft}
				set(t, ns, b, off)
				quiet("the second wants nothing")
				wa.checkLines(t, ns, "the second wants nothing", aloneA)
				wb.checkNoNetworks(t, ns, "the second wants nothing", db.Nets)

				set(t, ns, b, db)
				both("the second wants all again")
				other := db
				other.Nets = []Net{{netip.MustParsePrefix("10.7.0.0/16"), netip.MustParsePrefix("10.7.1.0/24")}}
				set(t, ns, b, other)
				quiet("the second changed its network")
				wa.checkLines(t, ns, "the second changed its network", aloneA)
				wb.checkNoNetworks(t, ns, "the second changed its network", db.Nets)

				b = newManager(variantHost{variant: wb.variant}, Options{Previous: prefixes(other.Nets)})
				set(t, ns, b, db)
				both("the second changed back between two runs")
				wb.checkNoNetworks(t, ns, "the second changed back between two runs", other.Nets)

				da.NFTables = wb.nft
				a = wb.manager()
				set(t, ns, a, da)
				quiet("the first goes the other's way")
				wb.checkLines(t, ns, "the first goes the other's way", aloneB)
				if wa != wb && !wa.nft {
					wa.checkNoNetworks(t, ns, "the first goes the other's way", da.Nets)
				}
				inNS(t, ns, func() error { _, err := Cleanup(t.Context()); return err })
				wb.checkNoNetworks(t, ns, "cleanup", slices.Concat(da.Nets, db.Nets))
			})
		}
	}
}

// TestNetnsSiblingInAMisplacedChain: a chain that has to be made anew keeps what another daemon has in it.
func TestNetnsSiblingInAMisplacedChain(t *testing.T) {
	w := firewall{name: "nftables", nft: true}
	w.require(t)
	d := allRulesIn(w)
	sibling := otherDaemonOf(d)
	aloneA, aloneB := w.linesAlone(t, d), w.linesAlone(t, sibling)
	ns, a := newNS(t), w.manager()
	set(t, ns, a, d)
	set(t, ns, w.manager(), sibling)
	for _, b := range nftBreakages() {
		if !strings.HasPrefix(b.name, "a chain") {
			continue
		}
		b.do(t, ns, w)
		resync(t, ns, a)
		w.checkLines(t, ns, b.name+", ours", aloneA)
		w.checkLines(t, ns, b.name+", the sibling's", aloneB)
	}
}

// flannelsTable writes what flannel does with nftables, but for the comments of table and chains: kube-proxy's mark is
// compared as a whole there.
func addFlannelTable(network Desired) error {
	conn, err := dialNFT()
	if err != nil {
		return err
	}
	t := conn.AddTable(&nftables.Table{Name: tableName(ipv4), Family: nftables.TableFamilyIPv4})
	for _, c := range baseChains() {
		if c.chain != chainMasquerade && c.chain != chainForward {
			continue
		}
		chain := addChain(conn, t, c)
		for _, r := range forNFTables(c, network.rules(ipv4)) {
			k := toNFTRule(ipv4, t, chain, r)
			k.Exprs = slices.DeleteFunc(k.Exprs, func(e expr.Any) bool {
				_, masks := e.(*expr.Bitwise)
				return masks && r.mark != 0
			})
			conn.AddRule(k)
		}
	}
	return conn.Flush()
}

// TestNetnsFlannelsTable takes over from flannel, and stands beside one with another network.
func TestNetnsFlannelsTable(t *testing.T) {
	w := firewall{name: "nftables", nft: true}
	w.require(t)
	d := allRulesIn(w)
	alone := w.linesAlone(t, d)
	t.Run("same network", func(t *testing.T) {
		ns, m := newNS(t), w.manager()
		inNS(t, ns, func() error { return addFlannelTable(d) })
		set(t, ns, m, d)
		if got := w.lines(t, ns); !slices.Equal(got, alone) {
			t.Errorf("got\n%s", strings.Join(got, ""))
		}
	})
	t.Run("another network", func(t *testing.T) {
		ns, m := newNS(t), w.manager()
		inNS(t, ns, func() error { return addFlannelTable(otherDaemonOf(d)) })
		theirs := slices.DeleteFunc(w.lines(t, ns), func(line string) bool { return !strings.Contains(line, "10.6.") })
		set(t, ns, m, d)
		w.checkLines(t, ns, "beside flannel, ours", alone)
		w.checkLines(t, ns, "beside flannel, flannel's", theirs)
		if s := resync(t, ns, m); s.Repairs > 0 || len(theirs) != 7 {
			t.Errorf("%d repairs; of flannel %q", s.Repairs, theirs)
		}
	})
}
