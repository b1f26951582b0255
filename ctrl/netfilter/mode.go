package netfilter

import (
	"errors"
	"fmt"
)

// ErrUnsupported reports that rules are wanted, but this host has neither a working iptables nor a
// working nftables.
var ErrUnsupported = errors.New("no usable packet filter")

// Mode is the mechanism that carries the rules. The zero value means that no rules were applied
// yet.
type Mode string

// The values of Mode.
const (
	IPTables Mode = "iptables"
	NFTables Mode = "nftables"
)

// choose opens nftables if nftables is true. Otherwise it opens iptables and falls back to
// nftables. It never returns more than one applier. Its errors wrap ErrUnsupported and the causes.
func choose(nftables bool, openIPTables, openNFTables func() (applier, error)) (applier, error) {
	if nftables {
		a, err := openNFTables()
		if err != nil {
			return nil, fmt.Errorf("%w: EnableNFTables is set: %w", ErrUnsupported, err)
		}
		return a, nil
	}
	a, iptablesErr := openIPTables()
	if iptablesErr == nil {
		return a, nil
	}
	a, nftablesErr := openNFTables()
	if nftablesErr == nil {
		return a, nil
	}
	return nil, fmt.Errorf("%w: %w; %w", ErrUnsupported, iptablesErr, nftablesErr)
}
