package doctor

import (
	"fmt"
	"slices"
	"strings"
)

func ipsecChecks() []check {
	return []check{
		{name: "charon-down", needs: []source{fromDaemon}, find: findCharonDown},
		{name: "ipsec-missing", needs: []source{fromDaemon}, find: findNoAssociation},
	}
}

func findCharonDown(f *Facts) []Finding {
	if f.Daemon.IPsec == nil || f.Daemon.IPsec.Error == "" {
		return nil
	}
	return []Finding{{
		Evidence: f.Daemon.IPsec.Error,
		Cause: "strongSwan's charon, which negotiates the keys, is missing, ends, or rejects its " +
			"settings: no new node is reached, and none within an hour",
		Remedy: "install charon with its plugins openssl and vici (Debian: strongswan-charon " +
			"strongswan-swanctl libstrongswan-standard-plugins); stop the host's own strongSwan service; correct ESPProposal",
	}}
}

// noAssociation precedes the reason why there is no security association with a node.
const noAssociation = "no IPsec security association: "

func findNoAssociation(f *Facts) []Finding {
	if f.Daemon.IPsec == nil || f.Daemon.IPsec.Error != "" {
		return nil
	}
	nodes := map[string][]string{} // by reason
	for _, n := range f.Daemon.Nodes {
		if reason, ok := strings.CutPrefix(n.Unreachable, noAssociation); ok {
			nodes[reason] = append(nodes[reason], n.Name)
		}
	}
	var out []Finding
	for reason, names := range nodes {
		remedy := "accept UDP ports 500 and 4500 and IP protocol 50 between the nodes; weft doctor there"
		if strings.Contains(reason, "PSK") || strings.Contains(reason, "ESPProposal") {
			remedy = "the same network config on all nodes, then restart the daemons that read an older one"
		}
		out = append(out, Finding{
			Evidence: fmt.Sprintf("no security association with %s", listed(unique(names))),
			Cause:    reason, Remedy: remedy,
		})
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.Cause, b.Cause) })
	return out
}
