package netfilter

import "fmt"

// choose opens nftables if that is asked for, else iptables, and nftables where iptables does not work. It never returns
// more than one; the error is ErrUnsupported with the reasons.
func choose(nftables bool, byIPTables, byNFTables func() (applier, error)) (applier, error) {
	if nftables {
		a, err := byNFTables()
		if err != nil {
			return nil, fmt.Errorf("%w: EnableNFTables is set, but %w", ErrUnsupported, err)
		}
		return a, nil
	}
	a, noIPTables := byIPTables()
	if noIPTables == nil {
		return a, nil
	}
	a, noNFTables := byNFTables()
	if noNFTables == nil {
		return a, nil
	}
	return nil, fmt.Errorf("%w: %w; %w", ErrUnsupported, noIPTables, noNFTables)
}
