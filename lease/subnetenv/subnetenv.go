// Package subnetenv reads and writes subnet.env, the file from which CNI plugins and Docker
// helpers learn the node's subnet. Variables and their order are flannel's:
//
//	FLANNEL_NETWORK=10.5.0.0/16
//	FLANNEL_SUBNET=10.5.77.1/24
//	FLANNEL_IPV6_NETWORK=fd00:5::/48
//	FLANNEL_IPV6_SUBNET=fd00:5:0:40::1/64
//	FLANNEL_MTU=1450
//	FLANNEL_IPMASQ=true
package subnetenv

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/joho/godotenv"
)

// Names of the variables.
const (
	NetworkVar  = "FLANNEL_NETWORK"
	SubnetVar   = "FLANNEL_SUBNET"
	Network6Var = "FLANNEL_IPV6_NETWORK"
	Subnet6Var  = "FLANNEL_IPV6_SUBNET"
	MTUVar      = "FLANNEL_MTU"
	IPMasqVar   = "FLANNEL_IPMASQ"
)

// File is the content of a subnet file. The prefixes of a disabled family are zero.
type File struct {
	// Network and Network6 are the pod networks of the cluster, masked.
	Network, Network6 netip.Prefix
	// Subnet and Subnet6 hold the gateway address of the node's subnet: 10.5.77.1/24.
	Subnet, Subnet6 netip.Prefix
	// MTU of the pods' interfaces in bytes.
	MTU int
	// IPMasq is set if the daemon masquerades, so that other programs need not.
	IPMasq bool
}

// Gateway returns the address that a bridge in the subnet gets: 10.5.77.0/24 gives 10.5.77.1/24,
// the zero Prefix itself.
func Gateway(subnet netip.Prefix) netip.Prefix {
	if !subnet.IsValid() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(subnet.Masked().Addr().Next(), subnet.Bits())
}

// Bytes returns the text of the file. A family is included if it has a network and a subnet.
func (f File) Bytes() []byte {
	var b bytes.Buffer
	if f.Network.IsValid() && f.Subnet.IsValid() {
		fmt.Fprintf(&b, NetworkVar+"=%s\n"+SubnetVar+"=%s\n", f.Network, f.Subnet)
	}
	if f.Network6.IsValid() && f.Subnet6.IsValid() {
		fmt.Fprintf(&b, Network6Var+"=%s\n"+Subnet6Var+"=%s\n", f.Network6, f.Subnet6)
	}
	fmt.Fprintf(&b, MTUVar+"=%d\n"+IPMasqVar+"=%t\n", f.MTU, f.IPMasq)
	return b.Bytes()
}

// Write replaces the file at path atomically. A new file is readable by all users regardless of the
// umask; an existing one keeps its mode. A file with the same content is left alone: it is right
// even on a disk that is full or read-only.
func (f File) Write(path string) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, f.Bytes()) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("create the directory of %s: %w", path, err)
	}
	if err := renameio.WriteFile(path, f.Bytes(), 0o644, renameio.IgnoreUmask()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Read returns the content of the file at path. It fails if a value is invalid or if the subnet or
// the MTU is missing.
func Read(path string) (File, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return File{}, err
	}
	f, invalid, err := Parse(text)
	errs := []error{err}
	for _, v := range invalid {
		errs = append(errs, v)
	}
	if !f.Subnet.IsValid() && !f.Subnet6.IsValid() || f.MTU == 0 {
		errs = append(errs, errors.New("no subnet or no MTU in it"))
	}
	if err := errors.Join(errs...); err != nil {
		return File{}, fmt.Errorf("read %s: %w", path, err)
	}
	return f, nil
}

// InvalidValue is the error about a value, or about one entry of a comma-separated value.
type InvalidValue struct{ Variable, Value string }

// Error returns the variable and the value.
func (v InvalidValue) Error() string {
	return fmt.Sprintf("invalid value of %s: %q", v.Variable, v.Value)
}

// Parse parses the text of a subnet file. Invalid values are skipped and returned in invalid. err
// is set, and the File zero, if the text is not a list of shell assignments.
func Parse(text []byte) (f File, invalid []InvalidValue, err error) {
	vars, err := Variables(text)
	if err != nil {
		return File{}, nil, err
	}
	prefix := func(name string, family func(netip.Addr) bool) netip.Prefix {
		p, bad := onePrefix(vars[name], family)
		for _, entry := range bad {
			invalid = append(invalid, InvalidValue{name, entry})
		}
		return p
	}
	f = File{
		Network:  prefix(NetworkVar, netip.Addr.Is4).Masked(),
		Subnet:   prefix(SubnetVar, netip.Addr.Is4),
		Network6: prefix(Network6Var, is6).Masked(),
		Subnet6:  prefix(Subnet6Var, is6),
	}
	if s := vars[MTUVar]; s != "" {
		if f.MTU, err = strconv.Atoi(s); err != nil {
			invalid = append(invalid, InvalidValue{MTUVar, s})
		}
	}
	if s := vars[IPMasqVar]; s != "" {
		if f.IPMasq, err = strconv.ParseBool(s); err != nil {
			invalid = append(invalid, InvalidValue{IPMasqVar, s})
		}
	}
	return f, invalid, nil
}

// onePrefix returns the only valid prefix in a comma-separated list, and the invalid entries.
// Several prefixes are ambiguous and ignored.
func onePrefix(list string, family func(netip.Addr) bool) (one netip.Prefix, invalid []string) {
	var found []netip.Prefix
	for entry := range strings.SplitSeq(list, ",") {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		p, err := netip.ParsePrefix(entry)
		if err != nil || !family(p.Addr()) {
			invalid = append(invalid, entry)
			continue
		}
		found = append(found, p)
	}
	if len(found) != 1 {
		return netip.Prefix{}, invalid
	}
	return found[0], invalid
}

func is6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }

// Variables returns the shell assignments in text. If some lines are not assignments, it returns
// the others and an error.
func Variables(text []byte) (map[string]string, error) {
	vars, err := godotenv.UnmarshalBytes(text)
	if err == nil {
		return vars, nil
	}
	vars = map[string]string{}
	for line := range bytes.Lines(text) {
		if assigned, lineErr := godotenv.UnmarshalBytes(line); lineErr == nil {
			maps.Copy(vars, assigned)
		}
	}
	return vars, fmt.Errorf("parse: %w", err)
}
