package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"weft/ctrl"
)

// maxPart limits a file that is copied and the output of a program, in bytes.
const maxPart = 8 << 20

// File returns a part that is a file of the host.
func File(path string) Part {
	return Part{"files" + path, func(context.Context) ([]byte, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(io.LimitReader(f, maxPart))
	}}
}

// Kernel returns the parts with the kernel's state: as this program reads it, the files of /proc,
// and the output of the usual programs, if they are installed.
func Kernel() []Part {
	parts := []Part{{"kernel/state.txt", readState}}
	for _, path := range []string{
		"/proc/version", "/proc/net/snmp", "/proc/net/snmp6", "/proc/net/netstat", "/proc/net/softnet_stat",
		"/proc/net/dev", "/proc/net/udp", "/proc/net/udp6", "/proc/net/stat/nf_conntrack",
		"/proc/net/stat/arp_cache", "/proc/sys/net/ipv4/ip_forward",
	} {
		parts = append(parts, optional(File(path)))
	}
	parts = append(parts, Part{"kernel/sysctl.txt", readSysctls})
	for _, line := range []string{
		"ip -d -s link", "ip address", "ip rule", "ip -6 rule", "ip route show table all",
		"ip -6 route show table all", "ip -s neigh", "bridge fdb", "bridge link", "ss -ulpn",
		"iptables-save -c", "ip6tables-save -c", "iptables-legacy-save -c", "nft list ruleset",
		"conntrack -S",
	} {
		parts = append(parts, Program(line))
	}
	return parts
}

// optional returns a part that is omitted if its file does not exist.
func optional(p Part) Part {
	return Part{p.Name, func(ctx context.Context) ([]byte, error) {
		content, err := p.Read(ctx)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return content, err
	}}
}

// Program returns a part that is the output of a program. It is omitted if the program is not
// installed.
func Program(line string) Part {
	args := strings.Fields(line)
	return Part{"programs/" + strings.ReplaceAll(line, " ", "_") + ".txt",
		func(ctx context.Context) ([]byte, error) {
			path, err := exec.LookPath(args[0])
			if err != nil {
				return nil, nil
			}
			out, err := exec.CommandContext(ctx, path, args[1:]...).CombinedOutput()
			return out[:min(len(out), maxPart)], err
		}}
}

// readState returns the devices, addresses, routes and entries.
func readState(context.Context) ([]byte, error) {
	kernel, err := ctrl.OpenKernel(nil)
	if err != nil {
		return nil, err
	}
	defer kernel.Close()
	s, err := kernel.Read(ctrl.OverlayName)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	write(&b, s.Links)
	write(&b, s.Addrs)
	write(&b, s.Routes)
	write(&b, s.Neighbours)
	write(&b, s.FDB)
	write(&b, s.FOU)
	write(&b, s.Tunnels)
	write(&b, s.Peers)
	rules, err := kernel.PolicyRules()
	for _, r := range rules {
		fmt.Fprintln(&b, "rule", r)
	}
	return b.Bytes(), err
}

func write[T fmt.Stringer](b *bytes.Buffer, objects []T) {
	for _, o := range objects {
		fmt.Fprintln(b, o)
	}
}

// readSysctls returns the settings of the network that matter for forwarding.
func readSysctls(context.Context) ([]byte, error) {
	var b bytes.Buffer
	for _, pattern := range []string{
		"net/ipv4/*", "net/ipv4/conf/*/*", "net/ipv4/neigh/*/gc_*", "net/ipv6/conf/*/*", "net/bridge/*",
		"net/netfilter/*", "net/core/*",
	} {
		paths, err := filepath.Glob(filepath.Join("/proc/sys", pattern))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			// Directories and files that only root of the host may read are left out.
			if value, err := os.ReadFile(path); err == nil {
				fmt.Fprintf(&b, "%s = %s\n", strings.TrimPrefix(path, "/proc/sys/"), bytes.TrimSpace(value))
			}
		}
	}
	return b.Bytes(), nil
}
