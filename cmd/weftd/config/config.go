// Package config reads the command line and the environment of weftd.
//
// flags.go is the table of the flags, values.go has the types of their values, args.go parses the
// command line and env.go the environment into the [Config] of this file.
package config

import (
	"cmp"
	"errors"
	"log/slog"
	"net/netip"
	"regexp"
	"time"

	"weft/dataplane"
	"weft/dataplane/feature"
)

// ErrHelp is returned if the command line asks for the usage text.
var ErrHelp = errors.New("help requested")

// Config holds the settings from the command line and the environment, grouped by subject.
type Config struct {
	// ShowVersion is --version: print the version and exit.
	ShowVersion bool

	Node     Node
	Lease    Lease
	Underlay Underlay
	Backend  Backend
	Rules    Rules
	Engine   Engine
	Health   Health
	Control  Control
	Log      Log

	// ProbeInterval is --probe-interval: the time between two echoes of the mesh probe to a node; 0
	// turns it off.
	ProbeInterval time.Duration

	// Given holds the flags that the command line or the environment sets, and their values;
	// secrets are hidden.
	Given map[string]string
	// Ignored lists the given flags without effect, in order.
	Ignored []string
	// Unknown lists variables that look like those of flags, but set none.
	Unknown []UnknownVariable
}

// Node holds the node's name and the file that describes its subnet.
type Node struct {
	// Name is --node-name or $NODE_NAME; if empty, the host name is used.
	Name string
	// SubnetFile is the path of subnet.env.
	SubnetFile string
}

// Lease selects the lease store. Etcd is used unless File or Kube.Enabled is set.
type Lease struct {
	Etcd Etcd
	Kube Kube
	// File is --lease-file: the path of a file with nodes and subnets.
	File string
	// RenewMargin is the time before expiry at which the lease is renewed.
	RenewMargin time.Duration
}

// Etcd holds the settings of the etcd client.
type Etcd struct {
	Endpoints                 []string // URLs or host:port
	Prefix                    string   // of every key
	KeyFile, CertFile, CAFile string   // paths of PEM files; empty if not used
	Username, Password        string
}

// Kube holds the settings of the Kubernetes lease store.
type Kube struct {
	// Enabled is --kube-subnet-mgr.
	Enabled bool
	// Pod and Namespace are $POD_NAME and $POD_NAMESPACE: the pod whose spec names the node.
	Pod, Namespace   string
	APIURL           string
	Kubeconfig       string // path
	AnnotationPrefix string
	// NetworkFile is --net-config-path: the path of the network config.
	NetworkFile string
	// SetCondition is --set-node-network-unavailable: maintain the node's NetworkUnavailable
	// condition.
	SetCondition bool
}

// Underlay selects the interface to the other nodes and the addresses published to them. The
// fields of the interface are tried in the order Interfaces, Patterns, CanReach.
type Underlay struct {
	Interfaces []string // names or addresses
	Patterns   []*regexp.Regexp
	CanReach   netip.Addr // invalid if not given

	// PublicIP and PublicIPv6 replace the interface's addresses in the lease if valid.
	PublicIP, PublicIPv6 netip.Addr
}

// Backend holds settings that concern a single backend.
type Backend struct {
	// WireGuardKeyFile is --wireguard-key-file or else $WIREGUARD_KEY_FILE, the path of the private
	// key.
	WireGuardKeyFile string
	// BlackholeRoute is --ip-blackhole-route: keep a blackhole route for the node's own subnet.
	BlackholeRoute bool
}

// Rules holds the settings of the packet filter.
type Rules struct {
	// Masquerade is --ip-masq.
	Masquerade bool
	// NoRandomPorts is --ip-masq-fully-random-disable.
	NoRandomPorts bool
	// KeepSource is --keep-source; see [Rules.KeepsSource].
	KeepSource Tristate
	// Forward is --iptables-forward-rules: accept forwarded packets of the network.
	Forward bool
	// NoTrack is --notrack: exempt tunnel packets from connection tracking.
	NoTrack bool
	// AllowPodsToTunnelPort is --allow-pods-to-tunnel-port.
	AllowPodsToTunnelPort bool
	// Resync is the interval between two checks of the rules.
	Resync time.Duration
}

// KeepsSource reports whether the source addresses of pods are protected from NAT rules of other
// programs. That does not depend on --ip-masq: dockerd has its rule in either case.
func (r Rules) KeepsSource() bool { return r.KeepSource != Off }

// Tristate is the value of a flag that is on, off or decided by other settings.
type Tristate int

// Values of a [Tristate].
const (
	Auto Tristate = iota
	On
	Off
)

// Engine holds the settings of the udp backend's userspace dataplane.
type Engine struct {
	Mode dataplane.Mode
	// DisabledFeatures is --engine-without.
	DisabledFeatures []feature.Name
	SourceCheck      dataplane.SourceCheck
	// Workers is the number of packet workers; 0 means one per CPU.
	Workers int
	Spin    bool // busy-poll before sleeping
	// SourcePort is the UDP source port of the first worker; 0 means the backend's port.
	SourcePort          int
	OuterECN, OuterDSCP bool
	FastPath            dataplane.FastPathMode
}

// Health holds the settings of the health and metrics server.
type Health struct {
	IP   string // address or host name to listen on
	Port int    // 0 disables the server
	// Metrics is --metrics: the clients that may read /metrics.
	Metrics string
	// Page is --page: the clients that may open the status page and read the whole status.
	Page string
	// Profile is --pprof: serve profiles at /debug/pprof/.
	Profile bool
}

// The values of [Health.Metrics] and [Health.Page].
const (
	ClientsAll   = "all"   // every client
	ClientsLocal = "local" // clients on this node
	ClientsOff   = "off"   // none
)

// Control holds the settings of the control socket.
type Control struct {
	// Socket is --control-socket, a path; empty disables the socket.
	Socket string
}

// Log holds the settings of the log.
type Log struct {
	Verbosity int    // -v
	Format    string // "text" or "json"
}

// Level returns the log level: debug if -v is above 0, else info.
func (l Log) Level() slog.Level {
	if l.Verbosity > 0 {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// Parse reads the command line, then the environment, which has the form of os.Environ. With
// --version the environment is ignored, as a bad variable must not hide the version.
func Parse(args, environ []string) (*Config, error) {
	var c Config
	all := options(&c)
	given, err := parseArgs(all, args)
	if err != nil || c.ShowVersion {
		return &c, err
	}
	env := parseEnviron(environ)
	if err := env.apply(all, given); err != nil {
		return &c, err
	}
	c.Node.Name = cmp.Or(c.Node.Name, env["NODE_NAME"])
	c.Lease.Kube.Pod, c.Lease.Kube.Namespace = env["POD_NAME"], env["POD_NAMESPACE"]
	c.Backend.WireGuardKeyFile = cmp.Or(c.Backend.WireGuardKeyFile,
		env["WIREGUARD_KEY_FILE"], "/run/flannel/wgkey")
	c.Unknown = env.unknown(all, given)
	c.describe(all, given)
	return &c, c.check(given)
}

// describe sets Given and Ignored.
func (c *Config) describe(options []option, given map[string]bool) {
	c.Given = map[string]string{}
	for _, o := range options {
		if !given[o.name] {
			continue
		}
		c.Given[o.name] = o.shown()
		if _, ok := o.value.(ignored); ok {
			c.Ignored = append(c.Ignored, "--"+o.name)
		}
	}
}

// check rejects combinations of flags. Each value is valid by itself at this point.
func (c *Config) check(given map[string]bool) error {
	etcd := c.Lease.Etcd
	inEtcd := !c.Lease.Kube.Enabled && c.Lease.File == ""
	switch {
	case c.Lease.Kube.Enabled && c.Lease.File != "":
		return errors.New("--kube-subnet-mgr and --lease-file: mutually exclusive")
	case c.Lease.File != "" && given["etcd-endpoints"]:
		return errors.New("--lease-file and --etcd-endpoints: mutually exclusive")
	case (etcd.KeyFile == "") != (etcd.CertFile == ""):
		return errors.New("--etcd-keyfile and --etcd-certfile: set both or neither")
	case inEtcd && (etcd.Username == "") != (etcd.Password == ""):
		// The etcd client would leave both out, and etcd would refuse a user without a name.
		return errors.New("--etcd-username and --etcd-password: set both or neither")
	case c.Health.Profile && c.Health.Port == 0:
		return errors.New("--pprof: requires --healthz-port")
	}
	return nil
}
