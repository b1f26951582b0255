package netfilter

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// drops is the result of looking for chains that drop packets whatever the rules of this package
// are: an accept in one base chain does not undo a drop in another.
type drops struct {
	certain []string // descriptions with the remedy
	likely  []string // the same for chains that may accept the packets under some condition
}

// reportForwardDrops reports the chains that drop forwarded packets of pods. Where this daemon does
// not accept them, rules of others may.
func reportForwardDrops(f family, want ruleset) report {
	found, err := findForwardDrops(f, want.nets)
	r := report{blocked: found.certain, notes: found.likely}
	if err != nil {
		r.notes = append(r.notes, fmt.Sprintf("cannot inspect other programs' %s rules: %v", f, err))
	}
	return r
}

// findForwardDrops looks for chains that drop forwarded packets of pods, in all nftables tables,
// which include those of iptables-nft, and in legacy iptables.
func findForwardDrops(f family, nets []Net) (drops, error) {
	var found drops
	nft, err := nftChainsAt(f, nftables.ChainHookForward)
	legacy, legacyErr := legacyChainAt(f, tableFilter, hookForward, hookIndexForward)
	for _, c := range append(nft, legacy...) {
		for _, n := range netsOf(f, nets) {
			dropped, sure, dropErr := dropsPods(c.tracedChain, n)
			err = errors.Join(err, dropErr)
			switch text := c.name + " drops " + c.remedy(n.Network.Masked()); {
			case dropped && sure:
				found.certain = append(found.certain, text)
			case dropped:
				found.likely = append(found.likely, text)
			}
		}
	}
	return found, errors.Join(err, legacyErr)
}

// dropsPods reports whether a chain drops new connections from pods of other nodes to pods of this
// node, or in the other direction.
func dropsPods(c tracedChain, n Net) (dropped, sure bool, err error) {
	network, subnet := n.Network.Masked(), n.Subnet.Masked()
	for _, p := range []tracedPacket{
		{src: network, dst: subnet, state: stateNew},
		{src: subnet, dst: network, state: stateNew},
	} {
		d, s, err := c.drops(p)
		if err != nil {
			return false, false, err
		}
		dropped, sure = dropped || d, sure || d && s
	}
	return dropped, sure, nil
}

// describedChain is a chain with its names for the operator.
type describedChain struct {
	tracedChain
	name   string
	accept string // command that inserts a rule, up to its conditions
	match  string // format of the conditions and the verdict, for "s" or "d" and a prefix
	// afterTracking is set if packets meet connection tracking before the chain.
	afterTracking bool
}

// remedy describes the dropped packets and the commands that accept them.
func (c describedChain) remedy(network netip.Prefix) string {
	command := func(direction string) string {
		return c.accept + " " + fmt.Sprintf(c.match, direction, network)
	}
	return fmt.Sprintf("forwarded packets of %v, which rules elsewhere cannot accept; remedy: %s; %s",
		network, command("s"), command("d"))
}

// nftChainsAt returns the base chains of nftables at some hooks, none in a kernel without nftables.
func nftChainsAt(f family, hooks ...*nftables.ChainHook) ([]describedChain, error) {
	conn, err := dialNFT()
	if err != nil {
		return nil, err
	}
	reader := nftReader{family: f, conn: conn}
	chains, err := reader.chainsAt(hooks...)
	if isNFTUnsupported(err) {
		return nil, nil
	}
	ip := "ip"
	if f == ipv6 {
		ip = "ip6"
	}
	var all []describedChain
	for _, c := range chains {
		place := familyName(c.Table.Family) + " " + c.Table.Name
		all = append(all, describedChain{
			tracedChain: reader.traced(c),
			name:        fmt.Sprintf("nftables chain %s of table %s", c.Name, place),
			accept:      fmt.Sprintf("nft insert rule %s %s", place, c.Name),
			match:       ip + " %saddr %v accept",
			// NF_IP_PRI_CONNTRACK in linux/netfilter_ipv4.h
			afterTracking: c.Priority != nil && *c.Priority >= *nftables.ChainPriorityConntrack,
		})
	}
	return all, err
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	}
	return "inet"
}

// legacyChainAt returns a built-in chain of legacy iptables; none if the kernel does not have the
// table or does not let this process read it.
func legacyChainAt(f family, table, chain string, hookIndex int) ([]describedChain, error) {
	t, err := readLegacyTable(f, table)
	if err != nil || t == nil {
		if errors.Is(err, unix.EPERM) {
			err = nil
		}
		return nil, err
	}
	c, err := t.traced(chain, hookIndex)
	if err != nil {
		return nil, err
	}
	program := "iptables-legacy"
	if f == ipv6 {
		program = "ip6tables-legacy"
	}
	return []describedChain{{
		tracedChain: c,
		name:        fmt.Sprintf("%s chain %s of table %s", program, chain, table),
		accept:      fmt.Sprintf("%s -t %s -I %s", program, table, chain),
		match:       "-%s %v -j ACCEPT",
	}}, nil
}
