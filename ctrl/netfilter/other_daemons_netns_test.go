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

// otherDaemonOf returns d for a second daemon on the host, with another network and the same
// address and port.
func otherDaemonOf(d Desired) Desired {
	d.Nets = []Net{
		{netip.MustParsePrefix("10.6.0.0/16"), netip.MustParsePrefix("10.6.9.0/24")},
		{netip.MustParsePrefix("fc06::/48"), netip.MustParsePrefix("fc06:0:0:9::/64")},
	}
	return d
}

// allRulesIn returns allRules for one packet filter.
func allRulesIn(fw firewall) Desired {
	d := allRules()
	d.NFTables = fw.nft
	return d
}

// lines returns the lines of a listing. For nftables it replaces the headings by the chain in front
// of each rule.
func (fw firewall) lines(t *testing.T, ns *lab.NS) []string {
	t.Helper()
	var all []string
	for _, f := range families() {
		heading := ""
		for line := range strings.Lines(fw.sorted(fw.listRules(t, ns, f))) {
			switch rule, indented := strings.CutPrefix(line, "\t"); {
			case indented:
				all = append(all, heading+rule)
			case fw.nft:
				heading, _, _ = strings.Cut(line, ":")
			default:
				all = append(all, line)
			}
		}
	}
	return all
}

// newDockerNS returns a namespace with a rule that makes the guard necessary.
func (fw firewall) newDockerNS(t *testing.T) *lab.NS {
	t.Helper()
	ns := newNS(t)
	if !fw.nft {
		fw.addDockerRule(t, ns)
	}
	return ns
}

func (fw firewall) addDockerRule(t *testing.T, ns *lab.NS) {
	t.Helper()
	for _, f := range families() {
		runIn(t, ns, fw.program(f), "-t", "nat", "-A", "POSTROUTING", "!", "-o", "docker0", "-j", "MASQUERADE")
	}
}

// linesAlone returns the lines of a daemon that is alone on its host.
func (fw firewall) linesAlone(t *testing.T, d Desired) (lines []string) {
	t.Run("alone", func(t *testing.T) {
		ns := fw.newDockerNS(t)
		set(t, ns, fw.manager(), d)
		lines = fw.lines(t, ns)
	})
	return lines
}

// checkLines checks that each line of alone is listed once, in that order.
func (fw firewall) checkLines(t *testing.T, ns *lab.NS, step string, alone []string) {
	t.Helper()
	var got []string
	for _, line := range fw.lines(t, ns) {
		if slices.Contains(alone, line) {
			got = append(got, line)
		}
	}
	if !slices.Equal(got, alone) {
		t.Errorf("%s:\n%swant\n%s", step, strings.Join(got, ""), strings.Join(alone, ""))
	}
}

// checkNoNetworks checks that no rule names one of the networks.
func (fw firewall) checkNoNetworks(t *testing.T, ns *lab.NS, step string, nets []Net) {
	t.Helper()
	for _, line := range fw.lines(t, ns) {
		for _, p := range prefixes(nets) {
			if strings.Contains(line, p.String()) {
				t.Errorf("%s: rule left: %s", step, line)
			}
		}
	}
}

// TestNetnsTwoDaemons runs two daemons with different networks on one host, in the same and in
// different packet filters. Both must have all their rules, make no repairs, and keep the other's
// rules when they change or remove their own.
func TestNetnsTwoDaemons(t *testing.T) {
	for i, fwA := range firewalls() {
		for _, fwB := range []firewall{fwA, firewalls()[(i+1)%len(firewalls())]} {
			t.Run(fwA.name+" and "+fwB.name, func(t *testing.T) { testTwoDaemons(t, fwA, fwB) })
		}
	}
}

func testTwoDaemons(t *testing.T, fwA, fwB firewall) {
	fwA.require(t)
	fwB.require(t)
	da, db := allRulesIn(fwA), otherDaemonOf(allRulesIn(fwB))
	aloneA, aloneB := fwA.linesAlone(t, da), fwB.linesAlone(t, db)
	ns := fwA.newDockerNS(t)
	if fwB.variant != fwA.variant && !fwB.nft {
		fwB.addDockerRule(t, ns)
	}
	a, b := fwA.manager(), fwB.manager()
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
		fwA.checkLines(t, ns, step+", first daemon", aloneA)
		fwB.checkLines(t, ns, step+", second daemon", aloneB)
	}
	both("started")
	off := Desired{Nets: db.Nets, NFTables: fwB.nft}
	set(t, ns, b, off)
	quiet("second daemon removes its rules")
	fwA.checkLines(t, ns, "second daemon removes its rules", aloneA)
	fwB.checkNoNetworks(t, ns, "second daemon removes its rules", db.Nets)

	set(t, ns, b, db)
	both("second daemon sets its rules again")
	other := db
	other.Nets = []Net{{netip.MustParsePrefix("10.7.0.0/16"), netip.MustParsePrefix("10.7.1.0/24")}}
	set(t, ns, b, other)
	quiet("second daemon changes its network")
	fwA.checkLines(t, ns, "second daemon changes its network", aloneA)
	fwB.checkNoNetworks(t, ns, "second daemon changes its network", db.Nets)

	b = newManager(fwB.host(), Options{Previous: prefixes(other.Nets)})
	set(t, ns, b, db)
	both("second daemon restarts with its first network")
	fwB.checkNoNetworks(t, ns, "second daemon restarts with its first network", other.Nets)

	da.NFTables = fwB.nft
	a = fwB.manager()
	set(t, ns, a, da)
	quiet("first daemon changes its mode")
	fwB.checkLines(t, ns, "first daemon changes its mode", aloneB)
	if fwA != fwB && !fwA.nft {
		fwA.checkNoNetworks(t, ns, "first daemon changes its mode", da.Nets)
	}
	inNS(t, ns, func() error { _, err := Cleanup(t.Context()); return err })
	fwB.checkNoNetworks(t, ns, "cleanup", slices.Concat(da.Nets, db.Nets))
}

// TestNetnsRecreateSharedChain checks that a recreated chain keeps another daemon's rules.
func TestNetnsRecreateSharedChain(t *testing.T) {
	fw := firewall{name: "nftables", nft: true}
	fw.require(t)
	d := allRulesIn(fw)
	other := otherDaemonOf(d)
	aloneA, aloneB := fw.linesAlone(t, d), fw.linesAlone(t, other)
	ns, a := newNS(t), fw.manager()
	set(t, ns, a, d)
	set(t, ns, fw.manager(), other)
	for _, b := range nftBreakages() {
		if b.name != "extra chain" && !strings.HasPrefix(b.name, "chain with") {
			continue
		}
		b.do(t, ns, fw)
		resync(t, ns, a)
		fw.checkLines(t, ns, b.name+", first daemon", aloneA)
		fw.checkLines(t, ns, b.name+", second daemon", aloneB)
	}
}

// addFlannelTable adds flannel's nftables rules, without the comments of table and chains. flannel
// compares the mark without a mask.
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

// TestNetnsFlannelTable takes over flannel's table, and shares it with a flannel of another
// network.
func TestNetnsFlannelTable(t *testing.T) {
	fw := firewall{name: "nftables", nft: true}
	fw.require(t)
	d := allRulesIn(fw)
	alone := fw.linesAlone(t, d)
	t.Run("same network", func(t *testing.T) {
		ns, m := newNS(t), fw.manager()
		inNS(t, ns, func() error { return addFlannelTable(d) })
		set(t, ns, m, d)
		if got := fw.lines(t, ns); !slices.Equal(got, alone) {
			t.Errorf("got\n%s", strings.Join(got, ""))
		}
	})
	t.Run("another network", func(t *testing.T) {
		ns, m := newNS(t), fw.manager()
		inNS(t, ns, func() error { return addFlannelTable(otherDaemonOf(d)) })
		theirs := slices.DeleteFunc(fw.lines(t, ns), func(line string) bool { return !strings.Contains(line, "10.6.") })
		set(t, ns, m, d)
		fw.checkLines(t, ns, "with flannel, Weft's rules", alone)
		fw.checkLines(t, ns, "with flannel, flannel's rules", theirs)
		if s := resync(t, ns, m); s.Repairs > 0 || len(theirs) != 7 {
			t.Errorf("%d repairs; flannel's rules %q", s.Repairs, theirs)
		}
	})
}
