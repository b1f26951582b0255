package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// readFiles reads the facts that the kernel and other programs hold in files.
func (g gathering) readFiles() {
	g.readSysctls("/proc/sys")
	g.Ports = readPorts("/sys/class/net")
	g.NoARP = readNoARP("/sys/class/net")
	g.BlockedPorts = readBlockedPorts("/sys/class/net")
	// A kernel without connection tracking has no such file.
	if text, err := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack"); err == nil {
		g.Drops = map[string]uint64{"nf_conntrack": statColumn(string(text), "drop")}
	}
	for _, name := range []string{"/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"} {
		if text, err := os.ReadFile(name); err == nil {
			g.UDPPorts = append(g.UDPPorts, programPorts(string(text))...)
		}
	}
	g.Processes = readProcesses("/proc")
	var err error
	g.CNI, err = readCNI(g.options.CNIDir)
	g.miss(fromCNI, err)
}

// readSysctls reads the values that the checks use.
func (g gathering) readSysctls(dir string) {
	names := []string{
		"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.all.rp_filter",
		"net.bridge.bridge-nf-call-iptables",
		"net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max",
		"net.ipv4.neigh.default.gc_thresh3", "net.ipv6.neigh.default.gc_thresh3",
	}
	for _, l := range g.Kernel.Links {
		names = append(names, sysctlName("net.ipv4.conf.%s.forwarding", l.Name),
			sysctlName("net.ipv4.conf.%s.rp_filter", l.Name),
			sysctlName("net.ipv6.conf.%s.disable_ipv6", l.Name))
	}
	g.Sysctl = map[string]string{}
	for _, name := range names {
		path := sysctlPath(name)
		// A missing file is a fact: the feature or the device does not exist.
		if value, err := os.ReadFile(filepath.Join(dir, path)); err == nil {
			g.Sysctl[path] = strings.TrimSpace(string(value))
		}
	}
}

// readPorts returns the ports of each bridge.
func readPorts(dir string) map[string][]string {
	ports := map[string][]string{}
	bridges, _ := filepath.Glob(filepath.Join(dir, "*", "bridge")) // the pattern is well formed
	for _, b := range bridges {
		bridge := filepath.Base(filepath.Dir(b))
		ports[bridge] = nil
		found, _ := filepath.Glob(filepath.Join(dir, bridge, "brif", "*"))
		for _, p := range found {
			ports[bridge] = append(ports[bridge], filepath.Base(p))
		}
	}
	return ports
}

// readBlockedPorts returns the ports of bridges with a link and another state than forwarding.
func readBlockedPorts(dir string) (ports []string) {
	const forwarding = "3"                                                // BR_STATE_FORWARDING in linux/if_bridge.h
	files, _ := filepath.Glob(filepath.Join(dir, "*", "brport", "state")) // the pattern is well formed
	for _, file := range files {
		device := filepath.Dir(filepath.Dir(file))
		state, err := os.ReadFile(file)
		carrier, carrierErr := os.ReadFile(filepath.Join(device, "carrier"))
		if err == nil && carrierErr == nil && strings.TrimSpace(string(carrier)) == "1" &&
			strings.TrimSpace(string(state)) != forwarding {
			ports = append(ports, filepath.Base(device))
		}
	}
	return ports
}

// readNoARP returns the devices with the flag IFF_NOARP (linux/if.h).
func readNoARP(dir string) (devices []string) {
	files, _ := filepath.Glob(filepath.Join(dir, "*", "flags")) // the pattern is well formed
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // removed meanwhile
		}
		flags, err := strconv.ParseUint(strings.TrimSpace(string(text)), 0, 32)
		if err == nil && flags&unix.IFF_NOARP != 0 {
			devices = append(devices, filepath.Base(filepath.Dir(file)))
		}
	}
	return devices
}

// statColumn returns the sum of a column over all CPUs. The files of /proc/net/stat have a line of
// names and a line of hexadecimal numbers per CPU.
func statColumn(text, column string) uint64 {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	at := slices.Index(strings.Fields(lines[0]), column)
	var sum uint64
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		if at < 0 || at >= len(fields) {
			continue
		}
		if n, err := strconv.ParseUint(fields[at], 16, 64); err == nil {
			sum += n
		}
	}
	return sum
}

// programPorts returns the local ports of the sockets in /proc/net/udp that belong to programs: the
// kernel's own have the inode 0 or are not listed.
func programPorts(text string) []uint16 {
	const localColumn, inodeColumn = 1, 9
	var ports []uint16
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) <= inodeColumn || fields[inodeColumn] == "0" {
			continue
		}
		_, port, _ := strings.Cut(fields[localColumn], ":")
		if n, err := strconv.ParseUint(port, 16, 16); err == nil {
			ports = append(ports, uint16(n))
		}
	}
	return ports
}

// readProcesses lists the daemons of overlays. Processes that end meanwhile, or of other users'
// namespaces, are not listed.
func readProcesses(dir string) []Process {
	own, _ := os.Readlink(filepath.Join(dir, "thread-self", "ns", "net"))
	names, _ := filepath.Glob(filepath.Join(dir, "[0-9]*", "cmdline"))
	var out []Process
	for _, name := range names {
		text, err := os.ReadFile(name)
		args := strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
		program := filepath.Base(args[0])
		if err != nil || program != "weftd" && program != "flanneld" ||
			len(args) > 1 && args[1] == "cleanup" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			continue
		}
		ns, _ := os.Readlink(filepath.Join(filepath.Dir(name), "ns", "net"))
		out = append(out, Process{PID: pid, Program: program, Args: args[1:], Same: ns == own})
	}
	return out
}

// readCNI reads the CNI configurations in the order in which container runtimes do. Invalid files
// have no types: the runtimes skip them, too.
func readCNI(dir string) ([]CNIConfig, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no directory %s here", dir)
	}
	if err != nil {
		return nil, err
	}
	var out []CNIConfig
	for _, e := range entries {
		if !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		var config struct {
			Type    string
			Plugins []struct{ Type string }
		}
		if err := json.Unmarshal(text, &config); err != nil {
			continue
		}
		c := CNIConfig{File: e.Name()}
		if config.Type != "" {
			c.Types = []string{config.Type}
		}
		for _, p := range config.Plugins {
			c.Types = append(c.Types, p.Type)
		}
		out = append(out, c)
	}
	return out, nil
}
