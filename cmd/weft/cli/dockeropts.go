package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/lease/subnetenv"
)

const dockerOptsUsage = `weft docker-opts [-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY] [-p DOCKERD]

Writes the options with which a dockerd puts its containers into this node's subnet, for an EnvironmentFile.
Takes the flags of flannel's mk-docker-opts.sh and writes what that writes, and --allow-direct-routing for
a dockerd that has it (28.2 and later), which containers of other nodes need.

  -f  file that the daemon wrote (default /run/flannel/subnet.env)
  -d  file to write (default /run/docker_opts.env)
  -i  each option in a variable of its own, like DOCKER_OPT_MTU="--mtu=1472"
  -c  all options in one variable; neither -i nor -c means both
  -k  name of that variable (default DOCKER_OPTS)
  -m  leave --ip-masq out, for an old dockerd that does not know it
  -p  dockerd that gets the options, asked with --help for those it has (default dockerd)
`

// dockerOptPrefix is the prefix of the variables with one option each. Those in the environment are
// passed on.
const dockerOptPrefix = "DOCKER_OPT_"

// errDockerUsage means that the usage text was asked for.
var errDockerUsage = errors.New("usage wanted")

// dockerFlags is the command line of docker-opts.
type dockerFlags struct {
	flannelFile, dockerFile string
	key, dockerd            string
	individual, combined    bool
	noIPMasq                bool
}

// newDockerOpts returns weft docker-opts. It parses its own flags, which are those of a script.
func newDockerOpts() *cobra.Command {
	return &cobra.Command{
		Use:                "docker-opts",
		Short:              "dockerd's options for the subnet of this node",
		Long:               dockerOptsUsage,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return ExitStatus(runDockerOpts(args, os.Environ(), "/proc/net/route", os.Stdout, os.Stderr))
		},
	}
}

// runDockerOpts is the command with explicit inputs; routes is the path of the kernel's IPv4
// routing table.
func runDockerOpts(args, environ []string, routes string, stdout, stderr io.Writer) int {
	f, err := parseDockerFlags(args)
	if errors.Is(err, errDockerUsage) {
		fmt.Fprint(stdout, dockerOptsUsage)
		return 0
	}
	if err != nil {
		return Fail(stderr, fmt.Errorf("docker-opts: %w; weft docker-opts -h lists the flags", err))
	}
	direct, err := hasDirectRouting(f.dockerd)
	if err != nil {
		fmt.Fprintf(stderr, "weft: docker-opts: options for a dockerd before 28.2: %v; -p names another\n", err)
	}
	if direct {
		environ = append(slices.Clip(environ), dockerOptPrefix+"DIRECT="+directRouting)
	}
	if err := writeDockerOpts(f, environ, routes); err != nil {
		return Fail(stderr, err)
	}
	return 0
}

// parseDockerFlags parses flags like the shell's getopts: letters may share a dash, and a value may
// follow its letter without a space.
func parseDockerFlags(args []string) (dockerFlags, error) {
	f := dockerFlags{flannelFile: "/run/flannel/subnet.env", dockerFile: "/run/docker_opts.env",
		key: "DOCKER_OPTS", dockerd: "dockerd"}
	values := map[byte]*string{'f': &f.flannelFile, 'd': &f.dockerFile, 'k': &f.key, 'p': &f.dockerd}
	switches := map[byte]*bool{'i': &f.individual, 'c': &f.combined, 'm': &f.noIPMasq}
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && args[0] != "--" {
		if args[0] == "--help" || args[0] == "-help" {
			return f, errDockerUsage
		}
		letters := args[0][1:]
		args = args[1:]
		for letters != "" {
			letter := letters[0]
			letters = letters[1:]
			if s := switches[letter]; s != nil {
				*s = true
				continue
			}
			if letter == 'h' || letter == '?' {
				return f, errDockerUsage
			}
			v := values[letter]
			if v == nil {
				return f, fmt.Errorf("-%c: unknown flag", letter)
			}
			if letters == "" && len(args) == 0 {
				return f, fmt.Errorf("-%c: missing value", letter)
			}
			if letters == "" {
				letters, args = args[0], args[1:]
			}
			*v, letters = letters, ""
		}
	}
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) > 0 {
		return f, fmt.Errorf("unexpected argument %q", args[0])
	}
	if !f.individual && !f.combined {
		f.individual, f.combined = true, true
	}
	return f, nil
}

// directRouting is the option with which dockerd 28.2 and later let other hosts send to containers.
// Without it they drop such packets in the raw table. Older ones refuse to start with it.
const directRouting = "--allow-direct-routing"

// hasDirectRouting reports whether a dockerd has the option directRouting.
func hasDirectRouting(dockerd string) (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	help, err := exec.CommandContext(ctx, dockerd, "--help").Output()
	if err != nil {
		return false, fmt.Errorf("ask %s --help: %w", dockerd, err)
	}
	return bytes.Contains(help, []byte(directRouting)), nil
}

// writeDockerOpts writes the options. After an error it writes nothing, so that no dockerd starts
// with some of the options.
func writeDockerOpts(f dockerFlags, environ []string, routes string) error {
	vars, err := dockerVariables(f.flannelFile, environ)
	if err != nil {
		return err
	}
	text, err := dockerOptions(vars, f)
	if err != nil {
		return err
	}
	if subnet, err := netip.ParsePrefix(vars[subnetenv.SubnetVar]); err == nil &&
		subnet.Addr().Is4() {
		table, err := os.ReadFile(routes)
		if err != nil {
			return fmt.Errorf("look for a route to the subnet: %w", err)
		}
		if gateway, device, found := routedElsewhere(table, subnet.Masked()); found {
			return fmt.Errorf("the routing table already sends %s via %s dev %s", subnet.Masked(),
				gateway, device)
		}
	}
	return replaceFile(f.dockerFile, text)
}

// dockerVariables merges the environment and the file, which takes precedence.
func dockerVariables(file string, environ []string) (map[string]string, error) {
	vars := map[string]string{}
	for _, e := range environ {
		if name, value, ok := strings.Cut(e, "="); ok {
			vars[name] = value
		}
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && vars[subnetenv.SubnetVar] != "" {
		return vars, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read this node's subnet (is the daemon up?): %w", err)
	}
	assigned, _ := subnetenv.Variables(text) // other lines are skipped, as a shell would
	maps.Copy(vars, assigned)
	return vars, nil
}

// dockerOptions returns the file's text: one option per known variable, sorted by name. dockerd
// masquerades only if weftd does not.
func dockerOptions(vars map[string]string, f dockerFlags) ([]byte, error) {
	options := map[string]string{}
	for name, value := range vars {
		if strings.HasPrefix(name, dockerOptPrefix) {
			options[name] = value
		}
	}
	if subnet := vars[subnetenv.SubnetVar]; subnet != "" {
		if _, err := netip.ParsePrefix(subnet); err != nil {
			return nil, fmt.Errorf("invalid value of FLANNEL_SUBNET: %w", err)
		}
		options[dockerOptPrefix+"BIP"] = "--bip=" + subnet
	}
	if mtu := vars[subnetenv.MTUVar]; mtu != "" {
		if _, err := strconv.ParseUint(mtu, 10, 16); err != nil {
			return nil, fmt.Errorf("invalid value of FLANNEL_MTU: %w", err)
		}
		options[dockerOptPrefix+"MTU"] = "--mtu=" + mtu
	}
	if masq := vars[subnetenv.IPMasqVar]; masq != "" && !f.noIPMasq {
		if masq != "true" && masq != "false" {
			return nil, fmt.Errorf("invalid value of FLANNEL_IPMASQ: %q is neither true nor false",
				masq)
		}
		options[dockerOptPrefix+"IPMASQ"] = fmt.Sprintf("--ip-masq=%t", masq == "false")
	}
	var b bytes.Buffer
	combined := vars[f.key]
	if combined != "" {
		combined += " "
	}
	for _, name := range slices.Sorted(maps.Keys(options)) {
		if f.individual {
			fmt.Fprintf(&b, "%s=%s\n", name, shellQuote(options[name]))
		}
		combined += " " + options[name]
	}
	if f.combined {
		fmt.Fprintf(&b, "%s=%s\n", f.key, shellQuote(combined))
	}
	return b.Bytes(), nil
}

// shellQuote quotes s for a shell and for systemd.
func shellQuote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`").Replace(s) + `"`
}

// Columns of /proc/net/route, and the flag of a route with a gateway (RTF_GATEWAY in
// linux/route.h).
const (
	routeDevice, routeDst, routeGateway, routeFlags, routeMask = 0, 1, 2, 3, 7

	routeByGateway = 0x2
)

// routedElsewhere returns the gateway route to exactly this subnet, if there is one in the IPv4
// routing table. Another host then has the subnet, and a bridge with its addresses would make that
// host unreachable.
func routedElsewhere(table []byte,
	subnet netip.Prefix) (gateway netip.Addr, device string, found bool) {
	for lines := bufio.NewScanner(bytes.NewReader(table)); lines.Scan(); {
		column := strings.Fields(lines.Text())
		if len(column) <= routeMask {
			continue
		}
		flags, err := strconv.ParseUint(column[routeFlags], 16, 16)
		if err != nil || flags&routeByGateway == 0 {
			continue // also the line of headings
		}
		dst, ok := routeAddr(column[routeDst])
		mask, maskOK := routeAddr(column[routeMask])
		gw, gwOK := routeAddr(column[routeGateway])
		if ok && maskOK && gwOK && dst == subnet.Addr() && mask == maskOf(subnet.Bits()) {
			return gw, column[routeDevice], true
		}
	}
	return netip.Addr{}, "", false
}

// routeAddr parses an address of /proc/net/route: a 32-bit word in host byte order, in hexadecimal.
func routeAddr(s string) (netip.Addr, bool) {
	word, err := strconv.ParseUint(s, 16, 32)
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(word))
	return netip.AddrFrom4(b), err == nil
}

// maskOf returns the IPv4 netmask of the given prefix length.
func maskOf(bits int) netip.Addr {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), bits).Masked().Addr()
}

// replaceFile replaces a file atomically. A file with the same content is left alone: it is right
// even on a disk that is full. A device, a pipe or a link is written to instead: a
// rename would replace it, and /dev/stdout is a link even if it leads to a file.
func replaceFile(path string, text []byte) error {
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return os.WriteFile(path, text, 0o644) // the mode is for a link to a file that does not exist yet
	}
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = tmp.Write(text)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(tmp.Name())))
	}
	return nil
}
