package main

import (
	"bytes"
	"context"
	"io"
	"regexp"
	"strings"
	"testing"

	"weft/dataplane/feature"
)

// env returns the form of os.Environ for a map.
func env(vars map[string]string) []string {
	var environ []string
	for name, val := range vars {
		environ = append(environ, name+"="+val)
	}
	return environ
}

func featureNames() string {
	var names []string
	for _, f := range feature.All() {
		names = append(names, string(f))
	}
	return strings.Join(names, ", ")
}

const (
	endpointsWant = `a comma-separated list of URLs, http://host:port or https://host:port`
	marginWant    = `minutes from 1 to 1439`
)

// flagErrors are invalid command lines and environments with their errors.
var flagErrors = []struct {
	args []string
	env  map[string]string
	want string
}{
	{args: []string{"--nope"}, want: `--nope: unknown flag; weftd -h lists the flags`},
	{args: []string{"-nope=1", "-h"}, want: `--nope: unknown flag; weftd -h lists the flags`},
	{args: []string{"--iface"}, want: `--iface: missing value, want an interface name or one of its addresses`},
	{args: []string{"x", "--ip-masq"}, want: `unexpected argument "x"; weftd -h lists the flags`},
	{args: []string{"--", "x"}, want: `unexpected argument "--"; weftd -h lists the flags`},
	{args: []string{""}, want: `unexpected argument ""; weftd -h lists the flags`},
	{args: []string{"-"}, want: `unexpected argument "-"; weftd -h lists the flags`},
	{args: []string{"---v"}, want: `unexpected argument "---v"; weftd -h lists the flags`},
	{args: []string{"-=1"}, want: `unexpected argument "-=1"; weftd -h lists the flags`},
	{args: []string{"--ip-masq", "false"}, want: `unexpected argument "false"; write --ip-masq=false`},
	{args: []string{"--ip-masq=yes"}, want: `--ip-masq: invalid value "yes", want true or false`},
	{args: []string{"--ip-masq="}, want: `--ip-masq: invalid value "", want true or false`},
	{args: []string{"--subnet-lease-renew-margin=0"},
		want: `--subnet-lease-renew-margin: invalid value "0", want ` + marginWant},
	{args: []string{"--subnet-lease-renew-margin", "1440"},
		want: `--subnet-lease-renew-margin: invalid value "1440", want ` + marginWant},
	{args: []string{"--subnet-lease-renew-margin=1h"},
		want: `--subnet-lease-renew-margin: invalid value "1h", want ` + marginWant},
	{env: map[string]string{"FLANNELD_SUBNET_LEASE_RENEW_MARGIN": "x"},
		want: `FLANNELD_SUBNET_LEASE_RENEW_MARGIN: invalid value "x", want ` + marginWant},
	{env: map[string]string{"WEFTD_IP_MASQ": "on", "FLANNELD_IP_MASQ": "true"},
		want: `WEFTD_IP_MASQ: invalid value "on", want true or false`},
	{args: []string{"--iptables-resync=0"}, want: `--iptables-resync: invalid value "0", want seconds from 1`},
	{args: []string{"--healthz-port=65536"},
		want: `--healthz-port: invalid value "65536", want a port from 1 to 65535, or 0 to disable`},
	{args: []string{"--healthz-ip=10.0.0.256"},
		want: `--healthz-ip: invalid value "10.0.0.256", want an IP address or a host name`},
	{args: []string{"--healthz-ip=0.0.0.0/0"},
		want: `--healthz-ip: invalid value "0.0.0.0/0", want an IP address or a host name`},
	{args: []string{"-v=-1"}, want: `--v: invalid value "-1", want a number from 0; above 0 enables debug messages`},
	{args: []string{"-v=debug"},
		want: `--v: invalid value "debug", want a number from 0; above 0 enables debug messages`},
	{args: []string{"-v=4294967296"},
		want: `--v: invalid value "4294967296", want a number from 0; above 0 enables debug messages`},
	{args: []string{"--public-ip=fd00::1"}, want: `--public-ip: invalid value "fd00::1", want an IPv4 address`},
	{args: []string{"--public-ip=10.0.0.1/24"}, want: `--public-ip: invalid value "10.0.0.1/24", want an IPv4 address`},
	{args: []string{"--public-ip=0.0.0.0"}, want: `--public-ip: invalid value "0.0.0.0", want an IPv4 address`},
	{args: []string{"--public-ipv6=10.0.0.1"}, want: `--public-ipv6: invalid value "10.0.0.1", want an IPv6 address`},
	{args: []string{"--public-ipv6=::ffff:1.2.3.4"},
		want: `--public-ipv6: invalid value "::ffff:1.2.3.4", want an IPv6 address`},
	{args: []string{"--public-ipv6=fe80::1%eth0"},
		want: `--public-ipv6: invalid value "fe80::1%eth0", want an IPv6 address`},
	{args: []string{"--public-ipv6=ff02::1"}, want: `--public-ipv6: invalid value "ff02::1", want an IPv6 address`},
	{args: []string{"--iface-can-reach=example.com"},
		want: `--iface-can-reach: invalid value "example.com", want an IP address`},
	{args: []string{"--iface-regex=("}, want: `--iface-regex: invalid value "(", want a regular expression`},
	{args: []string{"--etcd-endpoints="}, want: `--etcd-endpoints: invalid value "", want ` + endpointsWant},
	{args: []string{"--etcd-endpoints=ftp://a:1"},
		want: `--etcd-endpoints: invalid value "ftp://a:1", want ` + endpointsWant},
	{args: []string{"--etcd-endpoints=, ,"}, want: `--etcd-endpoints: invalid value ", ,", want ` + endpointsWant},
	{args: []string{"--etcd-endpoints=a"}, want: `--etcd-endpoints: invalid value "a", want ` + endpointsWant},
	{args: []string{"--subnet-file="}, want: `--subnet-file: invalid value "", want a file path`},
	{args: []string{"--source-check=on"}, want: `--source-check: invalid value "on", want strict, known or off`},
	{args: []string{"--engine=fast"}, want: `--engine: invalid value "fast", want auto, offload or portable`},
	{args: []string{"--engine-without=gro,"},
		want: `--engine-without: invalid value "gro,", want a comma-separated list of ` + featureNames()},
	{args: []string{"--log-format=xml"}, want: `--log-format: invalid value "xml", want text or json`},
	{args: []string{"--keep-source=no"}, want: `--keep-source: invalid value "no", want true, false or auto`},
	{args: []string{"clean"}, want: `unexpected argument "clean"; weftd -h lists the flags`},
	{args: []string{"--ip-masq", "cleanup"}, want: `unexpected argument "cleanup"; weftd -h lists the flags`},
	{args: []string{"cleanup", "--ip-masq"}, want: `cleanup: unexpected argument "--ip-masq"`},
	{args: []string{"cleanup", "all"}, want: `cleanup: unexpected argument "all"`},
	{args: []string{"--workers=128"}, want: `--workers: invalid value "128", want a number from 0 to 127`},
	{args: []string{"--kube-subnet-mgr", "--lease-file=/x"},
		want: `--kube-subnet-mgr and --lease-file: mutually exclusive`},
	{args: []string{"--etcd-keyfile=/k"}, want: `--etcd-keyfile and --etcd-certfile: set both or neither`},
	{args: []string{"--etcd-certfile=/c"}, want: `--etcd-keyfile and --etcd-certfile: set both or neither`},
	{args: []string{"--etcd-username=u"}, want: `--etcd-username and --etcd-password: set both or neither`},
	{env: map[string]string{"FLANNELD_ETCD_PASSWORD": "p"},
		want: `--etcd-username and --etcd-password: set both or neither`},
	{args: []string{"--lease-file=/x", "--etcd-endpoints=http://127.0.0.1:2379"},
		want: `--lease-file and --etcd-endpoints: mutually exclusive`},
	{args: []string{"--lease-file=/x"}, env: map[string]string{"FLANNELD_ETCD_ENDPOINTS": "http://a:1"},
		want: `--lease-file and --etcd-endpoints: mutually exclusive`},
	{args: []string{"--pprof"}, want: `--pprof: requires --healthz-port`},
}

func TestFlagErrors(t *testing.T) {
	// A daemon that starts nevertheless exits at once.
	done, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range flagErrors {
		var stdout, stderr bytes.Buffer
		code := run(done, test.args, env(test.env), &stdout, &stderr)
		if want := "weftd: " + test.want + "\n"; code != 1 || stderr.String() != want || stdout.Len() > 0 {
			t.Errorf("%q %v: exit %d\n got %q\nwant %q", test.args, test.env, code, stderr.String(), want)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, arg := range []string{"-h", "--h", "-help", "--help"} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), []string{"--ip-masq", arg}, nil, &stdout, &stderr)
		if code != 0 || stderr.Len() > 0 {
			t.Errorf("%s: exit %d, stderr %q", arg, code, stderr.String())
		}
		for _, name := range []string{"ip-masq", "engine"} {
			if !strings.Contains(stdout.String(), "  --"+name+"\n\t") {
				t.Errorf("%s does not show --%s", arg, name)
			}
		}
	}
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"cleanup", "-h"}, nil, &stdout, &stderr)
	if code != 0 || stderr.Len() > 0 || !strings.Contains(stdout.String(), "weftd cleanup ") {
		t.Errorf("cleanup -h: exit %d, stdout %q, stderr %q", code, stdout.String(), stderr.String())
	}
	stdout.Reset()
	code = run(t.Context(), []string{"--version"}, nil, &stdout, &stderr)
	form := regexp.MustCompile(`^weftd \S+ commit \S+ go\d\S*\n$`)
	if code != 0 || stderr.Len() > 0 || !form.MatchString(stdout.String()) {
		t.Errorf("--version: exit %d, stdout %q, stderr %q", code, stdout.String(), stderr.String())
	}
	if code := run(t.Context(), []string{"--version"}, nil, brokenWriter{}, io.Discard); code != 1 {
		t.Errorf("--version into a broken pipe: exit %d", code)
	}
}

func TestIgnoredSettingsAreLogged(t *testing.T) {
	done, cancel := context.WithCancel(t.Context())
	cancel()
	var stderr bytes.Buffer
	code := run(done, []string{"-logtostderr", "--log_dir=/x"}, env(map[string]string{"WEFTD_IFCAE": "eth0"}),
		io.Discard, &stderr)
	for _, want := range []string{`flags="--log_dir --logtostderr"`, "variable=WEFTD_IFCAE", "nearest=WEFTD_IFACE"} {
		if n := strings.Count(stderr.String(), want); n != 1 {
			t.Errorf("%s: logged %d times in\n%s", want, n, stderr.String())
		}
	}
	if code != 0 {
		t.Errorf("exit %d:\n%s", code, stderr.String())
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
