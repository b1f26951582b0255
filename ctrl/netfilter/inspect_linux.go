package netfilter

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Hook is a place on a packet's way at which the kernel consults packet filters.
type Hook string

// The hooks of the values of [Packet.Hook].
const (
	HookPrerouting Hook = "prerouting" // arrived, before its route is known
	HookInput      Hook = "input"      // for this host
	HookForward    Hook = "forward"    // from one device to another
	HookOutput     Hook = "output"     // from this host
)

// Packet describes the first packet of a connection.
type Packet struct {
	Src, Dst netip.Addr
	Protocol uint8  // 0: any
	Port     uint16 // destination port of UDP and TCP; 0: any
	In, Out  string // devices; empty: not known, or none
}

// Verdict is the decision of one chain about a packet.
type Verdict struct {
	Chain string // for the operator: "nftables chain FORWARD of table ip filter"
	// Dropped is set if the chain drops the packet, Accepted if one of its rules accepts it. A
	// packet that is neither passes to the next chain.
	Dropped, Accepted bool
	// Certain is set unless the verdict depends on conditions that are not understood.
	Certain bool
	// Rule is the rule that decides, or may drop the packet: "rule 3 of DOCKER-USER". It is "the
	// policy" if no rule does.
	Rule string
	// Remedy is a command that accepts the packet in this chain; empty unless it is dropped.
	Remedy string
}

// String formats the verdict in one line.
func (v Verdict) String() string {
	action := "passes"
	switch {
	case v.Dropped && v.Certain:
		action = "drops it"
	case v.Dropped:
		action = "may drop it"
	case v.Accepted:
		action = "accepts it"
	}
	s := v.Chain + " " + action
	if v.Rule != "" {
		s += " (" + v.Rule + ")"
	}
	return s
}

// Trace returns the verdicts of all filter chains at a hook on a packet, in no order of priority:
// any chain that drops it decides. Address translation is not followed.
func Trace(hook Hook, p Packet) ([]Verdict, error) {
	f := familyOf(p.Src)
	chains, err := chainsAt(f, hook)
	traced := tracedPacket{src: hostPrefix(p.Src), dst: hostPrefix(p.Dst), state: stateNew,
		protocol: p.Protocol, port: p.Port, in: p.In, out: p.Out}
	var verdicts []Verdict
	for _, c := range chains {
		v, traceErr := c.verdict(traced)
		if err = errors.Join(err, traceErr); traceErr == nil {
			verdicts = append(verdicts, v)
		}
	}
	return verdicts, err
}

// TablesBelowIP names the nftables tables of the families bridge and netdev that have chains at a
// hook: they see packets, but Trace does not examine them. It returns none in a kernel without
// nftables.
func TablesBelowIP() ([]string, error) {
	conn, err := dialNFT()
	if err != nil {
		return nil, err
	}
	families := map[nftables.TableFamily]string{nftables.TableFamilyBridge: "bridge",
		nftables.TableFamilyNetdev: "netdev"}
	var names []string
	for family, word := range families {
		chains, err := conn.ListChainsOfTableFamily(family)
		if isNFTUnsupported(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, c := range chains {
			if c.Hooknum != nil {
				names = append(names, word+" "+c.Table.Name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// chainsAt returns the chains of type filter at a hook, of nftables and of legacy iptables.
func chainsAt(f family, hook Hook) ([]describedChain, error) {
	at := map[Hook]struct {
		nft    *nftables.ChainHook
		legacy int
		tables []string
	}{
		HookPrerouting: {nftables.ChainHookPrerouting, hookIndexPrerouting, []string{tableRaw, tableMangle}},
		HookInput:      {nftables.ChainHookInput, hookIndexInput, []string{tableMangle, tableFilter}},
		HookForward:    {nftables.ChainHookForward, hookIndexForward, []string{tableMangle, tableFilter}},
		HookOutput:     {nftables.ChainHookOutput, hookIndexOutput, []string{tableRaw, tableMangle, tableFilter}},
	}[hook]
	chains, err := nftChainsAt(f, at.nft)
	for _, table := range at.tables {
		legacy, legacyErr := legacyChainAt(f, table, strings.ToUpper(string(hook)), at.legacy)
		chains, err = append(chains, legacy...), errors.Join(err, legacyErr)
	}
	return chains, err
}

// verdict returns the chain's decision about a packet between two hosts.
func (c describedChain) verdict(p tracedPacket) (Verdict, error) {
	t := trace{packet: p, rules: c.rules}
	f := t.follow(c.tracedChain.name, true)
	v := Verdict{Chain: c.name, Accepted: f == fateAccepted, Certain: !t.maybeAccepted}
	switch {
	case t.err != nil:
		return Verdict{}, t.err
	case f == fateDropped:
		v.Dropped = true
	case f == fatePasses && c.dropsByDefault:
		v.Dropped, v.Rule = true, "the policy"
	case t.maybeDropped != place{}:
		v.Dropped, v.Certain, t.decided = true, false, t.maybeDropped
	}
	if t.decided != (place{}) {
		v.Rule = c.describe(t.decided)
	}
	if v.Dropped {
		v.Remedy = c.accept + " " + fmt.Sprintf(c.match, "s", p.src)
	}
	return v, nil
}

// describe names a rule. Chains of legacy iptables other than the built-in ones have no names here,
// only offsets.
func (c describedChain) describe(p place) string {
	switch {
	case p.chain == c.tracedChain.name:
		return fmt.Sprintf("rule %d", p.number)
	case strings.HasPrefix(p.chain, "+"):
		return fmt.Sprintf("rule %d of a chain that it jumps to", p.number)
	}
	return fmt.Sprintf("rule %d of %s", p.number, p.chain)
}

// Conflicts are the effects of other programs' rules on a node's pods, besides those of single
// packets.
type Conflicts struct {
	// Blocked lists the chains that certainly drop forwarded packets of pods, with the remedy;
	// Doubtful those that may accept them under a condition that is not understood.
	Blocked, Doubtful []string
	// ICMPErrors names a chain that drops ICMP errors in state INVALID, as those about untracked
	// packets are; empty if there is none.
	ICMPErrors string
	// Masquerades lists nat chains that rewrite the sources of packets between pods of two nodes.
	// Weft's guard undoes them while it is in place.
	Masquerades []string
	// Chains holds the names of all chains.
	Chains []string
	// Translates is set if a rule rewrites the destinations of packets, as those of Services do.
	Translates bool
	// NoTrack is set if tunnel packets of the network bypass connection tracking.
	NoTrack bool
}

// Inspect reads the packet filter rules of this host, which it does not change, and returns their
// effects on the pods of a network. Rules of Weft and flannel do not count as another program's.
// Masquerades, Chains and NoTrack of legacy iptables take its programs.
func Inspect(n Net) (Conflicts, error) {
	f := familyOf(n.Network.Addr())
	found, err := findForwardDrops(f, []Net{n})
	c := Conflicts{Blocked: found.certain, Doubtful: found.likely}
	var more error
	c.ICMPErrors, more = findErrorDrop(f)
	return c, errors.Join(err, more, c.readNFT(f, n), c.readLegacy(context.Background(), f, n))
}

// readNFT adds the results that need the rules of nftables.
func (c *Conflicts) readNFT(f family, n Net) error {
	conn, err := dialNFT()
	if err != nil {
		return err
	}
	chains, err := conn.ListChainsOfTableFamily(nftFamily(f))
	if isNFTUnsupported(err) {
		return nil
	}
	fr := foreignRules{family: f, nets: []Net{n}}
	for _, chain := range chains {
		c.Chains = append(c.Chains, chain.Name)
		if chain.Hooknum == nil {
			continue
		}
		if *chain.Hooknum == *nftables.ChainHookPrerouting {
			untracks, chainErr := hasNoTrack(conn, chain)
			c.NoTrack, err = c.NoTrack || untracks, errors.Join(err, chainErr)
			translates, chainErr := translatesDestinations(conn, chain)
			c.Translates, err = c.Translates || translates, errors.Join(err, chainErr)
		}
		if chain.Table.Name == tableName(f) {
			continue
		}
		rewrites, chainErr := fr.rewritesPodSource(conn, chain)
		if err = errors.Join(err, chainErr); rewrites {
			c.Masquerades = append(c.Masquerades, describeChain(chain))
		}
	}
	slices.Sort(c.Chains)
	return err
}

// hasNoTrack reports whether a rule of a chain exempts packets from connection tracking.
func hasNoTrack(conn *nftables.Conn, chain *nftables.Chain) (bool, error) {
	rules, err := conn.GetRules(chain.Table, chain)
	return slices.ContainsFunc(rules, func(r *nftables.Rule) bool {
		return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
			target, ok := e.(*expr.Target)
			_, native := e.(*expr.Notrack)
			return native || ok && (target.Name == "CT" || target.Name == "NOTRACK")
		})
	}), err
}

// translatesDestinations reports whether a rule of a chain of type nat itself rewrites
// destinations.
func translatesDestinations(conn *nftables.Conn, chain *nftables.Chain) (bool, error) {
	if chain.Type != nftables.ChainTypeNAT {
		return false, nil
	}
	rules, err := conn.GetRules(chain.Table, chain)
	return slices.ContainsFunc(rules, func(r *nftables.Rule) bool {
		return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
			target, ok := e.(*expr.Target)
			_, redirects := e.(*expr.Redir)
			nat, isNAT := e.(*expr.NAT)
			return redirects || isNAT && nat.Type == expr.NATTypeDestNAT ||
				ok && rewritesDestination(target.Name)
		})
	}), err
}

// rewritesDestination reports whether an xtables target changes the destination of packets.
func rewritesDestination(target string) bool { return target == "DNAT" || target == "REDIRECT" }

// Differences compares the rules for masquerading and forwarding in the tables of iptables with the
// wanted ones: those that are missing, duplicate, out of order or behind a rule that bypasses them.
// It changes nothing. found is false if these tables hold no rules of Weft or flannel, as nftables
// or nothing carries them. Of the two variants of iptables, the one that holds such rules counts.
func Differences(d Desired) (changes []string, found bool, err error) {
	for _, f := range families() {
		if len(netsOf(f, d.Nets)) == 0 {
			continue
		}
		more, foundHere, nftErr := variantDifferences(netlinkTables{f}, d, f)
		if p := legacyPrograms(context.Background(), f); p != nil && !foundHere {
			legacy, foundLegacy, legacyErr := variantDifferences(p, d, f)
			if nftErr = errors.Join(nftErr, legacyErr); foundLegacy {
				more, foundHere = legacy, true
			}
		}
		changes, found, err = append(changes, more...), found || foundHere, errors.Join(err, nftErr)
	}
	return changes, found, err
}

// variantDifferences is Differences for the tables of one variant of iptables in one family.
func variantDifferences(t tables, d Desired, f family) (changes []string, found bool, err error) {
	for _, l := range layouts() {
		if l.table != tableNAT && l.table != tableFilter || !t.has(l.table) {
			continue
		}
		have, listErr := listChains(t, l)
		if listErr != nil {
			err = errors.Join(err, fmt.Errorf("table %s: %w", l.table, listErr))
			continue
		}
		changes = append(changes, differencesOf(l, d, f, have)...)
		found = found || have.managed(l)
	}
	return changes, found, err
}

// differencesOf returns the changes that a table needs, with or without random ports, which not all
// versions of iptables have.
func differencesOf(l layout, d Desired, f family, have listing) []string {
	var fewest []string
	for i, noRandom := range []bool{false, true} {
		d.NoRandomPorts = noRandom
		want := d.rulesets(nil)[f]
		want.rules = forIPTables(l.table, want.rules)
		want.rules, _ = neededRules(l, want, have)
		if _, changes := plan(l, want, have); i == 0 || len(changes) < len(fewest) {
			fewest = changes
		}
	}
	return fewest
}

// managed reports whether a listing holds rules of Weft or flannel.
func (have listing) managed(l layout) bool {
	for _, lines := range have {
		if slices.ContainsFunc(parseChain(l.table, lines), func(p parsedRule) bool {
			return isManaged(l, p)
		}) {
			return true
		}
	}
	return false
}
