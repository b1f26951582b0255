package netfilter

import (
	"net/netip"
	"slices"
	"strings"
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
	port     uint16       // destination port; 0: any
	in, out  string       // devices; empty: any that other nodes or the router may use
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
	protocol  uint8       // 0: any
	icmpTypes []uint8     // nil: any
	ports     []portRange // destination ports; nil: any
	in, out   deviceMatch
	states    uint32 // connection states; 0: any
	never     bool   // a condition that no traced packet meets
	unknown   bool   // conditions that may or may not be met
	tracking  tracking
	action    filterAction
	to        string // target of a jump
	number    int    // position in its chain, from 1
}

// tracking is an effect of a rule on the connection tracking of a packet.
type tracking struct {
	untracks bool
	zone     uint16 // 0: the default zone
}

// portRange is a range of ports, both ends included.
type portRange struct{ first, last uint16 }

// deviceMatch matches a device. A name that ends in + matches every device that begins with the
// rest, as in iptables. The zero value matches every device.
type deviceMatch struct {
	name string
	not  bool
	// never is set for a device by which no packet from another node or from the router comes.
	never bool
}

// matches reports the certainty that a packet passes the device dev, or a device that is not known
// if dev is empty.
func (m deviceMatch) matches(dev string) certainty {
	prefix, wildcard := strings.CutSuffix(m.name, "+")
	switch {
	case m.name == "":
		return yes
	case dev == "" && m.never && !m.not:
		return no
	case dev == "":
		return maybe
	case (m.name == dev || wildcard && strings.HasPrefix(dev, prefix)) != m.not:
		return yes
	}
	return no
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
		p.matchesPort(r), r.in.matches(p.in), r.out.matches(p.out),
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

func (p tracedPacket) matchesPort(r filterRule) certainty {
	switch {
	case r.ports == nil:
		return yes
	case p.port == 0:
		return maybe
	case slices.ContainsFunc(r.ports, func(x portRange) bool {
		return x.first <= p.port && p.port <= x.last
	}):
		return yes
	}
	return no
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

// place is the position of a rule.
type place struct {
	chain  string
	number int // from 1
}

// trace follows a packet through the chains of one table.
type trace struct {
	packet tracedPacket
	rules  func(chain string) ([]filterRule, error)

	steps int
	// maybeAccepted is set if a rule that accepts the packet under unknown conditions precedes the
	// end of the trace.
	maybeAccepted bool
	// decided is the rule that decided the fate; empty if no rule did.
	decided place
	// maybeDropped is the first rule that drops the packet under unknown conditions.
	maybeDropped place
	// tracking is the effect of the first rule that certainly has one, at trackedBy.
	tracking  tracking
	trackedBy place
	err       error // first error of rules, which ends the trace
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
		if match == yes && certain && t.tracking == (tracking{}) && r.tracking != t.tracking {
			t.tracking, t.trackedBy = r.tracking, place{chain, r.number}
		}
		if match == no || r.action == actionContinue {
			continue
		}
		sure := certain && match == yes
		switch r.action {
		case actionAccept:
			if sure {
				t.decided = place{chain, r.number}
				return fateAccepted
			}
			t.maybeAccepted = true
		case actionDrop:
			if sure {
				t.decided = place{chain, r.number}
				return fateDropped
			}
			if t.maybeDropped == (place{}) {
				t.maybeDropped = place{chain, r.number}
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
