package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/ctrl"
	"weft/ctrl/netfilter"
	"weft/lease/subnetenv"
)

// Paths of the files that the checks name.
const (
	// DefaultCNIDir is the directory in which most container runtimes look for CNI configurations.
	DefaultCNIDir = "/etc/cni/net.d"
	// DefaultSubnetFile is flannel's path of the subnet file.
	DefaultSubnetFile = "/run/flannel/subnet.env"
)

// Facts are the observations that the checks judge. The zero value of a field means that it was not
// observed; Missing then has the reason. The observations of routes, filters and nodes are of one
// address family.
type Facts struct {
	Now time.Time
	V6  bool // the family is IPv6
	// Second holds the facts about the other family; nil unless the node has both.
	Second *Facts
	// Missing holds the reason why a kind of facts is missing.
	Missing map[source]error

	// Env is the subnet file, or what takes its place if it cannot be read: then EnvErr is set.
	Env    subnetenv.File
	EnvErr error
	Daemon Daemon
	// Repairs is the number of the daemon's repairs of the kernel's state and of its rules during
	// the examination, which took Took.
	Repairs uint64
	Took    time.Duration

	Kernel      ctrl.State
	PolicyRules []string
	Neighbours  []ctrl.NeighbourState
	// Ports lists the ports of each bridge.
	Ports map[string][]string
	// Sysctl holds values below /proc/sys by path: "net/ipv4/ip_forward". A missing entry means
	// that the file does not exist.
	Sysctl map[string]string
	// Drops counts packets that the kernel dropped because a table was full, by table:
	// "nf_conntrack", "arp_cache".
	Drops map[string]uint64
	// UDPPorts lists the UDP ports of programs, by the user of the socket.
	UDPPorts  []uint16
	Processes []Process
	CNI       []CNIConfig
	CNIDir    string // DefaultCNIDir if empty

	Filter netfilter.Conflicts
	// RuleChanges are the differences from the wanted rules for masquerading and forwarding, if
	// RulesFound.
	RuleChanges []string
	RulesFound  bool
	// Docker holds the verdicts on packets of other nodes to docker0, if that is in the subnet.
	Docker []netfilter.Verdict

	Nodes []Node
	Pods  []Pod
	Store []Endpoint
	// NoARP lists the devices that do not resolve addresses, and Netem those with an emulation of a
	// bad network.
	NoARP, Netem []string
	// TC lists the filters of traffic control on the devices that packets pass, and IPsec the IPsec
	// policies of other programs.
	TC    []TCFilter
	IPsec []ctrl.ForeignPolicy
	// Outbound is the connection tracking of a packet of a pod to an address outside the network.
	Outbound netfilter.Tracking
	// BlockedPorts lists the ports of bridges that have a link but do not forward.
	BlockedPorts []string
	// BelowIP lists the tables of packet filters that are not examined.
	BelowIP []string
}

// cniDir returns the directory of the CNI configuration.
func (f *Facts) cniDir() string { return cmp.Or(f.CNIDir, DefaultCNIDir) }

// CNIConfig is one file of the CNI configuration.
type CNIConfig struct {
	File  string
	Types []string // of its plugins
}

// Node is another node of the cluster.
type Node struct {
	Name   string
	Subnet netip.Prefix
	Public netip.Addr // invalid if not known
	// Unplanned is set if the daemon's plan has no path to the node; other checks report why.
	Unplanned bool
	// Path is the result of the daemon's mesh probe; nil without one.
	Path *Path
	// Target is the address of the node inside the overlay to which the probes go.
	Target netip.Addr

	// Route is the route of this host's packets to Target, Forward that of its pods' packets, and
	// Underlay that to Public.
	Route, Forward, Underlay Lookup
	// In and Out are the verdicts of this host's packet filters on tunnel packets from and to the
	// node. They are nil without a tunnel over UDP.
	In, Out []netfilter.Verdict
	// Pods are the verdicts on packets of pods from and to the node before they are routed.
	Pods []netfilter.Verdict
	// Sent and Returned are the connection tracking of packets of this node's pods to the node, and
	// of the answers.
	Sent, Returned netfilter.Tracking

	Probed bool
	Probes Probes
}

// Lookup is the result of a route lookup.
type Lookup struct {
	ctrl.LookupResult
	Err error // nil if there is a route
}

// Probes are the results of the packets sent to a node.
type Probes struct {
	// Loss is a row of echoes through the overlay.
	Loss Echo
	// Small and Large are echoes through the overlay, of 84 bytes and of the pods' MTU without
	// fragmentation. Direct is an echo on the underlay.
	Small, Large, Direct Echo
	// Usual is an echo that takes the way of other small packets, sent if Small has no answer. It
	// differs from Small's with a fast path only.
	Usual Echo
	// TCP and DirectTCP report whether a TCP connection was accepted or refused, which takes an
	// answer of the node, through the overlay and on the underlay.
	TCP, DirectTCP bool
	// Port is the error that a datagram to the tunnel port causes; nil if there is none.
	Port error
	// Received counts the tunnel packets from the node during the probes. It is -1 if not known.
	Received int64
}

// Endpoint is a server of the lease store.
type Endpoint struct {
	URL  string
	Took time.Duration // for a request
	Skew time.Duration // of the server's clock against this node's; valid if Dated
	// Dated is set if the answer told the time.
	Dated bool
	Err   error
}

// missing returns the reason why facts are missing; empty if all are there.
func (f *Facts) missing(needs []source) string {
	for _, s := range needs {
		if err := f.Missing[s]; err != nil {
			return string(s) + ": " + err.Error()
		}
	}
	return ""
}

// subnet returns the node's subnet of the family that is examined.
func (f *Facts) subnet() netip.Prefix {
	if f.V6 {
		return f.Env.Subnet6
	}
	return f.Env.Subnet
}

// network returns the pod network of the family that is examined.
func (f *Facts) network() netip.Prefix {
	if f.V6 {
		return f.Env.Network6
	}
	return f.Env.Network
}

// sysctl returns a value by its name in the form of sysctl(8). ok is false if it does not exist.
func (f *Facts) sysctl(name string) (value string, ok bool) {
	value, ok = f.Sysctl[sysctlPath(name)]
	return value, ok
}

// number returns a numeric sysctl. ok is false if it does not exist.
func (f *Facts) number(name string) (n int, ok bool) {
	value, ok := f.sysctl(name)
	n, err := strconv.Atoi(value)
	return n, ok && err == nil
}

// sysctlPath returns the path below /proc/sys. As in sysctl(8), dots separate directories and a
// slash stands for a dot in a name.
func sysctlPath(name string) string {
	return strings.NewReplacer(".", "/", "/", ".").Replace(name)
}

// sysctlName returns the name of a setting of a device.
func sysctlName(format, device string) string {
	return fmt.Sprintf(format, strings.ReplaceAll(device, ".", "/"))
}

// link returns a device by its name.
func (f *Facts) link(name string) (ctrl.Link, bool) {
	i := slices.IndexFunc(f.Kernel.Links, func(l ctrl.Link) bool { return l.Name == name })
	if i < 0 {
		return ctrl.Link{}, false
	}
	return f.Kernel.Links[i], true
}

// bridges returns the bridges with an address in the node's subnet.
func (f *Facts) bridges() []string {
	var names []string
	for _, a := range f.Kernel.Addrs {
		_, isBridge := f.Ports[a.Dev]
		if isBridge && f.subnet().Masked().Contains(a.Prefix.Addr()) &&
			!slices.Contains(names, a.Dev) {
			names = append(names, a.Dev)
		}
	}
	return names
}

// podBridge reports whether CNI plugins give this name to the bridge of pods.
func podBridge(name string) bool {
	return strings.HasPrefix(name, "cni") || name == "cbr0" || name == "kube-bridge"
}

// backend returns the backend type: the daemon's, else that of the overlay device.
func (f *Facts) backend() string {
	if f.Daemon.Backend != "" {
		return f.Daemon.Backend
	}
	for _, name := range f.devices() {
		switch l, _ := f.link(name); l.Kind {
		case "":
		case ctrl.KindTUN:
			return "udp"
		default:
			return string(l.Kind)
		}
	}
	if slices.ContainsFunc(f.Kernel.Routes, func(r ctrl.Route) bool {
		return r.Protocol == ctrl.RouteProtocol && r.Via.IsValid()
	}) {
		return "host-gw"
	}
	return ""
}

// outerPerFamily reports whether the tunnel packets of a family have outer headers of the same
// family: with one device for both, nodes that have IPv4 are reached by IPv4.
func (f *Facts) outerPerFamily() bool {
	return f.backend() == "host-gw" || slices.ContainsFunc(f.devices(), func(name string) bool {
		return strings.Contains(name, "-v6")
	})
}

// tunnelPort returns the UDP port of the tunnel, 0 if the backend has none.
func (f *Facts) tunnelPort() uint16 {
	for _, l := range f.Kernel.Links {
		if l.Kind == ctrl.KindVXLAN && slices.Contains(f.devices(), l.Name) {
			return uint16(l.VXLAN.Port)
		}
	}
	defaults := map[string]uint16{"udp": 8285, "vxlan": 8472}
	port, ok := defaults[f.backend()]
	for key, value := range f.Daemon.Network.Backend {
		if n, err := strconv.ParseUint(string(value), 10, 16); ok && err == nil && n > 0 &&
			strings.EqualFold(key, "port") {
			port = uint16(n)
		}
	}
	return port
}

// underlay returns the name of the underlay interface: the daemon's, else that of the routes to the
// other nodes.
func (f *Facts) underlay() string {
	if i := f.Daemon.Interface; i != nil {
		return i.Name
	}
	for _, n := range f.Nodes {
		if n.Underlay.Err == nil && n.Underlay.Dev != "" {
			return n.Underlay.Dev
		}
	}
	return ""
}

// errElsewhere reports facts that only a doctor on that node can observe.
var errElsewhere = errors.New("visible on that node only")

// StatusFacts returns the facts about another node that the status of its daemon holds. A status of
// readiness alone has no more than the conditions.
func StatusFacts(status []byte, now time.Time) (*Facts, error) {
	d, err := ParseStatus(status)
	if err != nil {
		return nil, err
	}
	f := &Facts{Now: now, Daemon: d, Missing: map[source]error{}}
	for _, s := range []source{
		fromEnv, fromSubnet, fromKernel, fromFilter, fromProbes, fromPods, fromCNI, fromStore, fromHost,
	} {
		f.Missing[s] = errElsewhere
	}
	if d.Traffic == nil {
		f.Missing[fromTraffic] = errElsewhere
	}
	return f, nil
}

// errNotAsked reports facts that the caller did not ask for.
var errNotAsked = errors.New("not asked for")
