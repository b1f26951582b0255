package netfilter

import (
	"net/netip"
	"slices"
)

// Connection states of a packet, as bits. The kernel numbers them alike in nftables (enum
// nft_ct_keys NFT_CT_STATE) and in xtables (XT_CONNTRACK_STATE_BIT).
const (
	stateInvalid uint32 = 1
	stateNew     uint32 = 8
)

// tracedPacket describes the packets whose fate in other programs' chains is of interest.
type tracedPacket struct {
	src, dst netip.Prefix // invalid: any address
	state    uint32       // connection state
	protocol uint8        // 0: any protocol
	icmpType uint8        // if protocol is ICMP
}

// filterAction is the action of a filterRule.
type filterAction uint8

const (
	actionContinue filterAction = iota
	actionAccept
	actionDrop // REJECT too
	actionReturn
	actionJump
	actionGoto
)

// filterRule is a rule of any program, reduced to the parts that decide the fate of a packet.
type filterRule struct {
	src, dst  addrMatch
	protocol  uint8   // 0: any
	icmpTypes []uint8 // nil: any
	states    uint32  // connection states; 0: any
	never     bool    // a condition that no traced packet meets
	unknown   bool    // conditions that may or may not be met
	action    filterAction
	to        string // target of a jump
}

// certainty is the degree to which a packet meets a condition.
type certainty uint8

const (
	no certainty = iota
	maybe
	yes
)

// matches reports whether p meets the conditions of r.
func (p tracedPacket) matches(r filterRule) certainty {
	c := yes
	if r.unknown {
		c = maybe
	}
	for _, b := range []certainty{
		matchesAddr(r.src, p.src), matchesAddr(r.dst, p.dst), p.matchesProtocol(r),
	} {
		c = min(c, b)
	}
	if r.never || r.states != 0 && r.states&p.state == 0 {
		return no
	}
	return c
}

func (p tracedPacket) matchesProtocol(r filterRule) certainty {
	switch {
	case r.protocol == 0 && r.icmpTypes == nil:
		return yes
	case p.protocol == 0:
		return maybe
	case r.protocol != 0 && r.protocol != p.protocol:
		return no
	case r.icmpTypes != nil && !slices.Contains(r.icmpTypes, p.icmpType):
		return no
	}
	return yes
}

func matchesAddr(m addrMatch, p netip.Prefix) certainty {
	switch {
	case !m.prefix.IsValid():
		return yes
	case !p.IsValid():
		return maybe
	case !m.overlaps(p):
		return no
	case !m.not && contains(m.prefix, p), m.not && !m.prefix.Overlaps(p):
		return yes
	}
	return maybe
}

// fate is the result of a trace.
type fate uint8

const (
	fatePasses fate = iota // reaches the end of the chain
	fateAccepted
	fateDropped
)

// maxTraceSteps limits the number of chains that one trace reads.
const maxTraceSteps = 200

// trace follows a packet through the chains of one table.
type trace struct {
	packet tracedPacket
	rules  func(chain string) ([]filterRule, error)

	steps int
	// maybeAccepted is set if a rule that accepts the packet under unknown conditions precedes the
	// end of the trace.
	maybeAccepted bool
	err           error // first error of rules, which ends the trace
}

// follow returns the certain fate of the packet in a chain. If the packet reaches the chain only
// under unknown conditions (certain is false), its fate there is never certain.
func (t *trace) follow(chain string, certain bool) fate {
	if t.steps++; t.steps > maxTraceSteps || t.err != nil {
		return fatePasses
	}
	rules, err := t.rules(chain)
	if err != nil {
		t.err = err
		return fatePasses
	}
	for _, r := range rules {
		match := t.packet.matches(r)
		if match == no || r.action == actionContinue {
			continue
		}
		sure := certain && match == yes
		switch r.action {
		case actionAccept:
			if sure {
				return fateAccepted
			}
			t.maybeAccepted = true
		case actionDrop:
			if sure {
				return fateDropped
			}
		case actionJump, actionGoto:
			if f := t.follow(r.to, sure); f != fatePasses {
				return f
			}
		}
		if r.action == actionReturn || r.action == actionGoto {
			if match == yes {
				return fatePasses
			}
			certain = false
		}
	}
	return fatePasses
}

// tracedChain is a base chain, or a built-in chain of legacy iptables.
type tracedChain struct {
	name           string // base chain
	dropsByDefault bool
	rules          func(chain string) ([]filterRule, error)
}

// drops reports whether the chain drops the packet. sure is false if a rule that may accept the
// packet precedes.
func (c tracedChain) drops(p tracedPacket) (dropped, sure bool, err error) {
	t := trace{packet: p, rules: c.rules}
	f := t.follow(c.name, true)
	if t.err != nil {
		return false, false, t.err
	}
	dropped = f == fateDropped || f == fatePasses && c.dropsByDefault
	return dropped, !t.maybeAccepted, nil
}
