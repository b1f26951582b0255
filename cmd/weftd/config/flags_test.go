package config

import (
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
	"time"

	"weft/dataplane"
	"weft/dataplane/feature"
)

// defaults returns the config of an empty command line. The values of flannel's flags are those of
// its main.go at v0.28.9.
func defaults() Config {
	return Config{
		Node: Node{SubnetFile: "/run/flannel/subnet.env"},
		Lease: Lease{
			Etcd: Etcd{
				Endpoints: []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"},
				Prefix:    "/coreos.com/network",
			},
			Kube: Kube{
				AnnotationPrefix: "flannel.alpha.coreos.com",
				NetworkFile:      "/etc/kube-flannel/net-conf.json",
				SetCondition:     true,
			},
			RenewMargin: time.Hour,
		},
		Backend: Backend{WireGuardKeyFile: "/run/flannel/wgkey"},
		Rules:   Rules{Forward: true, NoTrack: true, Resync: 5 * time.Second},
		Engine: Engine{SourceCheck: dataplane.CheckKnown, Spin: true,
			FastPath: dataplane.FastPathAuto},
		Health:  Health{IP: "0.0.0.0", Metrics: ClientsAll, Page: ClientsOff},
		Control: Control{Socket: "/run/weft/weftd.sock"},
		Log:     Log{Format: "text"},

		ProbeInterval: 10 * time.Second,
	}
}

// env returns the form of os.Environ for a map.
func env(vars map[string]string) []string {
	var environ []string
	for name, val := range vars {
		environ = append(environ, name+"="+val)
	}
	return environ
}

// parse is Parse without the lists of given and ignored flags and of unknown variables.
func parse(args, environ []string) (*Config, error) {
	c, err := Parse(args, environ)
	c.Given, c.Ignored, c.Unknown = nil, nil, nil
	return c, err
}

// flagTests has a value for each flag and its effect on the config.
var flagTests = []struct {
	flag, value string
	want        func(*Config)
}{
	{"etcd-endpoints", "https://a:1, unix://b,c:2",
		func(c *Config) { c.Lease.Etcd.Endpoints = []string{"https://a:1", "unix://b", "c:2"} }},
	{"etcd-endpoints", ",http://a:1,, ", func(c *Config) { c.Lease.Etcd.Endpoints = []string{"http://a:1"} }},
	{"etcd-prefix", "/", func(c *Config) { c.Lease.Etcd.Prefix = "/" }},
	{"etcd-prefix", "/x", func(c *Config) { c.Lease.Etcd.Prefix = "/x" }},
	{"etcd-cafile", "/ca", func(c *Config) { c.Lease.Etcd.CAFile = "/ca" }},
	{"kube-subnet-mgr", "false", func(*Config) {}},
	{"kube-api-url", "https://k", func(c *Config) { c.Lease.Kube.APIURL = "https://k" }},
	{"kubeconfig-file", "/kc", func(c *Config) { c.Lease.Kube.Kubeconfig = "/kc" }},
	{"kube-annotation-prefix", "x.y", func(c *Config) { c.Lease.Kube.AnnotationPrefix = "x.y" }},
	{"net-config-path", "/nc", func(c *Config) { c.Lease.Kube.NetworkFile = "/nc" }},
	{"set-node-network-unavailable", "false", func(c *Config) { c.Lease.Kube.SetCondition = false }},
	{"iface", "eth0,eth1", func(c *Config) { c.Underlay.Interfaces = []string{"eth0,eth1"} }},
	{"iface-regex", "^eth[0-9],",
		func(c *Config) { c.Underlay.Patterns = []*regexp.Regexp{regexp.MustCompile("^eth[0-9],")} }},
	{"iface-can-reach", "fd00::1", func(c *Config) { c.Underlay.CanReach = netip.MustParseAddr("fd00::1") }},
	{"public-ip", "192.0.2.1", func(c *Config) { c.Underlay.PublicIP = netip.MustParseAddr("192.0.2.1") }},
	{"public-ipv6", "2001:db8::1", func(c *Config) { c.Underlay.PublicIPv6 = netip.MustParseAddr("2001:db8::1") }},
	{"subnet-file", "/s", func(c *Config) { c.Node.SubnetFile = "/s" }},
	{"subnet-lease-renew-margin", "1439", func(c *Config) { c.Lease.RenewMargin = 1439 * time.Minute }},
	{"ip-masq", "true", func(c *Config) { c.Rules.Masquerade = true }},
	{"ip-masq-fully-random-disable", "1", func(c *Config) { c.Rules.NoRandomPorts = true }},
	{"iptables-resync", "0x1e", func(c *Config) { c.Rules.Resync = 30 * time.Second }},
	{"iptables-forward-rules", "F", func(c *Config) { c.Rules.Forward = false }},
	{"ip-blackhole-route", "true", func(c *Config) { c.Backend.BlackholeRoute = true }},
	{"healthz-ip", "localhost", func(c *Config) { c.Health.IP = "localhost" }},
	{"healthz-port", "65535", func(c *Config) { c.Health.Port = 65535 }},
	{"v", "4", func(c *Config) { c.Log.Verbosity = 4 }},
	{"lease-file", "/l", func(c *Config) { c.Lease.File = "/l" }},
	{"node-name", "n1", func(c *Config) { c.Node.Name = "n1" }},
	{"source-check", "strict", func(c *Config) { c.Engine.SourceCheck = dataplane.CheckStrict }},
	{"engine", "portable", func(c *Config) { c.Engine.Mode = dataplane.ModePortable }},
	{"engine-without", string(feature.GRO) + ", " + string(feature.TSO), func(c *Config) {
		c.Engine.DisabledFeatures = []feature.Name{feature.GRO, feature.TSO}
	}},
	{"wireguard-key-file", "/k", func(c *Config) { c.Backend.WireGuardKeyFile = "/k" }},
	{"keep-source", "true", func(c *Config) { c.Rules.KeepSource = On }},
	{"keep-source", "F", func(c *Config) { c.Rules.KeepSource = Off }},
	{"keep-source", "auto", func(*Config) {}},
	{"allow-pods-to-tunnel-port", "true", func(c *Config) { c.Rules.AllowPodsToTunnelPort = true }},
	{"probe-interval", "0", func(c *Config) { c.ProbeInterval = 0 }},
	{"notrack", "false", func(c *Config) { c.Rules.NoTrack = false }},
	{"workers", "127", func(c *Config) { c.Engine.Workers = 127 }},
	{"spin", "false", func(c *Config) { c.Engine.Spin = false }},
	{"source-port", "65535", func(c *Config) { c.Engine.SourcePort = 65535 }},
	{"outer-ecn", "true", func(c *Config) { c.Engine.OuterECN = true }},
	{"outer-dscp", "true", func(c *Config) { c.Engine.OuterDSCP = true }},
	{"control-socket", "/run/w.sock", func(c *Config) { c.Control.Socket = "/run/w.sock" }},
	{"fast-path", "off", func(c *Config) { c.Engine.FastPath = dataplane.FastPathOff }},
	{"fast-path", "require", func(c *Config) { c.Engine.FastPath = dataplane.FastPathRequire }},
	{"log-format", "json", func(c *Config) { c.Log.Format = "json" }},
	{"page", "all", func(c *Config) { c.Health.Page = ClientsAll }},
	{"metrics", "local", func(c *Config) { c.Health.Metrics = ClientsLocal }},
	{"metrics", "off", func(c *Config) { c.Health.Metrics = ClientsOff }},
}

func TestFlagForms(t *testing.T) {
	tested := map[string]bool{
		// tested in combinations
		"version": true, "etcd-keyfile": true, "etcd-certfile": true, "pprof": true,
		"etcd-username": true, "etcd-password": true,
	}
	for _, o := range klogOptions() {
		tested[o.name] = true // TestKlogFlags
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
		if !isWeftFlag(test.flag) {
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
	if got, err := parse([]string{"--etcd-prefix="}, env(nil)); err != nil ||
		got.Lease.Etcd.Prefix != "" { // a variable cannot be set to nothing
		t.Errorf("no etcd prefix: %+v, %v", got, err)
	}
	for _, o := range options(&Config{}) {
		if !tested[o.name] {
			t.Errorf("--%s is not tested", o.name)
		}
	}
}

func lookup(name string) option {
	all := options(&Config{})
	return all[slices.IndexFunc(all, func(o option) bool { return o.name == name })]
}

func isBoolFlag(name string) bool { return lookup(name).value.isBool() }
func isWeftFlag(name string) bool { return lookup(name).weftOnly }

func TestDefaults(t *testing.T) {
	got, err := parse(nil, nil)
	if err != nil || !reflect.DeepEqual(*got, defaults()) {
		t.Errorf("got %+v, %v; want %+v", *got, err, defaults())
	}
}

func TestFlagCombinations(t *testing.T) {
	tests := []struct {
		name string
		args []string
		env  map[string]string
		want func(*Config)
	}{
		{"repeatable flags keep their order, an empty value adds nothing",
			[]string{"-iface=b", "--iface", "a", "--iface=", "--iface-regex="}, nil,
			func(c *Config) { c.Underlay.Interfaces = []string{"b", "a"} }},
		{"last value of a repeated flag wins", []string{"-v=1", "-v=2"}, nil, func(c *Config) { c.Log.Verbosity = 2 }},
		{"boolean flag without a value",
			[]string{"--ip-masq", "--subnet-file", "-x"}, nil,
			func(c *Config) { c.Rules.Masquerade, c.Node.SubnetFile = true, "-x" }},
		{"two dashes end the flags", []string{"--ip-masq", "--"}, nil, func(c *Config) { c.Rules.Masquerade = true }},
		{"key and certificate", []string{"--etcd-keyfile=/k", "--etcd-certfile=/c"}, nil,
			func(c *Config) { c.Lease.Etcd.KeyFile, c.Lease.Etcd.CertFile = "/k", "/c" }},
		{"user and password", []string{"--etcd-username=u", "--etcd-password=p"}, nil,
			func(c *Config) { c.Lease.Etcd.Username, c.Lease.Etcd.Password = "u", "p" }},
		{"Kubernetes with the flags of etcd", // as in manifests that were changed over
			[]string{"--kube-subnet-mgr", "--etcd-endpoints=http://a:1", "--etcd-username=u"}, nil,
			func(c *Config) {
				c.Lease.Kube.Enabled = true
				c.Lease.Etcd.Endpoints, c.Lease.Etcd.Username = []string{"http://a:1"}, "u"
			}},
		{"quotes around nothing", []string{`--iface=""`, "--iface-regex=''", `--public-ip=""`, `--etcd-password=""`},
			map[string]string{"FLANNELD_IP_MASQ": `""`, "WEFTD_WORKERS": "''"}, func(*Config) {}},
		{"quotes around a value", []string{`--iface="eth0"`, `--ip-masq='true'`},
			map[string]string{"FLANNELD_ETCD_PREFIX": `"/x"`}, func(c *Config) {
				c.Underlay.Interfaces, c.Rules.Masquerade, c.Lease.Etcd.Prefix = []string{"eth0"}, true, "/x"
			}},
		{"quotes that are no pair", []string{`--iface="eth0`, `--iface="`, `--iface="a'`}, nil,
			func(c *Config) { c.Underlay.Interfaces = []string{`"eth0`, `"`, `"a'`} }},
		{"quotes of a password", []string{"--etcd-username=u", `--etcd-password="p"`}, nil,
			func(c *Config) { c.Lease.Etcd.Username, c.Lease.Etcd.Password = "u", `"p"` }},
		{"no control socket", []string{"--control-socket="}, nil, func(c *Config) { c.Control.Socket = "" }},
		{"profiles on the health port", []string{"--pprof", "--healthz-port=1"}, nil,
			func(c *Config) { c.Health.Profile, c.Health.Port = true, 1 }},
		{"command line wins, variables are not read", []string{"--workers=2", "-v=3"},
			map[string]string{"WEFTD_WORKERS": "bad", "FLANNELD_V": "bad", "WEFTD_V": "bad"},
			func(c *Config) { c.Engine.Workers, c.Log.Verbosity = 2, 3 }},
		{"WEFTD_ wins, FLANNELD_ is not read", nil, map[string]string{"FLANNELD_V": "bad", "WEFTD_V": "3"},
			func(c *Config) { c.Log.Verbosity = 3 }},
		{"empty variable counts as unset", nil,
			map[string]string{"WEFTD_V": "", "FLANNELD_V": "2", "FLANNELD_SUBNET_FILE": ""},
			func(c *Config) { c.Log.Verbosity = 2 }},
		{"variable is one value of a repeatable flag", []string{"--iface-regex=x"},
			map[string]string{"FLANNELD_IFACE": "a,b", "FLANNELD_IFACE_REGEX": "("},
			func(c *Config) {
				c.Underlay.Interfaces = []string{"a,b"}
				c.Underlay.Patterns = []*regexp.Regexp{regexp.MustCompile("x")}
			}},
		{"FLANNELD_ does not set flags of weftd", nil, map[string]string{"FLANNELD_WORKERS": "2"}, func(*Config) {}},
		{"version has no variable", nil, map[string]string{"FLANNELD_VERSION": "true", "WEFTD_VERSION": "x"},
			func(*Config) {}},
		{"NODE_NAME", nil, map[string]string{"NODE_NAME": "a"}, func(c *Config) { c.Node.Name = "a" }},
		{"WEFTD_NODE_NAME wins over NODE_NAME", nil, map[string]string{"NODE_NAME": "a", "WEFTD_NODE_NAME": "b"},
			func(c *Config) { c.Node.Name = "b" }},
		{"WIREGUARD_KEY_FILE", nil, map[string]string{"WIREGUARD_KEY_FILE": "/k"},
			func(c *Config) { c.Backend.WireGuardKeyFile = "/k" }},
		{"the flag before WIREGUARD_KEY_FILE", []string{"--wireguard-key-file=/f"}, map[string]string{"WIREGUARD_KEY_FILE": "/k"},
			func(c *Config) { c.Backend.WireGuardKeyFile = "/f" }},
		{"unknown variable with the prefix", nil, map[string]string{"WEFTD_PORT": "tcp://10.0.0.1:80"},
			func(*Config) {}},
		{"environment is ignored with --version", []string{"--version"}, map[string]string{"WEFTD_V": "bad"},
			func(c *Config) { c.ShowVersion, c.Backend.WireGuardKeyFile = true, "" }},
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

func TestKlogFlags(t *testing.T) {
	got, err := Parse([]string{"-logtostderr", "--alsologtostderr=true", "--log_dir", "/x", "--stderrthreshold=INFO",
		"-vmodule=a=2", "--ip-masq", "-skip_headers"}, env(map[string]string{"FLANNELD_LOG_FILE": "/y"}))
	want := []string{"--vmodule", "--log_dir", "--log_file", "--stderrthreshold", "--alsologtostderr", "--logtostderr",
		"--skip_headers"}
	if err != nil || !slices.Equal(got.Ignored, want) || !got.Rules.Masquerade {
		t.Errorf("got %q, %v; want %q", got.Ignored, err, want)
	}
	for _, o := range klogOptions() {
		if _, err := Parse([]string{"--" + o.name + "=x"}, nil); err != nil {
			t.Errorf("--%s: %v", o.name, err)
		}
	}
}

func TestGivenFlags(t *testing.T) {
	got, err := Parse([]string{"--iface=a", "--iface=b", "--iface-regex=^e", "-v=0x1", "--etcd-username=u",
		"--etcd-password=secret"}, env(map[string]string{"FLANNELD_IP_MASQ": "T", "WEFTD_SPIN": ""}))
	want := map[string]string{"iface": "a,b", "iface-regex": "^e", "v": "0x1", "etcd-username": "u",
		"etcd-password": "(hidden)", "ip-masq": "T"}
	if err != nil || !maps.Equal(got.Given, want) {
		t.Errorf("got %q, %v; want %q", got.Given, err, want)
	}
}

func TestUnknownVariables(t *testing.T) {
	got, err := Parse([]string{"--etcd-prefix=/x"}, env(map[string]string{
		"FLANNELD_ETCD_ENDPOINT": "http://a:1", "WEFTD_IFCAE": "eth0", "FLANNELD_WORKERS": "2", "WEFTD_NOPE": "1",
		"FLANNEL_PUBLIC_IP": "192.0.2.1", "WEFT_SPIN": "false",
		// not one of these:
		"FLANNELD_IFACE": "eth0", "WEFTD_IP_MASQ": "true", "WEFTD_EMPTI": "", "FLANNELD_VERSION": "v1",
		"FLANNEL_ETCD_PREFIX": "/x", "FLANNEL_SUBNET": "10.5.1.1/24", "WEFT_CNI_PLUGINS": "/x", "PATH": "/bin",
		"WEFTD_SERVICE_HOST": "10.0.0.1", "WEFTD_SERVICE_PORT": "80", "WEFTD_SERVICE_PORT_HTTP": "80",
		"WEFTD_PORT": "tcp://10.0.0.1:80", "WEFTD_PORT_80_TCP": "tcp://10.0.0.1:80", "WEFTD_PORT_80_TCP_ADDR": "10.0.0.1",
	}))
	want := []UnknownVariable{
		{"FLANNELD_ETCD_ENDPOINT", "FLANNELD_ETCD_ENDPOINTS"}, {"FLANNELD_WORKERS", "WEFTD_WORKERS"},
		{"FLANNEL_PUBLIC_IP", "FLANNELD_PUBLIC_IP"}, {"WEFTD_IFCAE", "WEFTD_IFACE"}, {"WEFTD_NOPE", ""},
		{"WEFT_SPIN", "WEFTD_SPIN"},
	}
	if err != nil || !slices.Equal(got.Unknown, want) {
		t.Errorf("got %+v, %v\nwant %+v", got.Unknown, err, want)
	}
}

// FuzzParseArgs compares the parser with Go's package flag on three flags.
func FuzzParseArgs(f *testing.F) {
	for _, seed := range []string{"--n=1", "-b\n--s\nx", "-s=\n-b=false", "--\n-b", "-n\n1_0\nx", "---n", "-=", "-b=x",
		"-h", "-s", "-s=a=b"} {
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
			{name: "b", value: boolean(&c.b, false)},
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
				t.Fatalf("%q: argument %q accepted", args, set.Arg(0))
			}
		case errors.Is(err, ErrHelp) != errors.Is(wantErr, flag.ErrHelp):
			t.Fatalf("%q: %v, package flag: %v", args, err, wantErr)
		case (err == nil) != (wantErr == nil):
			t.Fatalf("%q: %v, package flag: %v", args, err, wantErr)
		case err != nil:
		case !maps.Equal(given, want) || c.n != *n || c.s != *s || c.b != *b:
			t.Fatalf("%q: %v %+v, package flag: %v %d %q %t", args, given, c, want, *n, *s, *b)
		}
	})
}

func TestKeepsSource(t *testing.T) {
	for _, masq := range []bool{false, true} {
		for keep, want := range map[Tristate]bool{Auto: true, On: true, Off: false} {
			if got := (Rules{Masquerade: masq, KeepSource: keep}).KeepsSource(); got != want {
				t.Errorf("--ip-masq=%t, --keep-source=%v: %t", masq, keep, got)
			}
		}
	}
}
