package cli

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const subnetEnvText = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"

// procRoute writes a line of /proc/net/route as this machine's kernel would.
func procRoute(device, dst, gateway string, bits int) string {
	word := func(s string) string {
		a := netip.MustParseAddr(s).As4()
		return fmt.Sprintf("%08X", binary.NativeEndian.Uint32(a[:]))
	}
	flags := 1
	if gateway != "0.0.0.0" {
		flags |= routeByGateway
	}
	return fmt.Sprintf("%s\t%s\t%s\t%04X\t0\t0\t0\t%s\t0\t0\t0\n", device, word(dst), word(gateway), flags,
		word(maskOf(bits).String()))
}

func TestDockerOpts(t *testing.T) {
	const (
		individual = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n"
		combined   = "\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"
	)
	for _, tt := range []struct {
		name    string
		args    string
		dockerd string // options that it has
		env     []string
		file    string // of subnet.env; "none" for no file
		routes  string
		want    string
		problem string // on stderr, with exit status 1 and nothing written
	}{
		// The five cases of flannel's own test.
		{name: "default", want: individual + "DOCKER_OPTS=" + combined},
		{name: "individual", args: "-i", want: individual},
		{name: "combined", args: "-c", want: "DOCKER_OPTS=" + combined},
		{name: "key", args: "-k CUSTOM_KEY", want: individual + "CUSTOM_KEY=" + combined},
		{name: "no ip-masq", args: "-m",
			want: "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\nDOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n"},

		{name: "a dockerd with direct routing", dockerd: "  --allow-direct-routing   Allow remote access", args: "-c",
			want: "DOCKER_OPTS=\" --bip=10.1.74.1/24 --allow-direct-routing --ip-masq=true --mtu=1472\"\n"},
		{name: "flags together", args: "-ickX", want: individual + "X=" + combined},
		{name: "two dashes end the flags", args: "-i --", want: individual},
		{name: "the daemon masquerades", file: strings.Replace(subnetEnvText, "false", "true", 1), args: "-c",
			want: "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=false --mtu=1472\"\n"},
		{name: "options that were there", args: "-c", env: []string{"DOCKER_OPTS=--debug -H \"x $y\""},
			want: "DOCKER_OPTS=\"--debug -H \\\"x \\$y\\\"  --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"},
		{name: "options of others", env: []string{"DOCKER_OPT_LOG=--log-level=warn", "MY_DOCKER_OPT_X=no",
			"X=DOCKER_OPT_Y"},
			want: "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_LOG=\"--log-level=warn\"\n" +
				"DOCKER_OPT_MTU=\"--mtu=1472\"\nDOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --log-level=warn --mtu=1472\"\n"},
		{name: "quotes, comments and export",
			file: "# by hand\nexport FLANNEL_SUBNET=\"10.1.74.1/24\"\n\nFLANNEL_MTU='1472'\nnonsense\n", args: "-c",
			want: "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n"},
		{name: "the file wins over the environment", env: []string{"FLANNEL_MTU=9000"}, args: "-c",
			want: "DOCKER_OPTS=" + combined},
		{name: "no file but an environment", file: "none",
			env:  []string{"FLANNEL_SUBNET=10.1.74.1/24", "FLANNEL_MTU=1472", "FLANNEL_IPMASQ=false"},
			want: individual + "DOCKER_OPTS=" + combined},
		{name: "empty file", file: "\n", want: "DOCKER_OPTS=\"\"\n"},

		{name: "unknown flag", args: "-i -x",
			problem: "weft: docker-opts: -x: unknown flag; weft docker-opts -h lists the flags\n"},
		{name: "value missing", args: "-k", problem: "weft: docker-opts: -k: missing value; "},
		{name: "argument", args: "-i junk", problem: `weft: docker-opts: unexpected argument "junk"; `},
		{name: "argument after two dashes", args: "-i -- -c", problem: `unexpected argument "-c"; `},
		{name: "no file", file: "none", problem: "is the daemon up?"},
		{name: "bad ip-masq", file: "FLANNEL_IPMASQ=yes\n", problem: `invalid value of FLANNEL_IPMASQ: "yes"`},
		{name: "bad subnet", file: "FLANNEL_SUBNET=10.1.74.1\n", problem: "invalid value of FLANNEL_SUBNET"},
		{name: "bad MTU", file: "FLANNEL_MTU=1472;reboot\n", problem: "invalid value of FLANNEL_MTU"},

		{name: "routes to others", args: "-c", want: "DOCKER_OPTS=" + combined,
			routes: procRoute("eth0", "0.0.0.0", "192.0.2.1", 0) + procRoute("flannel0", "10.1.0.0", "0.0.0.0", 16) +
				procRoute("docker0", "10.1.74.0", "0.0.0.0", 24) +
				procRoute("eth0", "10.1.74.0", "192.0.2.1", 25) + "eth0 short\n"},
		{name: "subnet routed elsewhere", routes: procRoute("eth0", "10.1.74.0", "192.0.2.1", 24),
			problem: "already sends 10.1.74.0/24 via 192.0.2.1 dev eth0"},
		{name: "subnet of half an octet routed elsewhere", file: "FLANNEL_SUBNET=10.1.72.1/22\n",
			routes: procRoute("eth0", "10.1.72.0", "192.0.2.1", 22), problem: "already sends 10.1.72.0/22"},
		{name: "address in the middle of a routed subnet", file: "FLANNEL_SUBNET=10.1.74.9/24\n",
			routes: procRoute("eth0", "10.1.74.0", "192.0.2.1", 24), problem: "already sends 10.1.74.0/24"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			in, out, routes := filepath.Join(dir, "subnet.env"), filepath.Join(dir, "docker.env"), filepath.Join(dir,
				"route")
			if tt.file == "" {
				tt.file = subnetEnvText
			}
			files := map[string]string{routes: "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n" + tt.routes, out: "old"}
			if tt.file != "none" {
				files[in] = tt.file
			}
			for name, text := range files {
				if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var stderr strings.Builder
			args := append([]string{"-f", in, "-d", out}, strings.Fields(tt.args)...)
			args = append([]string{"-p", fakeDockerd(t, tt.dockerd)}, args...)
			status := runDockerOpts(args, tt.env, routes, io.Discard, &stderr)
			got, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if tt.problem != "" {
				if status != 1 || !strings.Contains(stderr.String(), tt.problem) || string(got) != "old" {
					t.Errorf("status %d, wrote %q, said %s", status, got, &stderr)
				}
				return
			}
			if status != 0 || string(got) != tt.want {
				t.Errorf("status %d, said %q, wrote\n%s\nwant\n%s", status, &stderr, got, tt.want)
			}
			if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o644 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
		})
	}
}

// fakeDockerd returns the path of a program that prints help.
func fakeDockerd(t *testing.T, help string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dockerd")
	script := "#!/bin/sh\n[ \"$*\" = --help ] && echo '" + help + "'\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDockerOptsWithoutDockerd: the options of flannel are written, and a note.
func TestDockerOptsWithoutDockerd(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "subnet.env"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, []byte(subnetEnvText), 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	args := []string{"-f", in, "-d", out, "-c", "-p", filepath.Join(dir, "none")}
	status := runDockerOpts(args, nil, os.DevNull, io.Discard, &stderr)
	text, err := os.ReadFile(out)
	if err != nil || status != 0 || string(text) != "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n" {
		t.Errorf("status %d, wrote %q, %v", status, text, err)
	}
	if !strings.Contains(stderr.String(), "options for a dockerd before 28.2: ask ") {
		t.Errorf("said %q", &stderr)
	}
}

// TestDockerOptsLink: a file must never take the place of /dev/stdout or of a link
// that an administrator made.
func TestDockerOptsLink(t *testing.T) {
	dir := t.TempDir()
	in, real, link := filepath.Join(dir, "subnet.env"), filepath.Join(dir, "real"), filepath.Join(dir, "link")
	if err := os.WriteFile(in, []byte(subnetEnvText), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	for range 2 { // first the file does not exist, then it does
		var stderr strings.Builder
		if status := runDockerOpts([]string{"-f", in, "-d", link, "-c"}, nil, os.DevNull, io.Discard, &stderr); status != 0 {
			t.Fatalf("status %d: %s", status, &stderr)
		}
		if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Fatalf("the link was replaced: %v, %v", info, err)
		}
		if text, err := os.ReadFile(real); err != nil || !strings.HasPrefix(string(text), "DOCKER_OPTS=") {
			t.Fatalf("the file holds %q, %v", text, err)
		}
	}
}

func TestDockerOptsFiles(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "subnet.env")
	if err := os.WriteFile(in, []byte(subnetEnvText), 0o600); err != nil {
		t.Fatal(err)
	}
	below := filepath.Join(in, "x") // below a file there is nothing
	for name, tt := range map[string]struct{ out, routes string }{
		"output":   {below, os.DevNull},
		"routes":   {filepath.Join(dir, "out"), below},
		"existing": {dir, os.DevNull},
	} {
		var stderr strings.Builder
		if status := runDockerOpts([]string{"-f", in, "-d", tt.out}, nil, tt.routes, io.Discard, &stderr); status != 1 {
			t.Errorf("%s: status %d: %s", name, status, &stderr)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}
