package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"maps"
	"math"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"weft/ctrl"
	"weft/dataplane"
)

// defaults is the config of an empty command line: for flannel's flags the
// values of its own source, main.go at v0.28.9.
func defaults() config {
	return config{
		etcd: etcdConfig{
			endpoints: []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"},
			prefix:    "/coreos.com/network",
		},
		kube: kubeConfig{
			annotationPrefix: "flannel.alpha.coreos.com",
			netConfigPath:    "/etc/kube-flannel/net-conf.json",
			setUnavailable:   true,
		},
		subnetFile:   "/run/flannel/subnet.env",
		renewMargin:  60,
		resync:       5,
		forwardRules: true,
		noTrack:      true,
		spin:         true,
		healthzIP:    "0.0.0.0",
		logFormat:    "text",
		sourceCheck:  dataplane.CheckKnown,
		wireGuardKey: "/run/flannel/wgkey",
	}
}

func noEnv(string) string { return "" }

// env looks variables up in a map.
func env(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

// flagTests has a value for each flag and what it does to the config.
var flagTests = []struct {
	flag, value string
	want        func(*config)
}{
	{"etcd-endpoints", "https://a:1, unix://b,c:2", func(c *config) { c.etcd.endpoints = []string{"https://a:1", "unix://b", "c:2"} }},
	{"etcd-endpoints", ",http://a:1,, ", func(c *config) { c.etcd.endpoints = []string{"http://a:1"} }},
	{"etcd-prefix", "/", func(c *config) { c.etcd.prefix = "/" }},
	{"etcd-prefix", "/x", func(c *config) { c.etcd.prefix = "/x" }},
	{"etcd-cafile", "/ca", func(c *config) { c.etcd.caFile = "/ca" }},
	{"etcd-username", "u", func(c *config) { c.etcd.username = "u" }},
	{"etcd-password", "p=w", func(c *config) { c.etcd.password = "p=w" }},
	{"kube-subnet-mgr", "false", func(*config) {}},
	{"kube-api-url", "https://k", func(c *config) { c.kube.apiURL = "https://k" }},
	{"kubeconfig-file", "/kc", func(c *config) { c.kube.configFile = "/kc" }},
	{"kube-annotation-prefix", "x.y", func(c *config) { c.kube.annotationPrefix = "x.y" }},
	{"net-config-path", "/nc", func(c *config) { c.kube.netConfigPath = "/nc" }},
	{"set-node-network-unavailable", "false", func(c *config) { c.kube.setUnavailable = false }},
	{"iface", "eth0,eth1", func(c *config) { c.iface.names = []string{"eth0,eth1"} }},
	{"iface-regex", "^eth[0-9],", func(c *config) { c.iface.patterns = []*regexp.Regexp{regexp.MustCompile("^eth[0-9],")} }},
	{"iface-can-reach", "fd00::1", func(c *config) { c.iface.canReach = netip.MustParseAddr("fd00::1") }},
	{"public-ip", "192.0.2.1", func(c *config) { c.publicIP = netip.MustParseAddr("192.0.2.1") }},
	{"public-ipv6", "2001:db8::1", func(c *config) { c.publicIPv6 = netip.MustParseAddr("2001:db8::1") }},
	{"subnet-file", "/s", func(c *config) { c.subnetFile = "/s" }},
	{"subnet-lease-renew-margin", "1439", func(c *config) { c.renewMargin = 1439 }},
	{"ip-masq", "true", func(c *config) { c.ipMasq = true }},
	{"ip-masq-fully-random-disable", "1", func(c *config) { c.plainMasq = true }},
	{"iptables-resync", "0x1e", func(c *config) { c.resync = 30 }},
	{"iptables-forward-rules", "F", func(c *config) { c.forwardRules = false }},
	{"ip-blackhole-route", "true", func(c *config) { c.blackhole = true }},
	{"healthz-ip", "localhost", func(c *config) { c.healthzIP = "localhost" }},
	{"healthz-port", "65535", func(c *config) { c.healthzPort = 65535 }},
	{"v", "4", func(c *config) { c.verbosity = 4 }},
	{"vmodule", "a=2", func(c *config) { c.vmodule = "a=2" }},
	{"log_backtrace_at", "a.go:2", func(c *config) { c.backtraceAt = "a.go:2" }},
	{"lease-file", "/l", func(c *config) { c.leaseFile = "/l" }},
	{"node-name", "n1", func(c *config) { c.nodeName = "n1" }},
	{"source-check", "strict", func(c *config) { c.sourceCheck = dataplane.CheckStrict }},
	{"engine", "portable", func(c *config) { c.engine = dataplane.ModePortable }},
	{"engine-without", string(dataplane.FeatureGRO) + ", " + string(dataplane.FeatureTSO), func(c *config) {
		c.without = []dataplane.Feature{dataplane.FeatureGRO, dataplane.FeatureTSO}
	}},
	{"keep-source", "true", func(c *config) { c.keepSource = chosen }},
	{"keep-source", "F", func(c *config) { c.keepSource = declined }},
	{"keep-source", "auto", func(*config) {}},
	{"notrack", "false", func(c *config) { c.noTrack = false }},
	{"workers", "127", func(c *config) { c.workers = 127 }},
	{"spin", "false", func(c *config) { c.spin = false }},
	{"source-port", "65535", func(c *config) { c.sourcePort = 65535 }},
	{"outer-ecn", "true", func(c *config) { c.outerECN = true }},
	{"outer-dscp", "true", func(c *config) { c.outerDSCP = true }},
	{"log-format", "json", func(c *config) { c.logFormat = "json" }},
}

func TestEveryFlagInEveryForm(t *testing.T) {
	tested := map[string]bool{
		"version": true, "etcd-keyfile": true, "etcd-certfile": true, "pprof": true, // not alone
	}
	for _, test := range flagTests {
		tested[test.flag] = true
		want := defaults()
		test.want(&want)
		variable := strings.ToUpper(strings.ReplaceAll(test.flag, "-", "_"))
		forms := map[string]struct {
			args []string
			env  map[string]string
		}{
			"-x=v":    {args: []string{"-" + test.flag + "=" + test.value}},
			"--x=v":   {args: []string{"--" + test.flag + "=" + test.value}},
			"--x v":   {args: []string{"--" + test.flag, test.value}},
			"WEFTD_X": {env: map[string]string{"WEFTD_" + variable: test.value}},
		}
		if isBoolFlag(test.flag) {
			delete(forms, "--x v")
		}
		if !isOwnFlag(test.flag) {
			forms["FLANNELD_X"] = forms["WEFTD_X"]
			f := forms["FLANNELD_X"]
			f.env = map[string]string{"FLANNELD_" + variable: test.value}
			forms["FLANNELD_X"] = f
		}
		for form, in := range forms {
			got, err := parse(in.args, env(in.env))
			if err != nil || !reflect.DeepEqual(*got, want) {
				t.Errorf("%s as %s: %+v, %v; want %+v", test.flag, form, *got, err, want)
			}
		}
	}
	if got, err := parse([]string{"--etcd-prefix="}, env(nil)); err != nil || got.etcd.prefix != "" { // a variable cannot say that
		t.Errorf("no etcd prefix: %+v, %v", got, err)
	}
	for _, o := range options(&config{}) {
		if !tested[o.name] {
			t.Errorf("--%s is not tested", o.name)
		}
	}
}

func lookup(name string) option {
	all := options(&config{})
	return all[slices.IndexFunc(all, func(o option) bool { return o.name == name })]
}

func isBoolFlag(name string) bool { return lookup(name).value.isBool() }
func isOwnFlag(name string) bool  { return lookup(name).own }

func TestDefaults(t *testing.T) {
	got, err := parse(nil, noEnv)
	if err != nil || !reflect.DeepEqual(*got, defaults()) {
		t.Errorf("got %+v, %v; want %+v", *got, err, defaults())
	}
}

func TestFlagsTogether(t *testing.T) {
	tests := []struct {
		name string
		args []string
		env  map[string]string
		want func(*config)
	}{
		{"repeatable flags keep their order, an empty one adds nothing",
			[]string{"-iface=b", "--iface", "a", "--iface=", "--iface-regex="}, nil,
			func(c *config) { c.iface.names = []string{"b", "a"} }},
		{"of a repeated plain flag the last counts", []string{"-v=1", "-v=2"}, nil, func(c *config) { c.verbosity = 2 }},
		{"a yes-or-no flag alone is yes, and takes no value behind a blank",
			[]string{"--ip-masq", "--subnet-file", "-x"}, nil,
			func(c *config) { c.ipMasq, c.subnetFile = true, "-x" }},
		{"two dashes end the flags", []string{"--ip-masq", "--"}, nil, func(c *config) { c.ipMasq = true }},
		{"key and certificate", []string{"--etcd-keyfile=/k", "--etcd-certfile=/c"}, nil,
			func(c *config) { c.etcd.keyFile, c.etcd.certFile = "/k", "/c" }},
		{"profiles on the health port", []string{"--pprof", "--healthz-port=1"}, nil,
			func(c *config) { c.profile, c.healthzPort = true, 1 }},
		{"the command line wins over both variables, which are not read then", []string{"--workers=2", "-v=3"},
			map[string]string{"WEFTD_WORKERS": "bad", "FLANNELD_V": "bad", "WEFTD_V": "bad"},
			func(c *config) { c.workers, c.verbosity = 2, 3 }},
		{"WEFTD_ wins over FLANNELD_, which is not read then", nil, map[string]string{"FLANNELD_V": "bad", "WEFTD_V": "3"},
			func(c *config) { c.verbosity = 3 }},
		{"an empty variable is none", nil, map[string]string{"WEFTD_V": "", "FLANNELD_V": "2", "FLANNELD_SUBNET_FILE": ""},
			func(c *config) { c.verbosity = 2 }},
		{"a repeatable flag takes one value from a variable", []string{"--iface-regex=x"},
			map[string]string{"FLANNELD_IFACE": "a,b", "FLANNELD_IFACE_REGEX": "("},
			func(c *config) {
				c.iface.names = []string{"a,b"}
				c.iface.patterns = []*regexp.Regexp{regexp.MustCompile("x")}
			}},
		{"flannel's variables do not set flags of ours", nil, map[string]string{"FLANNELD_WORKERS": "2"}, func(*config) {}},
		{"the version is asked for by flag only", nil, map[string]string{"FLANNELD_VERSION": "true", "WEFTD_VERSION": "x"},
			func(*config) {}},
		{"NODE_NAME names the node", nil, map[string]string{"NODE_NAME": "a"}, func(c *config) { c.nodeName = "a" }},
		{"the flag's own variable wins over NODE_NAME", nil, map[string]string{"NODE_NAME": "a", "WEFTD_NODE_NAME": "b"},
			func(c *config) { c.nodeName = "b" }},
		{"flannel's variable for the WireGuard key", nil, map[string]string{"WIREGUARD_KEY_FILE": "/k"},
			func(c *config) { c.wireGuardKey = "/k" }},
		{"other variables that begin alike are left alone", nil, map[string]string{"WEFTD_PORT": "tcp://10.0.0.1:80"},
			func(*config) {}},
		{"with --version the environment is not looked at", []string{"--version"}, map[string]string{"WEFTD_V": "bad"},
			func(c *config) { c.showVersion, c.wireGuardKey = true, "" }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			want := defaults()
			test.want(&want)
			got, err := parse(test.args, env(test.env))
			if err != nil || !reflect.DeepEqual(*got, want) {
				t.Errorf("got %+v, %v; want %+v", *got, err, want)
			}
		})
	}
}

const (
	endpointsTake = `a comma-separated list of URLs, http://host:port or https://host:port`
	marginTakes   = `whole minutes from 1 to 1439`
)

// refusals are what is refused and the one line that says so.
var refusals = []struct {
	args []string
	env  map[string]string
	want string
}{
	{args: []string{"--nope"}, want: `--nope: no such flag; weftd -h lists them`},
	{args: []string{"-nope=1", "-h"}, want: `--nope: no such flag; weftd -h lists them`},
	{args: []string{"--iface"}, want: `--iface: needs a value, an interface name or one of its addresses`},
	{args: []string{"x", "--ip-masq"}, want: `argument "x": only flags are taken; weftd -h lists them`},
	{args: []string{"--", "x"}, want: `argument "--": only flags are taken; weftd -h lists them`},
	{args: []string{""}, want: `argument "": only flags are taken; weftd -h lists them`},
	{args: []string{"-"}, want: `argument "-": only flags are taken; weftd -h lists them`},
	{args: []string{"---v"}, want: `argument "---v": only flags are taken; weftd -h lists them`},
	{args: []string{"-=1"}, want: `argument "-=1": only flags are taken; weftd -h lists them`},
	{args: []string{"--ip-masq", "false"}, want: `argument "false": only flags are taken; write --ip-masq=false`},
	{args: []string{"--ip-masq=yes"}, want: `--ip-masq: "yes" is not allowed, it takes true or false`},
	{args: []string{"--ip-masq="}, want: `--ip-masq: "" is not allowed, it takes true or false`},
	{args: []string{"--subnet-lease-renew-margin=0"}, want: `--subnet-lease-renew-margin: "0" is not allowed, it takes ` + marginTakes},
	{args: []string{"--subnet-lease-renew-margin", "1440"}, want: `--subnet-lease-renew-margin: "1440" is not allowed, it takes ` + marginTakes},
	{args: []string{"--subnet-lease-renew-margin=1h"}, want: `--subnet-lease-renew-margin: "1h" is not allowed, it takes ` + marginTakes},
	{env: map[string]string{"FLANNELD_SUBNET_LEASE_RENEW_MARGIN": "x"},
		want: `FLANNELD_SUBNET_LEASE_RENEW_MARGIN: "x" is not allowed, it takes ` + marginTakes},
	{env: map[string]string{"WEFTD_IP_MASQ": "on", "FLANNELD_IP_MASQ": "true"},
		want: `WEFTD_IP_MASQ: "on" is not allowed, it takes true or false`},
	{args: []string{"--iptables-resync=0"}, want: `--iptables-resync: "0" is not allowed, it takes whole seconds from 1`},
	{args: []string{"--healthz-port=65536"}, want: `--healthz-port: "65536" is not allowed, it takes a port from 1 to 65535, or 0 for none`},
	{args: []string{"--healthz-ip=10.0.0.256"}, want: `--healthz-ip: "10.0.0.256" is not allowed, it takes an IP address or a host name`},
	{args: []string{"--healthz-ip=0.0.0.0/0"}, want: `--healthz-ip: "0.0.0.0/0" is not allowed, it takes an IP address or a host name`},
	{args: []string{"-v=-1"}, want: `--v: "-1" is not allowed, it takes a whole number from 0; above 0 shows debug messages`},
	{args: []string{"-v=debug"}, want: `--v: "debug" is not allowed, it takes a whole number from 0; above 0 shows debug messages`},
	{args: []string{"-v=4294967296"}, want: `--v: "4294967296" is not allowed, it takes a whole number from 0; above 0 shows debug messages`},
	{args: []string{"--public-ip=fd00::1"}, want: `--public-ip: "fd00::1" is not allowed, it takes an IPv4 address`},
	{args: []string{"--public-ip=10.0.0.1/24"}, want: `--public-ip: "10.0.0.1/24" is not allowed, it takes an IPv4 address`},
	{args: []string{"--public-ip=0.0.0.0"}, want: `--public-ip: "0.0.0.0" is not allowed, it takes an IPv4 address`},
	{args: []string{"--public-ipv6=10.0.0.1"}, want: `--public-ipv6: "10.0.0.1" is not allowed, it takes an IPv6 address`},
	{args: []string{"--public-ipv6=::ffff:1.2.3.4"}, want: `--public-ipv6: "::ffff:1.2.3.4" is not allowed, it takes an IPv6 address`},
	{args: []string{"--public-ipv6=fe80::1%eth0"}, want: `--public-ipv6: "fe80::1%eth0" is not allowed, it takes an IPv6 address`},
	{args: []string{"--public-ipv6=ff02::1"}, want: `--public-ipv6: "ff02::1" is not allowed, it takes an IPv6 address`},
	{args: []string{"--iface-can-reach=example.com"}, want: `--iface-can-reach: "example.com" is not allowed, it takes an IP address`},
	{args: []string{"--iface-regex=("}, want: `--iface-regex: "(" is not allowed, it takes a regular expression`},
	{args: []string{"--etcd-endpoints="}, want: `--etcd-endpoints: "" is not allowed, it takes ` + endpointsTake},
	{args: []string{"--etcd-endpoints=ftp://a:1"}, want: `--etcd-endpoints: "ftp://a:1" is not allowed, it takes ` + endpointsTake},
	{args: []string{"--etcd-endpoints=, ,"}, want: `--etcd-endpoints: ", ," is not allowed, it takes ` + endpointsTake},
	{args: []string{"--etcd-endpoints=a"}, want: `--etcd-endpoints: "a" is not allowed, it takes ` + endpointsTake},
	{args: []string{"--subnet-file="}, want: `--subnet-file: "" is not allowed, it takes the path of a file`},
	{args: []string{"--source-check=on"}, want: `--source-check: "on" is not allowed, it takes strict, known or off`},
	{args: []string{"--engine=fast"}, want: `--engine: "fast" is not allowed, it takes auto, offload or portable`},
	{args: []string{"--engine-without=gro,"}, want: `--engine-without: "gro," is not allowed, it takes a comma-separated list of ` + featureNames()},
	{args: []string{"--log-format=xml"}, want: `--log-format: "xml" is not allowed, it takes text or json`},
	{args: []string{"--keep-source=no"}, want: `--keep-source: "no" is not allowed, it takes true, false or auto`},
	{args: []string{"clean"}, want: `argument "clean": only flags are taken; weftd -h lists them`},
	{args: []string{"--ip-masq", "cleanup"}, want: `argument "cleanup": only flags are taken; weftd -h lists them`},
	{args: []string{"cleanup", "--ip-masq"}, want: `cleanup: argument "--ip-masq": it takes none`},
	{args: []string{"cleanup", "all"}, want: `cleanup: argument "all": it takes none`},
	{args: []string{"--workers=128"}, want: `--workers: "128" is not allowed, it takes a whole number from 0 to 127`},
	{args: []string{"--kube-subnet-mgr", "--lease-file=/x"}, want: `--kube-subnet-mgr and --lease-file: only one of them may be given`},
	{args: []string{"--etcd-keyfile=/k"}, want: `--etcd-keyfile and --etcd-certfile: give both or neither`},
	{args: []string{"--etcd-certfile=/c"}, want: `--etcd-keyfile and --etcd-certfile: give both or neither`},
	{args: []string{"--pprof"}, want: `--pprof: needs --healthz-port, the port it is served on`},
}

func TestRefusals(t *testing.T) {
	// A daemon that starts all the same is to end at once.
	ended, end := context.WithCancel(t.Context())
	end()
	for _, test := range refusals {
		var stdout, stderr bytes.Buffer
		code := run(ended, test.args, env(test.env), &stdout, &stderr)
		if want := "weftd: " + test.want + "\n"; code != 1 || stderr.String() != want || stdout.Len() > 0 {
			t.Errorf("%q %v: exit %d\n got %q\nwant %q", test.args, test.env, code, stderr.String(), want)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, arg := range []string{"-h", "--h", "-help", "--help"} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), []string{"--ip-masq", arg}, noEnv, &stdout, &stderr)
		if code != 0 || stderr.Len() > 0 {
			t.Errorf("%s: exit %d, stderr %q", arg, code, stderr.String())
		}
		for _, o := range options(&config{}) {
			if !strings.Contains(stdout.String(), "  --"+o.name+"\n\t"+o.usage) {
				t.Errorf("%s does not show --%s", arg, o.name)
			}
		}
	}
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"cleanup", "-h"}, noEnv, &stdout, &stderr)
	if code != 0 || stderr.Len() > 0 || !strings.Contains(stdout.String(), "weftd cleanup ") {
		t.Errorf("cleanup -h: exit %d, stdout %q, stderr %q", code, stdout.String(), stderr.String())
	}
	stdout.Reset()
	code = run(t.Context(), []string{"--version"}, noEnv, &stdout, &stderr)
	form := regexp.MustCompile(`^weftd \S+ commit \S+ go\d\S*\n$`)
	if code != 0 || stderr.Len() > 0 || !form.MatchString(stdout.String()) {
		t.Errorf("--version: exit %d, stdout %q, stderr %q", code, stdout.String(), stderr.String())
	}
	if code := run(t.Context(), []string{"--version"}, noEnv, brokenWriter{}, io.Discard); code != 1 {
		t.Errorf("--version into a broken pipe: exit %d", code)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// FuzzParseArgs compares the parser with Go's flag package, whose syntax is
// flannel's, on three flags.
func FuzzParseArgs(f *testing.F) {
	for _, seed := range []string{"--n=1", "-b\n--s\nx", "-s=\n-b=false", "--\n-b", "-n\n1_0\nx", "---n", "-=", "-b=x", "-h", "-s", "-s=a=b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, lines string) {
		args := strings.Split(lines, "\n")

		var c struct {
			n int
			s string
			b bool
		}
		options := []option{
			{name: "n", value: number(&c.n, 0, math.MinInt, math.MaxInt)},
			{name: "s", value: text(&c.s, "")},
			{name: "b", value: yesNo(&c.b, false)},
		}
		given, err := parseArgs(options, args)

		set := flag.NewFlagSet("", flag.ContinueOnError)
		set.SetOutput(io.Discard)
		n, s, b := set.Int("n", 0, ""), set.String("s", "", ""), set.Bool("b", false, "")
		wantErr := set.Parse(args)
		want := map[string]bool{}
		set.Visit(func(f *flag.Flag) { want[f.Name] = true })

		switch {
		case wantErr == nil && set.NArg() > 0:
			if err == nil {
				t.Fatalf("%q: argument %q is not refused", args, set.Arg(0))
			}
		case errors.Is(err, errHelp) != errors.Is(wantErr, flag.ErrHelp):
			t.Fatalf("%q: %v, flag says %v", args, err, wantErr)
		case (err == nil) != (wantErr == nil):
			t.Fatalf("%q: %v, flag says %v", args, err, wantErr)
		case err != nil:
		case !maps.Equal(given, want) || c.n != *n || c.s != *s || c.b != *b:
			t.Fatalf("%q: %v %+v, flag says %v %d %q %t", args, given, c, want, *n, *s, *b)
		}
	})
}

// TestFlagsReachTheEngine: what a flag says of packets is what the engine is opened with.
func TestFlagsReachTheEngine(t *testing.T) {
	cfg, err := parse([]string{"--workers=3", "--source-port=9000", "--spin", "--outer-ecn", "--outer-dscp",
		"--source-check=strict", "--engine=portable", "--engine-without=udp-gso"}, env(nil))
	if err != nil {
		t.Fatal(err)
	}
	d := &weftd{cfg: cfg}
	got := d.engineConfig(ctrl.Iface{Addr: netip.MustParseAddr("192.0.2.1")}, ctrl.Spec{Port: 8285, MTU: 1472})
	want := dataplane.Config{
		Device: "flannel%d", Bind: netip.MustParseAddrPort("192.0.2.1:8285"), MTU: 1472, Workers: 3, SourcePort: 9000,
		Spin: true, ECN: true, DSCP: true, SourceCheck: dataplane.CheckStrict, Mode: dataplane.ModePortable,
		Without: []dataplane.Feature{dataplane.FeatureGSO},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	cfg, err = parse([]string{"--spin=false"}, env(nil))
	if err != nil {
		t.Fatal(err)
	}
	d.cfg = cfg
	if d.engineConfig(ctrl.Iface{}, ctrl.Spec{}).Spin {
		t.Error("spins although it must not")
	}
}
