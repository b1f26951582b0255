package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/joho/godotenv"
)

// subnetEnv is the content of subnet.env, the file that CNI plugins and Docker
// helpers read the node's subnet from. Its lines and their order are flannel's.
type subnetEnv struct {
	network, network6 netip.Prefix // invalid for a family that is off
	subnet, subnet6   netip.Prefix
	mtu               int // bytes, of the pods' devices
	ipMasq            bool
}

// bytes returns the file's content.
func (e subnetEnv) bytes() []byte {
	var b bytes.Buffer
	for _, f := range []struct {
		family          string
		network, subnet netip.Prefix
	}{{"", e.network, e.subnet}, {"IPV6_", e.network6, e.subnet6}} {
		if f.network.IsValid() && f.subnet.IsValid() {
			fmt.Fprintf(&b, "FLANNEL_%sNETWORK=%s\n", f.family, f.network)
			fmt.Fprintf(&b, "FLANNEL_%sSUBNET=%s\n", f.family, firstHost(f.subnet))
		}
	}
	fmt.Fprintf(&b, "FLANNEL_MTU=%d\nFLANNEL_IPMASQ=%t\n", e.mtu, e.ipMasq)
	return b.Bytes()
}

// prefixes are the networks and subnets of both families, those that are off among
// them as zero values.
func (e subnetEnv) prefixes() []netip.Prefix {
	return []netip.Prefix{e.network, e.subnet, e.network6, e.subnet6}
}

// firstHost is the address that a bridge on the subnet gets: 10.5.7.0/24 gives
// 10.5.7.1/24.
func firstHost(subnet netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(subnet.Masked().Addr().Next(), subnet.Bits())
}

// write replaces the file at path atomically. A new file can be read by all,
// whatever the umask; an old one keeps its mode.
func (e subnetEnv) write(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the folder of %s: %w", path, err)
	}
	if err := renameio.WriteFile(path, e.bytes(), 0o644, renameio.IgnoreUmask()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// readSubnetEnv returns the networks and subnets that an earlier run wrote, for
// the claim to ask for the same subnet again. A file that is missing is none; one
// that cannot be read or parsed is reported and counts as none too, since a claim
// without it still works.
func readSubnetEnv(path string, log *slog.Logger) subnetEnv {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return subnetEnv{}
	}
	if err != nil {
		log.Warn("cannot read the previous subnet", "err", err)
		return subnetEnv{}
	}
	e, err := parseSubnetEnv(text, log)
	if err != nil {
		log.Warn("cannot read the previous subnet", "file", path, "err", err)
	}
	return e
}

// former are the networks that no present one overlaps: of those that do, the state
// is in use.
func (e subnetEnv) former(present []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range []netip.Prefix{e.network, e.network6} {
		if p.IsValid() && !slices.ContainsFunc(present, p.Overlaps) {
			out = append(out, p)
		}
	}
	return out
}

func parseSubnetEnv(text []byte, log *slog.Logger) (subnetEnv, error) {
	vars, err := godotenv.UnmarshalBytes(text)
	if err != nil {
		return subnetEnv{}, fmt.Errorf("parse: %w", err)
	}
	return subnetEnv{
		network:  onePrefix(vars, "FLANNEL_NETWORK", netip.Addr.Is4, log),
		network6: onePrefix(vars, "FLANNEL_IPV6_NETWORK", isIPv6, log),
		subnet:   onePrefix(vars, "FLANNEL_SUBNET", netip.Addr.Is4, log),
		subnet6:  onePrefix(vars, "FLANNEL_IPV6_SUBNET", isIPv6, log),
	}, nil
}

// onePrefix returns the network of the only valid CIDR in a comma-separated
// variable. Entries that are none are reported and skipped; with more than one
// left there is no telling which is meant, so the answer is none.
func onePrefix(vars map[string]string, name string, family func(netip.Addr) bool, log *slog.Logger) netip.Prefix {
	var found []netip.Prefix
	for entry := range strings.SplitSeq(vars[name], ",") {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		p, err := netip.ParsePrefix(entry)
		if err != nil || !family(p.Addr()) {
			log.Warn("skipped a bad entry of the previous subnet file", "variable", name, "entry", entry)
			continue
		}
		found = append(found, p.Masked())
	}
	if len(found) != 1 {
		return netip.Prefix{}
	}
	return found[0]
}

func isIPv6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }
