package netfilter

import (
	"context"
	"strings"
)

// usage is the extent to which a host uses one variant of iptables.
type usage struct {
	kubelet bool // has a chain of the kubelet, which uses the host's variant
	rules   int  // number of rules and policies that other programs set, in both families
}

// hostVariants returns the suffixes of the programs' names in the order in which they are tried,
// beginning with the variant that the host uses. The choice is that of the script iptables-wrappers
// in flannel's image, which cannot trust the name without a suffix either, since that is the choice
// of the image and not of the host.
func hostVariants(ctx context.Context) []string {
	return orderVariants(variantUsage(ctx, "-nft"), variantUsage(ctx, "-legacy"))
}

// orderVariants implements hostVariants. If the host uses none, the name without a suffix is first.
func orderVariants(nft, legacy usage) []string {
	switch {
	case nft.kubelet || !legacy.kubelet && nft.rules > legacy.rules:
		return []string{"-nft", "", "-legacy"}
	case legacy.kubelet || legacy.rules > nft.rules:
		return []string{"-legacy", "", "-nft"}
	}
	return []string{"", "-nft", "-legacy"}
}

// variantUsage counts the rules of a variant. It has none if the program does not exist or fails.
func variantUsage(ctx context.Context, variant string) usage {
	var u usage
	for _, f := range families() {
		p, err := findPrograms(ctx, f, variant)
		if err != nil {
			continue
		}
		saved, err := p.run(ctx, p.program+"-save", "")
		if err != nil {
			continue
		}
		u.add(saved)
	}
	return u
}

// add counts the lines of iptables-save. The rules of Weft and flannel do not count, or the first
// choice would hold forever.
func (u *usage) add(saved string) {
	for line := range strings.Lines(saved) {
		chain, isChain := strings.CutPrefix(line, ":")
		policy, _, _ := strings.Cut(chain, " [")
		switch {
		case isChain && (strings.HasPrefix(chain, "KUBE-IPTABLES-HINT ") ||
			strings.HasPrefix(chain, "KUBE-KUBELET-CANARY ")):
			u.kubelet = true
		case isChain && strings.HasSuffix(policy, " DROP"):
			u.rules++
		case strings.HasPrefix(line, "-") && !hasManagedName(line):
			u.rules++
		}
	}
}

// hasManagedName reports whether a line of iptables-save names an own chain or has an own comment.
func hasManagedName(line string) bool {
	for _, name := range []string{chainMasquerade, chainForward, chainKeepSource, `"flanneld `, `"weft `} {
		if strings.Contains(line, name) {
			return true
		}
	}
	return false
}
