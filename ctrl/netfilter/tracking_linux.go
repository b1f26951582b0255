package netfilter

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
)

// targetTracking decodes the effect of an xtables target: struct xt_ct_target_info, whose flags are
// in linux/netfilter/xt_CT.h.
func targetTracking(name string, info []byte) tracking {
	const noTrack, zoneOriginal, zoneReply, zoneFromMark = 1, 4, 8, 16
	switch {
	case name == "NOTRACK":
		return tracking{untracks: true}
	case name != "CT" || len(info) < 4:
		return tracking{}
	}
	flags, zone := binaryutil.NativeEndian.Uint16(info), binaryutil.NativeEndian.Uint16(info[2:])
	if flags&(zoneOriginal|zoneReply|zoneFromMark) != 0 {
		zone = 0 // of one direction, or not known
	}
	return tracking{untracks: flags&noTrack != 0, zone: zone}
}

// Tracking is the effect of packet filter rules on the connection tracking of a packet.
type Tracking struct {
	// Untracked is set if a rule exempts the packet from connection tracking.
	Untracked bool
	Zone      int    // of connection tracking; 0 is the default
	Rule      string // that has this effect; empty without one
	Remedy    string // a command that deletes or shows the rule
}

// TraceTracking returns the effect of the rules on a packet that arrives, before it meets
// connection tracking. Conditions that are not understood count as not met.
func TraceTracking(p Packet) (Tracking, error) {
	f := familyOf(p.Src)
	chains, err := nftChainsAt(f, nftables.ChainHookPrerouting)
	legacy, legacyErr := legacyChainAt(f, tableRaw, strings.ToUpper(string(HookPrerouting)), hookIndexPrerouting)
	err = errors.Join(err, legacyErr)
	traced := tracedPacket{src: hostPrefix(p.Src), dst: hostPrefix(p.Dst), state: stateNew,
		protocol: p.Protocol, port: p.Port, in: p.In}
	for _, c := range append(chains, legacy...) {
		if c.afterTracking {
			continue
		}
		t := trace{packet: traced, rules: c.rules}
		t.follow(c.tracedChain.name, true)
		if err = errors.Join(err, t.err); t.tracking != (tracking{}) {
			return Tracking{Untracked: t.tracking.untracks, Zone: int(t.tracking.zone),
				Rule:   c.describe(t.trackedBy) + " of " + c.name,
				Remedy: c.deletion(t.trackedBy, f)}, err
		}
	}
	return Tracking{}, err
}

// deletion returns the command that deletes a rule, or shows its handle.
func (c describedChain) deletion(at place, f family) string {
	program := "iptables"
	if f == ipv6 {
		program = "ip6tables"
	}
	if strings.Contains(c.name, "-legacy chain") {
		program += "-legacy"
	}
	switch _, isRaw := strings.CutSuffix(c.name, " "+tableRaw); {
	case isRaw && !strings.HasPrefix(at.chain, "+"):
		return fmt.Sprintf("%s -t raw -D %s %d", program, at.chain, at.number)
	case isRaw:
		return program + " -t raw -S"
	}
	_, table, _ := strings.Cut(c.name, " of table ")
	return fmt.Sprintf("nft -a list table %s; nft delete rule %s %s handle ...", table, table, at.chain)
}
