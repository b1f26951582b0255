package netfilter

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// keepTracked returns want without the exemption from connection tracking if this host would then
// drop routers' messages that a tunnel packet is too big: they quote an untracked packet, so their
// state is INVALID rather than RELATED. Without them no larger packet passes, for as long as the
// path's MTU is smaller than the interface's.
func keepTracked(f family, want ruleset) (ruleset, []string) {
	if !hasVerdict(want.rules, verdictNoTrack) {
		return want, nil
	}
	dropping, err := findErrorDrop(f)
	switch {
	case err != nil:
		return want, []string{fmt.Sprintf("cannot inspect other programs' %s rules: %v", f, err)}
	case dropping == "":
		return want, nil
	}
	want.rules = withoutVerdict(want.rules, verdictNoTrack)
	return want, []string{"tunnel packets stay in connection tracking: " + dropping +
		errorsDropped}
}

// findErrorDrop returns the description of a chain that drops ICMP errors in state INVALID; empty
// if there is none.
func findErrorDrop(f family) (string, error) {
	const destinationUnreachable, packetTooBig = 3, 2 // RFC 792, RFC 4443
	p := tracedPacket{state: stateInvalid, protocol: unix.IPPROTO_ICMP, icmpType: destinationUnreachable}
	if f == ipv6 {
		p.protocol, p.icmpType = unix.IPPROTO_ICMPV6, packetTooBig
	}
	chains, err := nftChainsAt(f, nftables.ChainHookPrerouting, nftables.ChainHookInput)
	for _, at := range []struct {
		table, chain string
		hook         int
	}{
		{tableMangle, hookPrerouting, hookIndexPrerouting},
		{tableMangle, hookInput, hookIndexInput},
		{tableFilter, hookInput, hookIndexInput},
	} {
		legacy, legacyErr := legacyChainAt(f, at.table, at.chain, at.hook)
		chains, err = append(chains, legacy...), errors.Join(err, legacyErr)
	}
	for _, c := range chains {
		dropped, _, dropErr := c.drops(p)
		if err = errors.Join(err, dropErr); dropped {
			return c.name, nil
		}
	}
	return "", err
}
