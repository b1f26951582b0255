package netfilter

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestNetnsNoTrackAndDropInvalid checks that tunnel packets stay in connection tracking while a
// rule drops ICMP errors about untracked packets, and only then.
func TestNetnsNoTrackAndDropInvalid(t *testing.T) {
	requirePrograms(t)
	const chain = "nft add table inet fw; nft 'add chain inet fw in { type filter hook input priority 0; }'; "
	const related = " -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; "
	invalid := func(program string) string {
		return program + related + program + " -A INPUT -m conntrack --ctstate INVALID -j DROP"
	}
	for _, tt := range []struct {
		name, rules string
		tracked     bool
	}{
		{"no rules", "true", false},
		{"iptables-nft", invalid("iptables-nft"), true},
		{"iptables-legacy", invalid("iptables-legacy"), true},
		{"module state", "iptables-nft -A INPUT -m state --state INVALID -j DROP", true},
		{"module state, legacy", "iptables-legacy -A INPUT -m state --state INVALID -j DROP", true},
		{"chain of ufw", "iptables-nft -N ufw-before-input; iptables-nft -A INPUT -j ufw-before-input; " +
			"iptables-nft -A ufw-before-input -i lo -j ACCEPT; iptables-nft -A ufw-before-input " +
			"-m conntrack --ctstate INVALID -j DROP; iptables-nft -A ufw-before-input -p icmp " +
			"--icmp-type destination-unreachable -j ACCEPT", true},
		{"mangle", "iptables-legacy -t mangle -A PREROUTING -m conntrack --ctstate INVALID -j DROP", true},
		{"policy", "iptables-legacy" + related + "iptables-legacy -A INPUT -p udp --dport 8285 -j ACCEPT; " +
			"iptables-legacy -P INPUT DROP", true},
		{"nft map", chain + "nft add rule inet fw in ct state vmap { established : accept, invalid : drop }", true},
		{"nft", chain + "nft add rule inet fw in ct state invalid drop", true},
		{"ICMP accepted first", "iptables-nft -A INPUT -p icmp -j ACCEPT; " + invalid("iptables-nft"), false},
		{"ICMP error accepted first, legacy", "iptables-legacy -A INPUT -p icmp --icmp-type 3 -j ACCEPT; " +
			invalid("iptables-legacy"), false},
		{"ping accepted first", "iptables-legacy -A INPUT -p icmp --icmp-type 8 -j ACCEPT; " +
			invalid("iptables-legacy"), true},
		{"TCP only", "iptables-nft -A INPUT -p tcp -m conntrack --ctstate INVALID -j DROP", false},
		{"banned address", "iptables-nft -A INPUT -s 192.0.2.99 -j REJECT", false},
		{"nft set of types", chain + "nft add rule inet fw in icmp type { destination-unreachable, " +
			"time-exceeded } accept; nft add rule inet fw in ct state invalid drop", false},
	} {
		for _, nft := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, nftables %t", tt.name, nft), func(t *testing.T) {
				ns, m := newNS(t), New(Options{})
				shell(t, ns, tt.rules)
				d := Desired{Nets: []Net{net4}, NFTables: nft, NoTrack: []netip.AddrPort{own4}}
				notes := strings.Join(set(t, ns, m, d).Notes, "\n")
				rules := firewall{nft: true}.listRules(t, ns, ipv4) + runIn(t, ns, "iptables-legacy-save")
				if untracked := strings.Contains(rules, own4.Addr().String()); untracked == tt.tracked {
					t.Errorf("untracked %t:\n%s", untracked, rules)
				}
				if strings.Contains(notes, "stay in connection tracking: ") != tt.tracked {
					t.Errorf("notes %q", notes)
				}
			})
		}
	}
}
