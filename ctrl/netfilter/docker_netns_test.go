package netfilter

import (
	"strings"
	"testing"
)

// dockerRules28 are the rules of dockerd 28 for its default bridge, in the order it adds them.
func dockerRules28() []string {
	return []string{"-P FORWARD DROP", "-N DOCKER", "-N DOCKER-FORWARD", "-N DOCKER-USER",
		"-I FORWARD -j DOCKER-FORWARD", "-I FORWARD -j DOCKER-USER", "-A DOCKER-FORWARD -o docker0 -j DOCKER",
		"-A DOCKER-FORWARD -i docker0 -j ACCEPT", "-A DOCKER ! -i docker0 -o docker0 -j DROP"}
}

// TestNetnsDockerUser checks that the accepts are in DOCKER-USER while that chain exists, in front
// of a rule that ends it.
func TestNetnsDockerUser(t *testing.T) {
	for _, fw := range iptablesFirewalls() {
		t.Run(fw.name, func(t *testing.T) {
			fw.require(t)
			ns, m := newNS(t), fw.manager()
			iptables := func(rule string) {
				t.Helper()
				runIn(t, ns, fw.program(ipv4), strings.Fields(rule)...)
			}
			check := func(when, want string) {
				t.Helper()
				s := resync(t, ns, m)
				var got strings.Builder
				got.WriteByte('\n')
				for line := range strings.Lines(fw.sorted(fw.listRules(t, ns, ipv4))) {
					if strings.Contains(line, "DOCKER-USER ") || strings.Contains(line, "WEFT-DOCKER ") {
						got.WriteString(line)
					}
				}
				if got.String() != want {
					t.Errorf("%s: got%s\nwant%s", when, &got, want)
				}
				if len(s.Blocked) > 0 {
					t.Errorf("%s: blocked: %q", when, s.Blocked)
				}
			}
			set(t, ns, m, allRules())
			check("without dockerd", "\n")
			for _, rule := range dockerRules28() {
				iptables(rule)
			}
			check("with dockerd", docker4)
			iptables("-F DOCKER-USER")
			iptables("-A DOCKER-USER -i eth9 -j DROP")
			iptables("-A DOCKER-USER -j RETURN") // as dockerd before 28
			user := strings.Replace(docker4, "filter -A WEFT", "filter -A DOCKER-USER -j RETURN\nfilter -A WEFT", 1)
			check("with rules of others", "\nfilter -A DOCKER-USER -i eth9 -j DROP"+user)
			before := fw.listRules(t, ns, ipv4)
			for _, rule := range dockerRules28() { // a restart; the chains exist
				if strings.HasPrefix(rule, "-I") {
					iptables(strings.Replace(rule, "-I", "-D", 1))
					iptables(rule)
				}
			}
			resync(t, ns, m)
			if got := fw.listRules(t, ns, ipv4); got != before {
				t.Errorf("after a restart of dockerd: got%s\nwant%s", got, before)
			}
			d := allRules()
			d.Forward = false
			set(t, ns, m, d)
			check("without accepts", "\nfilter -A DOCKER-USER -i eth9 -j DROP\nfilter -A DOCKER-USER -j RETURN\n")
			set(t, ns, m, allRules())
			iptables("-F DOCKER-USER")
			iptables("-D FORWARD -j DOCKER-USER")
			iptables("-X DOCKER-USER")
			check("without the chain", "\n")
		})
	}
}
