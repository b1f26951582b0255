package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"weft/ctrl"
)

// Daemon is the part of the daemon's status that the checks read, under the names of its JSON form.
type Daemon struct {
	Node       string            `json:"node"`
	Ready      bool              `json:"ready"`
	Conditions []Condition       `json:"conditions"`
	Flags      map[string]string `json:"flags"`
	Backend    string            `json:"backend"`
	MTU        int               `json:"mtu"`
	Device     string            `json:"device"` // two if each family has one, separated by a space
	Network    struct {
		Network  netip.Prefix               `json:"network"`
		Network6 netip.Prefix               `json:"network6"`
		Backend  map[string]json.RawMessage `json:"backend"`
	} `json:"network"`
	Interface *struct {
		Name    string     `json:"name"`
		MTU     int        `json:"mtu"`
		Address netip.Addr `json:"address"`
		Public  netip.Addr `json:"public"`
		Note    string     `json:"note"`
	} `json:"interface"`
	Lease *struct {
		Held    bool         `json:"held"`
		Subnet  netip.Prefix `json:"subnet"`
		Subnet6 netip.Prefix `json:"subnet6"`
		Expires time.Time    `json:"expires"`
	} `json:"lease"`
	Store struct {
		Kind      string   `json:"kind"`
		Endpoints []string `json:"endpoints"`
		Prefix    string   `json:"prefix"`
		Connected bool     `json:"connected"`
		Error     string   `json:"error"`
	} `json:"store"`
	Nodes []struct {
		Name        string       `json:"name"`
		Subnet      netip.Prefix `json:"subnet"`
		Subnet6     netip.Prefix `json:"subnet6"`
		Public      netip.Addr   `json:"public"`
		Public6     netip.Addr   `json:"public6"`
		Unreachable string       `json:"unreachable"`
		Path        *Path        `json:"path"`
		Path6       *Path        `json:"path6"`
	} `json:"nodes"`
	Kernel struct {
		Synced  bool   `json:"synced"`
		Error   string `json:"error"`
		Repairs uint64 `json:"repairs"`
	} `json:"kernel"`
	Rules struct {
		InPlace bool   `json:"in_place"`
		Error   string `json:"error"`
		Repairs uint64 `json:"repairs"`
	} `json:"rules"`
	Cloud *struct {
		Provider string `json:"provider"`
		InPlace  bool   `json:"in_place"`
		Error    string `json:"error"`
	} `json:"cloud"`
	IPsec *struct {
		Error string `json:"error"`
	} `json:"ipsec"`
	Traffic *Traffic `json:"traffic"`
}

// Path is the mesh probe's result for a node.
type Path struct {
	Sent int `json:"sent"`
	Lost int `json:"lost"`
	MTU  int `json:"mtu"` // bytes; 0 if not known
	// RTT is the median round-trip time in seconds.
	RTT float64 `json:"rtt_median_seconds"`
}

// Condition is a condition of the daemon's readiness.
type Condition struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Reason string `json:"reason"`
}

// Traffic holds the counters of the userspace dataplane.
type Traffic struct {
	In, Out struct {
		Packets uint64 `json:"packets"`
	}
	Drops []struct {
		Reason  string `json:"reason"`
		Packets uint64 `json:"packets"`
	} `json:"drops"`
	Overflows []Overflow `json:"overflows"`
	Nodes     []struct {
		Node    string `json:"node"`
		In, Out struct {
			Packets uint64 `json:"packets"`
		}
	} `json:"nodes"`
	UnknownSources []UnknownSource `json:"unknown_sources"`
}

// Overflow counts the packets that a full queue lost.
type Overflow struct {
	Queue   string `json:"queue"` // "socket" or "tun"
	Packets uint64 `json:"packets"`
}

// UnknownSource is an outer address that is not a node's.
type UnknownSource struct {
	Address netip.Addr `json:"address"`
	Packets uint64     `json:"packets"`
	Last    time.Time  `json:"last"`
}

// ParseStatus parses the JSON form of the daemon's status.
func ParseStatus(text []byte) (Daemon, error) {
	var d Daemon
	if err := json.Unmarshal(text, &d); err != nil {
		return Daemon{}, fmt.Errorf("parse the daemon's status: %w", err)
	}
	return d, nil
}

// condition returns the reason of a condition that is not met; empty if it is met or unknown.
func (d Daemon) condition(name string) string {
	for _, c := range d.Conditions {
		if c.Name == name && !c.OK {
			return c.Reason
		}
	}
	return ""
}

func daemonChecks() []check {
	return []check{
		{name: "daemon-not-running", needs: []source{fromHost}, find: findNoDaemon},
		{name: "daemon-hung", find: findHung},
		{name: "two-daemons", needs: []source{fromHost}, find: findTwoDaemons},
		{name: "subnet-env-missing", needs: []source{fromHost}, find: findNoEnv},
		{name: "cni-config-missing", needs: []source{fromCNI, fromDaemon}, find: findNoCNI},
		{name: "cni-config-foreign", needs: []source{fromCNI, fromDaemon}, find: findForeignCNI},
		{name: "queue-overflow", needs: []source{fromTraffic}, find: findOverflow},
		{name: "pod-cidr", needs: []source{fromDaemon}, find: findPodCIDR},
	}
}

// Process is a running daemon of an overlay.
type Process struct {
	PID     int
	Program string // base name
	Args    []string
	Same    bool // in this network namespace
}

// flag returns the value of a flag of the process, or an empty string.
func (p Process) flag(name string) string {
	for i, arg := range p.Args {
		arg = strings.TrimLeft(arg, "-")
		if value, ok := strings.CutPrefix(arg, name+"="); ok {
			return value
		}
		if arg == name && i+1 < len(p.Args) {
			return p.Args[i+1]
		}
	}
	return ""
}

// flag returns the value of a flag of the daemon, as it says, else by its arguments; empty if the
// flag is not set.
func (f *Facts) flag(name string) string {
	if value, ok := f.Daemon.Flags[name]; ok || f.Missing[fromDaemon] == nil {
		return value
	}
	for _, p := range f.here() {
		if value := p.flag(name); value != "" {
			return value
		}
	}
	return ""
}

// here returns the daemons in this network namespace.
func (f *Facts) here() []Process {
	return slices.DeleteFunc(slices.Clone(f.Processes), func(p Process) bool { return !p.Same })
}

func findNoDaemon(f *Facts) []Finding {
	err := f.Missing[fromDaemon]
	if err == nil || len(f.here()) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return []Finding{{
		Evidence: fmt.Sprintf("no process weftd or flanneld in this network namespace; %v",
			err),
		Cause: "the daemon has ended or was never started: with the udp backend no packet passes, " +
			"with the others the node keeps its routes but its lease expires",
		Remedy: "systemctl start weftd, or kubectl -n kube-flannel get pods; its log has the reason",
	}}
}

// findHung reports a daemon that accepts connections to its control socket, but does not answer.
func findHung(f *Facts) []Finding {
	err := f.Missing[fromDaemon]
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return []Finding{{
		Evidence: err.Error(),
		Cause: "the process is stopped (SIGSTOP, a debugger, a frozen cgroup), starved of CPU or deadlocked: with " +
			"the udp backend no packet passes",
		Remedy: "ps -C weftd -o pid,stat,args (state T: kill -CONT PID), else restart the daemon, with kill -QUIT " +
			"for a stack trace in its log",
	}}
}

func findTwoDaemons(f *Facts) []Finding {
	var out []Finding
	here := f.here()
	for i, a := range here {
		for _, b := range here[i+1:] {
			same := func(name string) bool { return a.flag(name) == b.flag(name) }
			if !same("subnet-file") || !same("etcd-prefix") || !same("lease-file") {
				continue
			}
			out = append(out, Finding{
				Evidence: fmt.Sprintf("%s (PID %d) and %s (PID %d) run with one network and one subnet file",
					a.Program, a.PID, b.Program, b.PID),
				Cause:  "two daemons of one network undo each other's devices, routes and leases",
				Remedy: fmt.Sprintf("stop one of them: kill %d or kill %d", a.PID, b.PID),
			})
		}
	}
	return out
}

func findNoEnv(f *Facts) []Finding {
	err := f.EnvErr
	if err == nil || f.Missing[fromDaemon] != nil && len(f.here()) == 0 {
		return nil // without a daemon, the missing daemon is the cause
	}
	if len(findPodCIDR(f)) > 0 {
		return nil
	}
	cause := "the daemon is not ready yet, or writes another file (--subnet-file)"
	if reason := f.Daemon.firstReason(); reason != "" {
		cause = "the daemon is not ready: " + reason
	}
	return []Finding{{Evidence: err.Error(), Cause: cause,
		Remedy: "weft status; new pods cannot start until the file exists"}}
}

// firstReason returns the first condition that is not met, with its reason.
func (d Daemon) firstReason() string {
	for _, c := range d.Conditions {
		if !c.OK {
			return c.Name + ": " + c.Reason
		}
	}
	return ""
}

// findNoCNI and findForeignCNI concern nodes of Kubernetes: other hosts may have these files for
// other purposes.
func findNoCNI(f *Facts) []Finding {
	if len(f.CNI) > 0 || f.Daemon.Store.Kind != "kubernetes" {
		return nil
	}
	return []Finding{{
		Evidence: "no file *.conflist or *.conf in " + f.cniDir(),
		Cause:    "the CNI plugin of the overlay is not installed, so new pods do not start",
		Remedy:   "kubectl apply the manifest again, or copy 10-flannel.conflist to " + f.cniDir(),
	}}
}

// findForeignCNI looks at the first file, which is the one that container runtimes use.
func findForeignCNI(f *Facts) []Finding {
	if len(f.CNI) == 0 || slices.Contains(f.CNI[0].Types, "flannel") ||
		f.Daemon.Store.Kind != "kubernetes" {
		return nil
	}
	first := f.CNI[0]
	return []Finding{{
		Evidence: fmt.Sprintf("%s/%s comes first and has the plugins %s", f.cniDir(), first.File,
			strings.Join(first.Types, ", ")),
		Cause:  "new pods are set up by another plugin than flannel's and get addresses outside the overlay",
		Remedy: fmt.Sprintf("mv %s/%s /tmp/ and restart the pods that it has set up", f.cniDir(), first.File),
	}}
}

// overflowShare is the share of received packets that must be lost to count: bursts beyond the
// buffers are normal. Fewer packets than overflowMin, as at a start, are no share.
const (
	overflowShare = 0.001
	overflowMin   = 10
)

func findOverflow(f *Facts) []Finding {
	t := f.Daemon.Traffic
	var out []Finding
	for _, o := range t.Overflows {
		passed := t.In.Packets
		if o.Queue == "tun" {
			passed = t.Out.Packets
		}
		if o.Packets < overflowMin || float64(o.Packets) <= overflowShare*float64(passed+o.Packets) {
			continue
		}
		cause, remedy := "the workers are too slow for the pods' packets", "more CPUs or --workers; docs/benchmarks.md"
		if o.Queue == "socket" {
			cause = "the receive buffers are full: bursts of other nodes, or buffers that were not enlarged"
			remedy = "give the daemon CAP_NET_ADMIN, or sysctl -w net.core.rmem_max=7340032 and restart it"
		}
		out = append(out, Finding{
			Evidence: fmt.Sprintf("%d packets lost at the queue %q beside %d that passed", o.Packets, o.Queue, passed),
			Cause:    cause, Remedy: remedy,
		})
	}
	return out
}

func findPodCIDR(f *Facts) []Finding {
	reason := f.Daemon.condition("lease")
	if text := strings.ToLower(reason); !strings.Contains(text, "podcidr") &&
		!strings.Contains(text, "pod cidr") {
		return nil
	}
	return []Finding{{
		Evidence: reason,
		Cause:    "Kubernetes assigns no pod CIDR to this node, or one outside the network config",
		Remedy: "kube-controller-manager with --allocate-node-cidrs=true and the --cluster-cidr of the " +
			"network config; kubectl get node -o jsonpath='{.spec.podCIDRs}'",
	}}
}

// devices returns the names of the overlay's devices of the family: those of the daemon's status,
// else those with one of flannel's names.
func (f *Facts) devices() []string {
	names := strings.Fields(f.Daemon.Device)
	if f.Daemon.Backend == "host-gw" {
		names = nil
	}
	if len(names) == 0 {
		for _, l := range f.Kernel.Links {
			if ctrl.OverlayName(l.Name) {
				names = append(names, l.Name)
			}
		}
	}
	// With one device, both families use it.
	other := func(name string) bool { return strings.Contains(name, "-v6") != f.V6 }
	if own := slices.DeleteFunc(slices.Clone(names), other); len(own) > 0 {
		return own
	}
	return names
}
