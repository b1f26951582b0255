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

// subnetFile is subnet.env on disk.
type subnetFile struct {
	path    string
	written subnetenv.File // zero: not yet
	err     error          // of the last attempt to write

	previous subnetenv.File // content at the start
	// abandoned lists networks in previous that are no longer in use, until their state is removed.
	abandoned []netip.Prefix
}

// sync writes the file unless wanted is its content already. A file that was removed is written
// again. It reports whether abandoned networks were given up: once the file no longer lists them,
// they may belong to another daemon.
func (f *subnetFile) sync(wanted subnetenv.File, log *slog.Logger) (gaveUp bool) {
	if wanted == f.written {
		if _, err := os.Stat(f.path); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
		if f.err == nil {
			log.Warn("subnet file was removed, writing it again", "file", f.path)
		}
	}
	err := wanted.Write(f.path)
	switch {
	case err == nil:
		f.written = wanted
		log.Info("subnet file is up to date", "file", f.path)
		gaveUp = len(f.abandoned) > 0
		f.abandoned = nil
	case f.err == nil: // log once only: each error names another temporary file
		log.Error("cannot write the subnet file, retrying", "err", err)
	}
	f.err = err
	return gaveUp
}

// readSubnetFile returns the content of the subnet file of the previous run, so that the same
// subnet is claimed again. A missing file and one that cannot be parsed count as empty; the latter
// is logged.
func readSubnetFile(path string, log *slog.Logger) subnetenv.File {
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
		log.Warn("ignoring invalid value in the previous subnet file",
			"variable", v.Variable, "value", v.Value)
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
