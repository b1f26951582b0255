package main

import (
	"errors"
	"log/slog"
	"net/netip"
	"regexp"

	"weft/dataplane"
)

// config is everything the command line and the environment can say. The
// comments name the flag where the field's name does not.
type config struct {
	etcd  etcdConfig
	kube  kubeConfig
	iface ifaceConfig

	publicIP   netip.Addr // invalid: the interface's address
	publicIPv6 netip.Addr

	subnetFile   string
	renewMargin  int // minutes, --subnet-lease-renew-margin
	ipMasq       bool
	plainMasq    bool // --ip-masq-fully-random-disable
	resync       int  // seconds, --iptables-resync
	forwardRules bool // --iptables-forward-rules
	keepSource   choice
	noTrack      bool // --notrack
	blackhole    bool // --ip-blackhole-route
	healthzIP    string
	healthzPort  int // 0: no health server
	verbosity    int // -v
	vmodule      string
	backtraceAt  string
	logFormat    string
	leaseFile    string
	wireGuardKey string // path of the key file; only a variable sets it
	nodeName     string
	sourceCheck  dataplane.SourceCheck
	engine       dataplane.Mode
	without      []dataplane.Feature // --engine-without
	workers      int                 // 0: one for each CPU
	spin         bool
	sourcePort   int // of the first worker; 0: the backend's port
	outerECN     bool
	outerDSCP    bool
	profile      bool // --pprof
	showVersion  bool
}

// choice is what a flag says that need not be decided.
type choice int

const (
	undecided choice = iota
	chosen
	declined
)

// keepsSource says whether pods' source addresses are protected from others'
// rules: as --keep-source says, else along with --ip-masq.
func (c *config) keepsSource() bool {
	return c.keepSource == chosen || c.keepSource == undecided && c.ipMasq
}

// etcdConfig is how to reach etcd.
type etcdConfig struct {
	endpoints                 []string
	prefix                    string
	keyFile, certFile, caFile string
	username, password        string
}

// kubeConfig is about leases on the Node objects of a Kubernetes cluster.
type kubeConfig struct {
	pod, namespace   string // $POD_NAME and $POD_NAMESPACE: where to ask for the node's name
	subnetMgr        bool
	apiURL           string
	configFile       string
	annotationPrefix string
	netConfigPath    string
	setUnavailable   bool
}

// ifaceConfig is how to choose the interface to the other nodes, in this order.
type ifaceConfig struct {
	names    []string // names or addresses
	patterns []*regexp.Regexp
	canReach netip.Addr // invalid: not given
}

// check refuses flags that do not go together. What a single flag takes has
// been checked by then.
func (c *config) check() error {
	switch {
	case c.kube.subnetMgr && c.leaseFile != "":
		return errors.New("--kube-subnet-mgr and --lease-file: only one of them may be given")
	case (c.etcd.keyFile == "") != (c.etcd.certFile == ""):
		return errors.New("--etcd-keyfile and --etcd-certfile: give both or neither")
	case c.profile && c.healthzPort == 0:
		return errors.New("--pprof: needs --healthz-port, the port it is served on")
	}
	return nil
}

// level is the log level that -v asks for: 0 is what an operator wants to
// read, anything above adds what a developer does.
func (c *config) level() slog.Level {
	if c.verbosity > 0 {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}
