package agent

import (
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"

	"weft/lease/subnetenv"
)

// readPreviousSubnets returns the networks and subnets in the subnet file of the previous run, so
// that the same subnet is claimed again. A file that is missing or cannot be parsed counts as
// empty; the latter is logged.
func readPreviousSubnets(path string, log *slog.Logger) subnetenv.File {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return subnetenv.File{}
	}
	if err != nil {
		log.Warn("cannot read the previous subnet", "err", err)
		return subnetenv.File{}
	}
	f, invalid, err := subnetenv.Parse(text)
	if err != nil {
		log.Warn("cannot read the previous subnet", "file", path, "err", err)
	}
	for _, v := range invalid {
		log.Warn("ignoring invalid value in the previous subnet file", "variable", v.Variable, "value", v.Value)
	}
	return f
}

// prefixes returns the networks and subnets of both families; zero for a disabled family.
func prefixes(f subnetenv.File) []netip.Prefix {
	return []netip.Prefix{f.Network, f.Subnet.Masked(), f.Network6, f.Subnet6.Masked()}
}

// abandonedNetworks returns the networks of the previous run that no current network overlaps. The
// state of the others is in use.
func abandonedNetworks(previous subnetenv.File, current []netip.Prefix) []netip.Prefix {
	var abandoned []netip.Prefix
	for _, p := range []netip.Prefix{previous.Network, previous.Network6} {
		if p.IsValid() && !slices.ContainsFunc(current, p.Overlaps) {
			abandoned = append(abandoned, p)
		}
	}
	return abandoned
}
