package netfilter

import (
	"os"
	"strings"
	"testing"

	"weft/deploy/lab"
)

// shell runs a command line in a namespace.
func shell(t *testing.T, ns *lab.NS, line string) {
	t.Helper()
	runIn(t, ns, "sh", "-ec", line)
}

// requirePrograms skips the test unless both variants of iptables and nft work here.
func requirePrograms(t *testing.T) {
	t.Helper()
	requireNFTables(t)
	requireProgram(t, "nft")
	for _, fw := range iptablesFirewalls() {
		fw.require(t)
	}
}

// droppingRules are rules with which hosts drop forwarded packets.
var droppingRules = []struct {
	name, rules string // shell command
	chain       string // the chain that the reason names
	variant     string // variant of iptables that can accept the packets
}{
	{"policy of iptables-nft", "iptables-nft -P FORWARD DROP",
		"nftables chain FORWARD of table ip filter", "-nft"},
	{"policy of iptables-legacy", "iptables-legacy -P FORWARD DROP",
		"iptables-legacy chain FORWARD of table filter", "-legacy"},
	{"dockerd with iptables-legacy", "iptables-legacy -P FORWARD DROP; iptables-legacy -N DOCKER; " +
		"iptables-legacy -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; " +
		"iptables-legacy -A FORWARD -o lo -j DOCKER; iptables-legacy -A FORWARD -s 192.168.0.0/16 -j ACCEPT",
		"iptables-legacy chain FORWARD of table filter", "-legacy"},
	{"reject rule of iptables-legacy", "iptables-legacy -A FORWARD -m state --state RELATED,ESTABLISHED " +
		"-j ACCEPT; iptables-legacy -A FORWARD -j REJECT", "iptables-legacy chain FORWARD of table filter", "-legacy"},
	{"policy of nftables", "nft add table inet fw; " +
		"nft 'add chain inet fw pass { type filter hook forward priority 0; policy drop; }'; " +
		"nft add rule inet fw pass ct state vmap { established : accept, related : accept, invalid : drop }; " +
		"nft add rule inet fw pass ct status dnat accept",
		"nftables chain pass of table inet fw", ""},
	{"chain of nftables", "nft add table ip fw; nft add chain ip fw rest; nft add rule ip fw rest reject; " +
		"nft 'add chain ip fw pass { type filter hook forward priority 10; }'; " +
		"nft add rule ip fw pass ct state established,related accept; nft add rule ip fw pass goto rest",
		"nftables chain pass of table ip fw", ""},
}

// TestNetnsForwardPolicyDrop checks that pods are reached on a host that drops forwarded packets by
// default, or that the status names the chain and the remedy, which then works.
func TestNetnsForwardPolicyDrop(t *testing.T) {
	for _, tt := range droppingRules {
		t.Run(tt.name, func(t *testing.T) {
			requirePrograms(t)
			o, m := newTestOverlay(t), New(Options{})
			node, pod, far := o.Nodes[0].NS, o.Nodes[0].Pods[0], o.Nodes[1].Pods[0]
			shell(t, node, tt.rules)
			d := Desired{Nets: o.nets[0], Masquerade: true, Forward: true}
			s := set(t, node, m, d)
			if tt.variant == "" {
				if len(s.Blocked) == 0 || !strings.HasPrefix(s.Blocked[0], tt.chain+" drops ") {
					t.Fatalf("blocked: %q", s.Blocked)
				}
				for _, reason := range s.Blocked {
					_, remedy, _ := strings.Cut(reason, "remedy: ")
					shell(t, node, remedy)
				}
				s = resync(t, node, m)
			}
			if len(s.Blocked) > 0 {
				t.Errorf("blocked: %q", s.Blocked)
			}
			if tt.variant != "" {
				listed := runIn(t, node, "iptables"+tt.variant, "-t", "nat", "-S")
				if !strings.Contains(listed, "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG") {
					t.Errorf("iptables%s -t nat -S lists %s", tt.variant, listed)
				}
			}
			if _, err := seenSource(far.NS, pod.NS, pod.Addr); err != nil {
				t.Errorf("to the pod: %v", err)
			}
			if _, err := seenSource(pod.NS, far.NS, far.Addr); err != nil {
				t.Errorf("from the pod: %v", err)
			}
		})
	}
}

// TestNetnsForwardPolicyDropWithoutIPTables checks the same on a host without iptables programs.
func TestNetnsForwardPolicyDropWithoutIPTables(t *testing.T) {
	for _, tt := range droppingRules {
		t.Run(tt.name, func(t *testing.T) {
			requirePrograms(t)
			o, m := newTestOverlay(t), New(Options{})
			node, pod, far := o.Nodes[0].NS, o.Nodes[0].Pods[0], o.Nodes[1].Pods[0]
			shell(t, node, tt.rules)
			hidden := hidePrograms(t)
			s := set(t, node, m, Desired{Nets: o.nets[0], Masquerade: true, Forward: true})
			hidden()
			if tt.variant == "-nft" {
				listed := runIn(t, node, "iptables-nft", "-t", "nat", "-S")
				if len(s.Blocked) > 0 || s.Mode != IPTables || !strings.Contains(listed, "-j FLANNEL-POSTRTG\n") {
					t.Errorf("mode %s, blocked: %q, rules:\n%s", s.Mode, s.Blocked, listed)
				}
			} else {
				if len(s.Blocked) == 0 || !strings.HasPrefix(s.Blocked[0], tt.chain+" drops ") {
					t.Fatalf("blocked: %q", s.Blocked)
				}
				for _, reason := range s.Blocked {
					_, remedy, _ := strings.Cut(reason, "remedy: ")
					shell(t, node, remedy)
				}
				hidePrograms(t)
				if s = resync(t, node, m); len(s.Blocked) > 0 {
					t.Errorf("blocked after the remedy: %q", s.Blocked)
				}
			}
			if _, err := seenSource(far.NS, pod.NS, pod.Addr); err != nil {
				t.Errorf("to the pod: %v", err)
			}
		})
	}
}

// TestNetnsForwardDropsUnderConditions checks that rules that may accept pods' packets do not count
// as drops.
func TestNetnsForwardDropsUnderConditions(t *testing.T) {
	requirePrograms(t)
	for _, tt := range []struct{ name, rules string }{
		{"device", "nft add rule inet fw pass iifname flannel.1 accept"},
		{"set of devices", "nft add rule inet fw pass iifname { flannel.1, cni0 } accept"},
		{"larger prefix", "nft add rule inet fw pass ip saddr 10.0.0.0/8 accept; " +
			"nft add rule inet fw pass ip6 saddr fc00::/8 accept"},
		{"jump", "nft add chain inet fw pods; nft add rule inet fw pods meta mark 1 accept; " +
			"nft add rule inet fw pass jump pods"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ns, m := newNS(t), New(Options{})
			shell(t, ns, "nft add table inet fw; "+
				"nft 'add chain inet fw pass { type filter hook forward priority 0; policy drop; }'; "+tt.rules)
			s := set(t, ns, m, Desired{Nets: []Net{net4, net6}, Forward: true})
			if len(s.Blocked) > 0 {
				t.Errorf("blocked: %q", s.Blocked)
			}
		})
	}
}

// hidePrograms empties PATH until the test calls restore or ends.
func hidePrograms(t *testing.T) (restore func()) {
	t.Helper()
	before := os.Getenv("PATH")
	t.Setenv("PATH", t.TempDir())
	return func() { t.Setenv("PATH", before) }
}
