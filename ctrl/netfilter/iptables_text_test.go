package netfilter

import (
	"slices"
	"strings"
	"testing"
)

// TestSpecRoundTrip checks that the text of every rule parses back to the same value.
func TestSpecRoundTrip(t *testing.T) {
	for _, f := range families() {
		for _, r := range forIPTables(tableNAT, allRules().rules(f)) {
			line := "-A " + r.chain + " " + r.spec()
			p, ok := parse(r.table, line)
			if !ok || !p.exact() || p.rule != r {
				t.Errorf("%s\nparsed %+v\nwant %+v", line, p, r)
			}
		}
	}
	for _, table := range []string{tableFilter, tableRaw} {
		for _, r := range forIPTables(table, allRules().rules(ipv4)) {
			if p, _ := parse(table, "-A "+r.chain+" "+r.spec()); !p.exact() || p.rule != r {
				t.Errorf("%s parsed as %+v", r.spec(), p)
			}
		}
	}
}

func TestParse(t *testing.T) {
	notrack := allRules().rules(ipv4)
	last := notrack[len(notrack)-1]
	masq := rule{table: tableNAT, chain: "X", verdict: verdictMasquerade}
	for _, tt := range []struct {
		line  string
		ok    bool
		exact bool
		want  rule // compared if exact
	}{
		{"", false, false, rule{}},
		{"-P POSTROUTING ACCEPT", false, false, rule{}},
		{"-N X", false, false, rule{}},
		{"-A", false, false, rule{}},
		{"-A X", true, false, rule{}},
		{"-A X -j MASQUERADE", true, true, masq},
		{"-A X -j MASQUERADE --to-ports 1-2", true, false, rule{}},
		{"-A X -j MASQUERADE --random", true, false, rule{}},
		{"-A X -j SNAT --to-source 1.2.3.4", true, false, rule{}},
		{"-A X -g FLANNEL-FWD", true, false, rule{}},
		{"-A X -j FLANNEL-FWD", true, true, rule{table: tableNAT, chain: "X", verdict: verdictJump, to: chainForward}},
		{"-A X -i eth0 -j ACCEPT", true, false, rule{}},
		{"-A X ! -o docker0 -j MASQUERADE", true, false, rule{}},
		{"-A X -p udp -j ACCEPT", true, false, rule{}},
		{"-A X ! -p udp -j ACCEPT", true, false, rule{}},
		{"-A X -p tcp -m tcp --dport 80 -j ACCEPT", true, false, rule{}},
		{"-A X -p udp -m udp --dport 1:2 -j ACCEPT", true, false, rule{}},
		{"-A X -p udp -m udp ! --dport 2 -j ACCEPT", true, false, rule{}},
		{"-A X -p udp -m udp --dport 65536 -j ACCEPT", true, false, rule{}},
		{"-A X -m mark --mark 0x4000/0x4000 -j RETURN", true, true,
			rule{table: tableNAT, chain: "X", mark: 0x4000, verdict: verdictReturn}},
		{"-A X -m mark --mark 16384/16384 -j RETURN", true, true,
			rule{table: tableNAT, chain: "X", mark: 0x4000, verdict: verdictReturn}},
		{"-A X -m mark --mark 0x4000 -j RETURN", true, false, rule{}},
		{"-A X -m mark --mark 0x4000/0xffff -j RETURN", true, false, rule{}},
		{"-A X -m mark --mark 0x0/0x0 -j RETURN", true, false, rule{}},
		{"-A X -m mark --mark x/0x1 -j RETURN", true, false, rule{}},
		{"-A X -m mark --mark 0x1/x -j RETURN", true, false, rule{}},
		{"-A X -m mark ! --mark 0x4000/0x4000 -j RETURN", true, false, rule{}},
		{"-A X -s example.org -j RETURN", true, false, rule{}},
		{"-A X -m conntrack --ctstate NEW -j ACCEPT", true, false, rule{}},
		{"-A X -j", true, false, rule{}},
		{"-A X !", true, false, rule{}},
		{"-A X --notrack -j CT", true, false, rule{}},
		{"-A OUTPUT " + last.spec(), true, true, last},
		{"-A OUTPUT " + strings.Replace(last.spec(), "CT --notrack", "NOTRACK", 1), true, true, last},
	} {
		table := tableNAT
		if strings.Contains(tt.line, "OUTPUT") {
			table = tableRaw
		}
		p, ok := parse(table, tt.line)
		if ok != tt.ok || p.exact() != tt.exact || tt.exact && p.rule != tt.want {
			t.Errorf("%q: ok %v, exact %v, %+v", tt.line, ok, p.exact(), p)
		}
	}
}

func TestSplitWords(t *testing.T) {
	for _, tt := range []struct {
		line string
		want []string
	}{
		{"", nil},
		{"  a  b ", []string{"a", "b"}},
		{`--comment "flanneld masq" -j X`, []string{"--comment", "flanneld masq", "-j", "X"}},
		{`--comment "a \"b\" \\ c"`, []string{"--comment", `a "b" \ c`}},
		{`""`, []string{""}},
		{`a\`, []string{`a\`}},
		{`a\ b`, []string{"a b"}},
		{`"open`, []string{"open"}},
	} {
		if got := splitWords(tt.line); !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, want %q", tt.line, got, tt.want)
		}
	}
}

func TestUnknownVerdict(t *testing.T) {
	if got := (rule{}).spec(); got != "-j verdict(0)" {
		t.Error(got)
	}
}

// FuzzParse parses rules of other programs. It must not panic, and exact rules must survive a round
// trip.
func FuzzParse(f *testing.F) {
	for _, r := range allRules().rules(ipv4) {
		f.Add("-A " + r.chain + " " + r.spec())
	}
	f.Add(`-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE`)
	f.Add(`-A X ! -s fc00::/7 -m comment --comment "a \"b" -g Y`)
	f.Fuzz(func(t *testing.T, line string) {
		p, ok := parse(tableNAT, line)
		if !ok || !p.exact() {
			return
		}
		again, ok := parse(tableNAT, "-A "+quote(p.chain)+" "+p.spec())
		// Host bits in an address are preserved, as by the kernel.
		if !ok || again.rule != p.rule {
			t.Errorf("%q parsed as %+v, after a round trip as %+v", line, p.rule, again.rule)
		}
	})
}
