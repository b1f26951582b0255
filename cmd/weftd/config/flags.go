package config

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"weft/cmd/control"
	"weft/dataplane"
	"weft/dataplane/feature"
)

// options returns every flag, bound to c, and sets c to the defaults.
func options(c *Config) []option {
	return append(flannelOptions(c), weftOptions(c)...)
}

// filePath describes the values of flags for a file.
const filePath = "a file path"

// flannelOptions returns flannel's command line: names, types and defaults are those of v0.28.9.
func flannelOptions(c *Config) []option {
	return slices.Concat(
		etcdOptions(c), kubeOptions(c), underlayOptions(c), nodeOptions(c), processOptions(c),
		klogOptions())
}

func etcdOptions(c *Config) []option {
	e := &c.Lease.Etcd
	return []option{
		{name: "etcd-endpoints",
			accepts: "a comma-separated list of URLs, http://host:port or https://host:port",
			usage:   "etcd servers",
			value:   endpoints(&e.Endpoints, "http://127.0.0.1:4001,http://127.0.0.1:2379")},
		{name: "etcd-prefix", accepts: "a key prefix",
			usage: "prefix of the network config and the leases in etcd",
			value: text(&e.Prefix, "/coreos.com/network")},
		{name: "etcd-keyfile", accepts: filePath,
			usage: "client key for etcd",
			value: text(&e.KeyFile, "")},
		{name: "etcd-certfile", accepts: filePath,
			usage: "client certificate for etcd",
			value: text(&e.CertFile, "")},
		{name: "etcd-cafile", accepts: filePath,
			usage: "certificate authority of the etcd servers",
			value: text(&e.CAFile, "")},
		{name: "etcd-username", accepts: "a name",
			usage: "etcd user",
			value: text(&e.Username, "")},
		{name: "etcd-password", accepts: "a password",
			usage: "etcd password",
			value: text(&e.Password, ""), secret: true},
	}
}

func kubeOptions(c *Config) []option {
	k := &c.Lease.Kube
	return []option{
		{name: "kube-subnet-mgr", accepts: trueOrFalse,
			usage: "store leases in Kubernetes Node objects instead of etcd",
			value: boolean(&k.Enabled, false)},
		{name: "kube-api-url", accepts: "a URL",
			usage: "Kubernetes API server",
			value: text(&k.APIURL, "")},
		{name: "kubeconfig-file", accepts: filePath,
			usage: "Kubernetes client config",
			value: text(&k.Kubeconfig, "")},
		{name: "kube-annotation-prefix", accepts: "a prefix",
			usage: "prefix of the node annotations",
			value: text(&k.AnnotationPrefix, "flannel.alpha.coreos.com")},
		{name: "net-config-path", accepts: filePath,
			usage: "network config for Kubernetes",
			value: text(&k.NetworkFile, "/etc/kube-flannel/net-conf.json")},
		{name: "set-node-network-unavailable", accepts: trueOrFalse,
			usage: "set the node's NetworkUnavailable condition",
			value: boolean(&k.SetCondition, true)},
	}
}

func underlayOptions(c *Config) []option {
	u := &c.Underlay
	return []option{
		{name: "iface", accepts: "an interface name or one of its addresses",
			usage: "interface to the other nodes; repeatable, the first that exists is used",
			value: names(&u.Interfaces)},
		{name: "iface-regex", accepts: "a regular expression",
			usage: "interface whose address or name matches, tried after --iface; repeatable",
			value: patterns(&u.Patterns)},
		{name: "iface-can-reach", accepts: "an IP address",
			usage: "interface of the route to this address, tried last",
			value: address(&u.CanReach, anyFamily)},
		{name: "public-ip", accepts: "an IPv4 address",
			usage: "IPv4 address that other nodes send to",
			value: address(&u.PublicIP, ipv4)},
		{name: "public-ipv6", accepts: "an IPv6 address",
			usage: "IPv6 address that other nodes send to",
			value: address(&u.PublicIPv6, ipv6)},
	}
}

func nodeOptions(c *Config) []option {
	return []option{
		{name: "subnet-file", accepts: filePath,
			usage: "file to write the node's subnet to, for CNI and Docker",
			value: nonEmpty(&c.Node.SubnetFile, "/run/flannel/subnet.env")},
		{name: "subnet-lease-renew-margin", accepts: "minutes from 1 to 1439",
			usage: "renew the lease this long before it expires",
			value: duration(&c.Lease.RenewMargin, time.Minute, 60, 1, 1439)},
		{name: "ip-masq", accepts: trueOrFalse,
			usage: "masquerade packets from pods to destinations outside the network",
			value: boolean(&c.Rules.Masquerade, false)},
		{name: "ip-masq-fully-random-disable", accepts: trueOrFalse,
			usage: "masquerade without random source ports",
			value: boolean(&c.Rules.NoRandomPorts, false)},
		{name: "iptables-resync", accepts: "seconds from 1",
			usage: "interval between checks of the packet filter rules",
			value: duration(&c.Rules.Resync, time.Second, 5, 1, math.MaxInt32)},
		{name: "iptables-forward-rules", accepts: trueOrFalse,
			usage: "accept forwarded packets of the network",
			value: boolean(&c.Rules.Forward, true)},
		{name: "ip-blackhole-route", accepts: trueOrFalse,
			usage: "keep a blackhole route for the node's own subnet",
			value: boolean(&c.Backend.BlackholeRoute, false)},
	}
}

func processOptions(c *Config) []option {
	return []option{
		{name: "healthz-ip", accepts: "an IP address or a host name",
			usage: "address of the health and metrics server",
			value: host(&c.Health.IP, "0.0.0.0")},
		{name: "healthz-port", accepts: "a port from 1 to 65535, or 0 to disable",
			usage: "port of the health and metrics server",
			value: number(&c.Health.Port, 0, 0, math.MaxUint16)},
		{name: "version", accepts: trueOrFalse,
			usage: "print version, commit and Go version and exit",
			value: boolean(&c.ShowVersion, false), noEnv: true},
		{name: "v", accepts: "a number from 0; above 0 enables debug messages",
			usage: "log verbosity",
			value: number(&c.Log.Verbosity, 0, 0, math.MaxInt32)},
	}
}

// klogOptions returns the flags of klog and glog, which have no effect. flannel accepts --vmodule
// and --log_backtrace_at only, but its earlier versions and many unit files have the others.
func klogOptions() []option {
	options := []option{
		{name: "vmodule"},
		{name: "log_backtrace_at"},
		{name: "log_dir"},
		{name: "log_file"},
		{name: "log_file_max_size"},
		{name: "log_link"},
		{name: "logbuflevel"},
		{name: "stderrthreshold"},
		{name: "add_dir_header", value: ignored(true)},
		{name: "alsologtostderr", value: ignored(true)},
		{name: "alsologtostderrthreshold"},
		{name: "legacy_stderr_threshold_behavior", value: ignored(true)},
		{name: "logtostderr", value: ignored(true)},
		{name: "one_output", value: ignored(true)},
		{name: "skip_headers", value: ignored(true)},
		{name: "skip_log_headers", value: ignored(true)},
	}
	for i := range options {
		o := &options[i]
		o.accepts, o.usage = "any text", "no effect"
		if o.value == nil {
			o.value = ignored(false)
		}
	}
	return options
}

// weftOptions returns the flags that flannel does not have.
func weftOptions(c *Config) []option {
	options := slices.Concat(engineOptions(c), []option{
		{name: "lease-file", accepts: "the path of a YAML or JSON file",
			usage: "read nodes and subnets from this file instead of etcd",
			value: text(&c.Lease.File, "")},
		{name: "node-name", accepts: "a name",
			usage: "name of this node; if empty, $NODE_NAME, then the host name",
			value: text(&c.Node.Name, "")},
		{name: "wireguard-key-file", accepts: "a path",
			usage: "WireGuard's private key; if empty, $WIREGUARD_KEY_FILE, then /run/flannel/wgkey",
			value: text(&c.Backend.WireGuardKeyFile, "")},
		{name: "keep-source", accepts: "true, false or auto",
			usage: "protect pod source addresses between nodes from NAT rules of other programs",
			value: tristate(&c.Rules.KeepSource)},
		{name: "notrack", accepts: trueOrFalse,
			usage: "exempt packets of the udp and vxlan backends from connection tracking",
			value: boolean(&c.Rules.NoTrack, true)},
		{name: "allow-pods-to-tunnel-port", accepts: trueOrFalse,
			usage: "let pods send to the UDP port of the tunnel",
			value: boolean(&c.Rules.AllowPodsToTunnelPort, false)},
		{name: "probe-interval", accepts: "seconds from 1 to 3600, or 0 to disable",
			usage: "interval of ICMP echoes to each other node through the overlay",
			value: duration(&c.ProbeInterval, time.Second, 10, 0, 3600)},
		{name: "log-format", accepts: "text or json",
			usage: "format of the log on stderr",
			value: oneOf(&c.Log.Format, "text", "json")},
		{name: "metrics", accepts: "all, local or off",
			usage: "clients that may read /metrics on the health port",
			value: oneOf(&c.Health.Metrics, ClientsAll, ClientsLocal, ClientsOff)},
		{name: "page", accepts: "off, local or all",
			usage: "clients that may open the status page on the health port",
			value: oneOf(&c.Health.Page, ClientsOff, ClientsLocal, ClientsAll)},
		{name: "control-socket", accepts: "the path of a socket, or nothing to disable",
			usage: "socket on which the weft command asks this daemon",
			value: text(&c.Control.Socket, control.DefaultSocket)},
		{name: "pprof", accepts: trueOrFalse,
			usage: "serve profiles to local clients at /debug/pprof/",
			value: boolean(&c.Health.Profile, false)},
	})
	for i := range options {
		options[i].weftOnly = true
	}
	return options
}

// engineOptions returns the flags of the udp backend.
func engineOptions(c *Config) []option {
	e := &c.Engine
	return []option{
		{name: "engine", accepts: "auto, offload or portable",
			usage: "packet I/O of the udp backend; auto uses offload where available",
			value: parsed(&e.Mode, dataplane.ParseMode, dataplane.ModeAuto.String())},
		{name: "engine-without", accepts: "a comma-separated list of " + featureNames(),
			usage: "kernel features to disable",
			value: parsed(&e.DisabledFeatures, parseFeatures, "")},
		{name: "source-check", accepts: "strict, known or off",
			usage: "check that the sending node owns the inner source address",
			value: parsed(&e.SourceCheck,
				dataplane.ParseSourceCheck, dataplane.CheckKnown.String())},
		{name: "workers", accepts: "a number from 0 to 127",
			usage: "number of packet workers; 0 means one per CPU",
			value: number(&e.Workers, 0, 0, dataplane.MaxWorkers)},
		{name: "spin", accepts: trueOrFalse,
			usage: "busy-poll for up to 200 µs before sleeping",
			value: boolean(&e.Spin, true)},
		{name: "source-port", accepts: "a number from 0 to 65535",
			usage: "UDP source port of the first worker; 0 means the backend's port",
			value: number(&e.SourcePort, 0, 0, math.MaxUint16)},
		{name: "outer-ecn", accepts: trueOrFalse,
			usage: "copy ECN marks between inner and outer header (RFC 6040)",
			value: boolean(&e.OuterECN, false)},
		{name: "outer-dscp", accepts: trueOrFalse,
			usage: "copy the DSCP of inner packets to the outer header",
			value: boolean(&e.OuterDSCP, false)},
		{name: "fast-path", accepts: "auto, off or require",
			usage: "let the kernel carry packets that need no decision",
			value: parsed(&e.FastPath, dataplane.ParseFastPathMode,
				dataplane.FastPathAuto.String())},
	}
}

func featureNames() string {
	var names []string
	for _, f := range feature.All() {
		names = append(names, string(f))
	}
	return strings.Join(names, ", ")
}

func parseFeatures(s string) ([]feature.Name, error) {
	if s == "" {
		return nil, nil
	}
	var list []feature.Name
	for name := range strings.SplitSeq(s, ",") {
		f := feature.Name(strings.TrimSpace(name))
		if !slices.Contains(feature.All(), f) {
			return nil, errInvalid
		}
		list = append(list, f)
	}
	return list, nil
}

// PrintUsage writes the usage text: the flags with a line of description each.
func PrintUsage(w io.Writer) error {
	var c Config
	var b strings.Builder
	b.WriteString("weftd carries pod traffic between the nodes of a cluster.\n\n" +
		"Usage: weftd [flags]\n" +
		"       weftd cleanup   remove the devices, routes and rules of a stopped weftd\n\n" +
		"A flag is given as -x or --x, -x=v or -x v, or as an environment variable: WEFTD_X\n" +
		"or, for the flags that flannel has, FLANNELD_X. The command line has precedence over\n" +
		"the environment, WEFTD_X over FLANNELD_X.\n")
	title := "\nFlags of flannel:\n"
	for _, group := range [][]option{flannelOptions(&c), weftOptions(&c)} {
		b.WriteString(title)
		for _, o := range group {
			fmt.Fprintf(&b, "  --%s\n\t%s (%s", o.name, o.usage, o.accepts)
			if def := o.value.String(); def != "" {
				fmt.Fprintf(&b, "; default %s", def)
			}
			b.WriteString(")\n")
		}
		title = "\nFlags of weftd only:\n"
	}
	_, err := io.WriteString(w, b.String())
	return err
}
