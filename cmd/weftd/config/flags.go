package config

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/dataplane"
	"weft/dataplane/feature"
)

// option is one flag.
type option struct {
	name  string
	takes string // what a value may be: for errors and for the usage text
	usage string
	value value
	own   bool // not one of flannel's flags, so FLANNELD_* does not set it
	// cli is true for a flag that only the command line can set.
	cli bool
}

// A command line is a sequence of -name=value, -name value and, for a flag that
// is yes or no, -name. One dash is as good as two. This is the syntax of Go's
// flag package, and so flannel's; flag itself reports a bad value without what
// would be a good one, and leaves what follows the first argument unread.

// parseArgs sets the options that the command line names and returns their
// names. An error names the flag and what it takes.
func parseArgs(options []option, args []string) (given map[string]bool, err error) {
	given = map[string]bool{}
	before := ""
	for len(args) > 0 && !(len(args) == 1 && args[0] == "--") {
		arg := args[0]
		args = args[1:]
		name, val, hasVal := splitArg(arg)
		if name == "" {
			return nil, notAFlag(arg, before)
		}
		o, err := find(options, name)
		if err != nil {
			return nil, err
		}
		switch {
		case hasVal:
		case o.value.isBool():
			val = "true"
		case len(args) == 0:
			return nil, fmt.Errorf("--%s: needs a value, %s", name, o.takes)
		default:
			val, args = args[0], args[1:]
		}
		if err := o.set("--"+name, val); err != nil {
			return nil, err
		}
		given[name] = true
		before = ""
		if o.value.isBool() && !hasVal {
			before = name
		}
	}
	return given, nil
}

// splitArg takes "--name=value" apart. The name is empty if arg is no flag.
func splitArg(arg string) (name, val string, hasVal bool) {
	rest, ok := strings.CutPrefix(arg, "-")
	if !ok {
		return "", "", false
	}
	name, val, hasVal = strings.Cut(strings.TrimPrefix(rest, "-"), "=")
	if strings.HasPrefix(name, "-") {
		return "", "", false
	}
	return name, val, hasVal
}

// notAFlag is the error about an argument. flannel passes over it and over every
// flag behind it, so that a forgotten dash silently changes what is done. before
// is the flag in front of it if that was one without a value.
func notAFlag(arg, before string) error {
	if _, err := strconv.ParseBool(arg); err == nil && before != "" {
		return fmt.Errorf("argument %q: only flags are taken; write --%s=%s", arg, before, arg)
	}
	return fmt.Errorf("argument %q: only flags are taken; weftd -h lists them", arg)
}

func find(options []option, name string) (option, error) {
	if isHelp(name) {
		return option{}, ErrHelp
	}
	for _, o := range options {
		if o.name == name {
			return o, nil
		}
	}
	return option{}, fmt.Errorf("--%s: no such flag; weftd -h lists them", name)
}

// set gives the option a value that came from where: a flag or a variable.
func (o option) set(where, val string) error {
	if err := o.value.Set(val); err != nil {
		return fmt.Errorf("%s: %q is not allowed, it takes %s", where, val, o.takes)
	}
	return nil
}

// options returns every flag, bound to c and with c set to the defaults.
func options(c *Config) []option {
	return append(flannelOptions(c), ownOptions(c)...)
}

// filePath is what a flag for a file takes.
const filePath = "the path of a file"

// flannelOptions is flannel's whole command line: names, types and defaults are
// those of its v0.28.9.
func flannelOptions(c *Config) []option {
	return slices.Concat(etcdOptions(c), kubeOptions(c), underlayOptions(c), nodeOptions(c), processOptions(c))
}

func etcdOptions(c *Config) []option {
	return []option{
		{name: "etcd-endpoints", takes: "a comma-separated list of URLs, http://host:port or https://host:port",
			usage: "etcd servers", value: endpoints(&c.Lease.Etcd.Endpoints, "http://127.0.0.1:4001,http://127.0.0.1:2379")},
		{name: "etcd-prefix", takes: "a key prefix", usage: "where the config and the leases lie in etcd",
			value: text(&c.Lease.Etcd.Prefix, "/coreos.com/network")},
		{name: "etcd-keyfile", takes: filePath, usage: "client key for etcd", value: text(&c.Lease.Etcd.KeyFile, "")},
		{name: "etcd-certfile", takes: filePath, usage: "client certificate for etcd", value: text(&c.Lease.Etcd.CertFile, "")},
		{name: "etcd-cafile", takes: filePath, usage: "certificate authority of the etcd servers", value: text(&c.Lease.Etcd.CAFile, "")},
		{name: "etcd-username", takes: "a name", usage: "etcd user", value: text(&c.Lease.Etcd.Username, "")},
		{name: "etcd-password", takes: "a password", usage: "etcd password", value: text(&c.Lease.Etcd.Password, "")},
	}
}

func kubeOptions(c *Config) []option {
	return []option{
		{name: "kube-subnet-mgr", takes: yesOrNo, usage: "leases on the Node objects of Kubernetes instead of etcd",
			value: yesNo(&c.Lease.Kube.Enabled, false)},
		{name: "kube-api-url", takes: "a URL", usage: "Kubernetes API server", value: text(&c.Lease.Kube.APIURL, "")},
		{name: "kubeconfig-file", takes: filePath, usage: "Kubernetes client config", value: text(&c.Lease.Kube.Kubeconfig, "")},
		{name: "kube-annotation-prefix", takes: "a prefix", usage: "prefix of the node annotations",
			value: text(&c.Lease.Kube.AnnotationPrefix, "flannel.alpha.coreos.com")},
		{name: "net-config-path", takes: filePath, usage: "network config with Kubernetes",
			value: text(&c.Lease.Kube.NetworkFile, "/etc/kube-flannel/net-conf.json")},
		{name: "set-node-network-unavailable", takes: yesOrNo, usage: "set the node's NetworkUnavailable condition",
			value: yesNo(&c.Lease.Kube.SetCondition, true)},
	}
}

func underlayOptions(c *Config) []option {
	return []option{
		{name: "iface", takes: "an interface name or one of its addresses",
			usage: "interface to the other nodes; repeat it for more, the first that exists is used",
			value: names(&c.Underlay.Interfaces)},
		{name: "iface-regex", takes: "a regular expression",
			usage: "interface whose address or name matches, after every --iface; repeatable",
			value: patterns(&c.Underlay.Patterns)},
		{name: "iface-can-reach", takes: "an IP address", usage: "interface that the kernel would use to reach this, tried last",
			value: address(&c.Underlay.CanReach, anyFamily)},
		{name: "public-ip", takes: "an IPv4 address", usage: "address that other nodes send to",
			value: address(&c.Underlay.PublicIP, ipv4)},
		{name: "public-ipv6", takes: "an IPv6 address", usage: "IPv6 address that other nodes send to",
			value: address(&c.Underlay.PublicIPv6, ipv6)},
	}
}

func nodeOptions(c *Config) []option {
	return []option{
		{name: "subnet-file", takes: filePath, usage: "where to write the node's subnet for CNI and Docker",
			value: filled(&c.Node.SubnetFile, "/run/flannel/subnet.env")},
		{name: "subnet-lease-renew-margin", takes: "whole minutes from 1 to 1439",
			usage: "renew the lease this long before it runs out", value: duration(&c.Lease.RenewMargin, time.Minute, 60, 1, 1439)},
		{name: "ip-masq", takes: yesOrNo, usage: "masquerade what pods send out of the network",
			value: yesNo(&c.Rules.Masquerade, false)},
		{name: "ip-masq-fully-random-disable", takes: yesOrNo, usage: "masquerade without random source ports",
			value: yesNo(&c.Rules.NoRandomPorts, false)},
		{name: "iptables-resync", takes: "whole seconds from 1", usage: "period of the check of the packet filter rules",
			value: duration(&c.Rules.Resync, time.Second, 5, 1, math.MaxInt32)},
		{name: "iptables-forward-rules", takes: yesOrNo, usage: "accept forwarded packets of the network",
			value: yesNo(&c.Rules.Forward, true)},
		{name: "ip-blackhole-route", takes: yesOrNo, usage: "keep a blackhole route for the node's own subnet",
			value: yesNo(&c.Backend.BlackholeRoute, false)},
	}
}

func processOptions(c *Config) []option {
	return []option{
		{name: "healthz-ip", takes: "an IP address or a host name", usage: "address of the health and metrics server",
			value: host(&c.Health.IP, "0.0.0.0")},
		{name: "healthz-port", takes: "a port from 1 to 65535, or 0 for none", usage: "port of the health and metrics server",
			value: number(&c.Health.Port, 0, 0, math.MaxUint16)},
		{name: "version", takes: yesOrNo, usage: "print version, commit and Go version on stdout and exit", value: yesNo(&c.ShowVersion, false), cli: true},
		{name: "v", takes: "a whole number from 0; above 0 shows debug messages", usage: "log level",
			value: number(&c.Log.Verbosity, 0, 0, math.MaxInt32)},
		{name: "vmodule", takes: "any text", usage: "has no effect", value: text(&c.Log.VModule, "")},
		{name: "log_backtrace_at", takes: "any text", usage: "has no effect", value: text(&c.Log.BacktraceAt, "")},
	}
}

// ownOptions are the flags that flannel does not have.
func ownOptions(c *Config) []option {
	return []option{
		{name: "lease-file", takes: "the path of a YAML or JSON file", own: true,
			usage: "nodes and subnets from this file instead of etcd", value: text(&c.Lease.File, "")},
		{name: "node-name", takes: "a name", own: true,
			usage: "this node's name; without it $NODE_NAME, then the host name", value: text(&c.Node.Name, "")},
		{name: "source-check", takes: "strict, known or off", own: true,
			usage: "what the sender of a packet must be: known is a node that owns the inner source if anyone does, " +
				"strict refuses inner sources of nobody too",
			value: parsed(&c.Engine.SourceCheck, dataplane.ParseSourceCheck, dataplane.CheckKnown.String())},
		{name: "engine", takes: "auto, offload or portable", own: true,
			usage: "how the udp backend moves packets: auto uses what the kernel offers, offload insists on it, " +
				"portable takes them one by one",
			value: parsed(&c.Engine.Mode, dataplane.ParseMode, dataplane.ModeAuto.String())},
		{name: "engine-without", takes: "a comma-separated list of " + featureNames(), own: true,
			usage: "abilities of the kernel not to use", value: parsed(&c.Engine.Without, parseFeatures, "")},
		{name: "keep-source", takes: "true, false or auto", own: true,
			usage: "keep pods' source addresses between nodes where others' rules, such as dockerd's, would rewrite them; " +
				"auto is as --ip-masq", value: autoOrYesNo(&c.Rules.KeepSource)},
		{name: "notrack", takes: yesOrNo, own: true,
			usage: "keep the packets of the udp and vxlan backends out of connection tracking, where the host can",
			value: yesNo(&c.Rules.NoTrack, true)},
		{name: "workers", takes: "a whole number from 0 to 127", own: true,
			usage: "packet workers; 0 is one for each CPU", value: number(&c.Engine.Workers, 0, 0, dataplane.MaxWorkers)},
		{name: "spin", takes: yesOrNo, own: true,
			usage: "let a packet worker look for the next packet a little longer before it sleeps, while traffic goes on; " +
				"never on one CPU, nor on one that other programs want for themselves", value: yesNo(&c.Engine.Spin, true)},
		{name: "source-port", takes: "a whole number from 0 to 65535", own: true,
			usage: "packet worker i sends from this UDP port plus i, for networks that spread by port; 0 is the backend's port",
			value: number(&c.Engine.SourcePort, 0, 0, math.MaxUint16)},
		{name: "outer-ecn", takes: yesOrNo, own: true,
			usage: "carry congestion marks (ECN) between inner and outer header as RFC 6040 says; every node must",
			value: yesNo(&c.Engine.OuterECN, false)},
		{name: "outer-dscp", takes: yesOrNo, own: true,
			usage: "copy the traffic class (DSCP) of inner packets to the outer header", value: yesNo(&c.Engine.OuterDSCP, false)},
		{name: "log-format", takes: "text or json", own: true, usage: "format of the log on stderr",
			value: oneOf(&c.Log.Format, "text", "json")},
		{name: "pprof", takes: yesOrNo, own: true, usage: "serve profiles at /debug/pprof/ on the health port",
			value: yesNo(&c.Health.Profile, false)},
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
			return nil, errNotAllowed
		}
		list = append(list, f)
	}
	return list, nil
}

// PrintUsage writes one line a flag.
func PrintUsage(w io.Writer) error {
	var c Config
	var b strings.Builder
	b.WriteString("weftd carries pod traffic between the nodes of a cluster. Usage: weftd [flags]\n" +
		"       weftd cleanup   removes the devices, routes and rules that a stopped weftd has left in the kernel\n\n" +
		"Each flag can be given as -x or --x, -x=v or -x v, or as an environment variable: WEFTD_X,\n" +
		"then FLANNELD_X for the flags that flannel has. The command line wins.\n")
	title := "\nFlags of flannel:\n"
	for _, group := range [][]option{flannelOptions(&c), ownOptions(&c)} {
		b.WriteString(title)
		for _, o := range group {
			fmt.Fprintf(&b, "  --%s\n\t%s; takes %s", o.name, o.usage, o.takes)
			if def := o.value.String(); def != "" {
				fmt.Fprintf(&b, " (default %s)", def)
			}
			b.WriteByte('\n')
		}
		title = "\nFlags of weftd alone:\n"
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// IsHelp reports whether the argument asks for the usage text.
func IsHelp(arg string) bool {
	name, _, _ := splitArg(arg)
	return isHelp(name)
}

func isHelp(name string) bool { return name == "h" || name == "help" }
