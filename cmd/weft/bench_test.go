package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"weft/bench/report"
)

// prepareBench parses a command line and prepares it, with an empty file as weftd.
func prepareBench(t *testing.T, args ...string) (benchFlags, error) {
	t.Helper()
	dir := t.TempDir()
	daemon := filepath.Join(dir, "weftd")
	if err := os.WriteFile(daemon, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	var f benchFlags
	flags := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	f.register(flags)
	err := flags.Parse(append([]string{"--weftd", daemon, "--out", filepath.Join(dir, "result.json")}, args...))
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	f.applyPresets(flags)
	err = f.prepare()
	if f.file != nil && f.file != os.Stdout {
		t.Cleanup(func() { f.file.Close() })
	}
	return f, err
}

func TestBenchFlags(t *testing.T) {
	for _, c := range []struct {
		args string
		want string // cases, underlays, targets, rounds, seconds, --ablation
	}{
		{"", "tcp,udp,rtt,connect [wire 1500 off 1500] none,vxlan,ipip,wireguard,weftd,fast,portable,bare 5 {2 0.5} false"},
		{"--quick", "tcp-1,tcp-4,udp-64-1,rtt-idle [wire 1500 off 1500] none,vxlan,weftd,portable 3 {0.5 0.2} false"},
		{"--quick --rounds 7 --cases connect --probe 1",
			"connect [wire 1500 off 1500] none,vxlan,weftd,portable 7 {0.5 1} false"},
		{"--full", "tcp,udp,rtt,connect,fan-out [wire 1500 nic 1500 off 1500 wire 9000 nic 9000 off 9000] none,vxlan,ipip,wireguard,weftd,fast,portable,bare 10 {2 0.5} true"},
		{"--full --mtus 1400 --rounds 4 --modes nic --ablation=false",
			"tcp,udp,rtt,connect,fan-out [nic 1400] none,vxlan,ipip,wireguard,weftd,fast,portable,bare 4 {2 0.5} false"},
		{"--targets none,~vxlan~ --modes ~off,wire --mtus 1500,~1600 --cases tcp-1,~rtt-idle --target a.B_c-1=/x~--y --seconds 0.01 --probe 3600",
			"tcp-1, rtt-idle [off 1500 wire 1500 off 1600 wire 1600] none,vxlan,a.B_c-1 5 {0.01 3600} false"},
	} {
		var args []string
		for _, a := range strings.Fields(c.args) {
			args = append(args, strings.ReplaceAll(a, "~", " "))
		}
		f, err := prepareBench(t, args...)
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		var names []string
		for _, r := range f.plan.Targets {
			names = append(names, r.Name)
		}
		got := fmt.Sprintf("%s %v %s %d %v %v", f.cases, f.plan.Underlays, strings.Join(names, ","), f.plan.Rounds,
			f.plan.Seconds, f.ablate)
		if got != c.want {
			t.Errorf("%q:\n%s, want\n%s", c.args, got, c.want)
		}
	}
}

// Invalid flags are errors before the lab is created, with the value and the allowed values.
func TestBenchFlagErrors(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--targets", "none,none"}, `duplicate target "none"`},
		{[]string{"--targets", "none", "--target", "none=/bin/x"}, `duplicate target "none"`},
		{[]string{"--target", "x=/bin/x", "--target", "x=/bin/y"}, `duplicate target "x"`},
		{[]string{"--modes", "off,off"}, "duplicate off 1500"},
		{[]string{"--mtus", "1500,01500"}, "duplicate wire 1500"},
		{[]string{"--targets", "none,"}, `--targets: unknown target "": want names of none,vxlan,`},
		{[]string{"--modes", "fast"}, `--modes: unknown mode "fast": want [wire nic off]`},
		{[]string{"--mtus", "100"}, `--mtus: "100" is not an MTU: want 1280 to 65535`},
		{[]string{"--cases", "quic"}, `--cases: no workload "quic"`},
		{[]string{"--rounds", "0"}, "--rounds: 0 is less than 1"},
		{[]string{"--seconds", "NaN"}, "--seconds: NaN is out of range: want 0.01 to 3600"},
		{[]string{"--seconds", "1e300"}, "--seconds: 1e+300 is out of range: want 0.01 to 3600"},
		{[]string{"--seconds", "-1"}, "--seconds: -1 is out"},
		{[]string{"--probe", "1e-9"}, "--probe: 1e-09 is out of range: want 0.01 to 3600"},
		{[]string{"--probe", "+Inf"}, "--probe: +Inf is out"},
		{[]string{"--target", "a|b=/bin/x"}, `--target: invalid name "a|b": want letters`},
		{[]string{"--target", "=/bin/x"}, `--target: invalid name ""`},
		{[]string{"--target", "/bin/x"}, `--target: "/bin/x" is not name=program`},
		{[]string{"--target", "x= "}, `--target: "x= " is not name=program`},
		{[]string{"--out", "/nonexistent/result.json"}, "--out: open /nonexistent/result.json: no such file"},
		{[]string{"--out", "/"}, "--out: open /: is a directory"},
		{[]string{"--weftd", "/nonexistent/weftd"}, "find weftd"},
		{[]string{"--weftd", "/nonexistent/weftd", "--targets", "none", "--ablation"}, "find weftd"},
	} {
		if _, err := prepareBench(t, c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
	if _, err := prepareBench(t, "--weftd", "/nonexistent/weftd", "--targets", "none,vxlan,ipip,bare"); err != nil {
		t.Errorf("needs a daemon without a target that uses it: %v", err)
	}
}

// The file keeps its content until there is a result, which replaces it.
func TestBenchSave(t *testing.T) {
	path := filepath.Join(t.TempDir(), "result.json")
	before := strings.Repeat("x", 1<<16)
	if err := os.WriteFile(path, []byte(before), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := prepareBench(t, "--out", path)
	if err != nil {
		t.Fatal(err)
	}
	if held, err := os.ReadFile(path); err != nil || string(held) != before {
		t.Errorf("the file has %d bytes before there is a result, %v", len(held), err)
	}
	result := &report.Result{Schema: report.Schema, Targets: []report.Target{{Name: "none"}},
		Series: []report.Series{{Underlay: report.Underlay{Mode: "wire", MTU: 1500}, Case: "tcp-1", Target: "none",
			Samples: []report.Sample{{"throughput": 1}}}}}
	if err := f.save(result); err != nil {
		t.Fatal(err)
	}
	if _, err := readResult(path); err != nil {
		t.Error(err)
	}
	if f, err = prepareBench(t, "--out", "/dev/null"); err == nil {
		err = f.save(result)
	}
	if err != nil {
		t.Errorf("/dev/null: %v", err)
	}
}

// An interrupted run writes the samples taken so far and the reason. Kernel targets need no TUN
// device.
func TestNetnsBenchInterrupted(t *testing.T) {
	if err := unix.Mount("none", "/dev/net", "tmpfs", 0, ""); err == nil { // without this directory, there is no TUN device
		defer unix.Unmount("/dev/net", 0)
	}
	program := build(t, "weft/cmd/weft")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "bench", "--targets", "none, vxlan", "--modes", "off", "--cases",
		"tcp-1,tcp-4",
		"--rounds", "1", "--seconds", "0.3", "--out", "-")
	var out bytes.Buffer
	cmd.Stdout = &out
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var progress []string
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		progress = append(progress, lines.Text())
		if strings.Contains(lines.Text(), "tcp-1 ") && strings.Contains(lines.Text(), "vxlan") {
			if err := cmd.Process.Signal(unix.SIGINT); err != nil {
				t.Error(err)
			}
		}
	}
	err = cmd.Wait()
	shown := strings.Join(progress, "\n")
	t.Log("\n" + shown)
	if cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v, want exit status 1", err)
	}
	result, err := report.Read(&out)
	if err != nil {
		t.Fatal("the standard output is not a result: ", err)
	}
	if !strings.HasPrefix(result.Incomplete, "interrupted: ") {
		t.Errorf("incomplete: %q, want interrupted", result.Incomplete)
	}
	if !slices.ContainsFunc(result.Series, func(s report.Series) bool {
		return s.Case == "tcp-1" &&
			s.Target == "vxlan"
	}) {
		t.Errorf("series %+v, want tcp-1 of vxlan", result.Series)
	}
	for _, want := range []string{"| TCP, 1 stream, Gbit/s |", "The run ended early: interrupted",
		"weft: interrupted"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the standard error lacks %q", want)
		}
	}
}
