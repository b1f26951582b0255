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

func noEnv(string) string { return "" }

// env looks variables up in a map.
func env(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func featureNames() string {
	var names []string
	for _, f := range feature.All() {
		names = append(names, string(f))
	}
	return strings.Join(names, ", ")
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
		for _, name := range []string{"ip-masq", "engine"} {
			if !strings.Contains(stdout.String(), "  --"+name+"\n\t") {
				t.Errorf("%s does not show --%s", arg, name)
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
