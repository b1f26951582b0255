package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// weft runs a subcommand that needs no lab and returns its output.
func weft(t *testing.T, input string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var files [3]*os.File
	for i := range files {
		var err error
		if files[i], err = os.CreateTemp(t.TempDir(), ""); err != nil {
			t.Fatal(err)
		}
		defer files[i].Close()
	}
	if err := os.WriteFile(files[0].Name(), []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	in, out, problems := os.Stdin, os.Stdout, os.Stderr
	defer func() { os.Stdin, os.Stdout, os.Stderr = in, out, problems }()
	os.Stdin, os.Stdout, os.Stderr = files[0], files[1], files[2]
	status = run(args)
	var texts [3]string
	for i, f := range files {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		texts[i] = string(b)
	}
	return status, texts[1], texts[2]
}

const someResult = `{"schema":1,"rounds":1,"targets":[{"name":"vxlan"}],"series":[
	{"underlay":{"mode":"wire","mtu":1500},"case":"tcp-1","target":"vxlan","samples":[{"throughput":5e9}]}]}`

func TestBenchReport(t *testing.T) {
	dir := t.TempDir()
	path, html := filepath.Join(dir, "result.json"), filepath.Join(dir, "x.html")
	markdown, summary := filepath.Join(dir, "x.md"), filepath.Join(dir, "summary.md")
	if err := os.WriteFile(path, []byte(someResult), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   []string
		status int
		out    string // in the standard output or error
	}{
		{[]string{"report", "--html", html, "--markdown", markdown, "--summary", summary, path}, 0, ""},
		{[]string{"report", "--html", "-", "-"}, 0, "<!doctype html>"},
		{[]string{"report", "--html=", "--markdown", "-", "-"}, 0, "# Benchmarks\n"},
		{[]string{"report", "--html=", "--summary", "-", "-"}, 0, "| TCP, 1 stream, Gbit/s | 5.00 | - | - | - |\n"},
		{[]string{"compare", path, "-"}, 0, "0 of 1 metrics changed"},
		{[]string{"compare", "-", path}, 0, "0 of 1 metrics changed"},
		{[]string{"compare", "-", "-"}, 1, "the standard input holds one result only"},
		{[]string{"report", "-h"}, 0, "weft bench report RESULT.json [flags]\n"},
		{[]string{"compare", "-h"}, 0, "weft bench compare OLD.json NEW.json [flags]\n"},
		{[]string{"report"}, 2, "weft bench report: want RESULT.json after the flags, got 0 arguments; weft bench report -h lists the flags\n"},
		{[]string{"report", path, path}, 2, "want RESULT.json after the flags, got 2 arguments; "},
		{[]string{"compare", path}, 2, "weft bench compare: want OLD.json NEW.json after the flags, got 1 arguments; "},
		{[]string{"compare", "--x", path, path}, 2, "--x"},
		{[]string{"report", "/nonexistent"}, 1, "weft: open /nonexistent: no such file or directory\n"},
		{[]string{"report", "--html", "/nonexistent/x", path}, 1,
			"weft: open /nonexistent/x: no such file or directory\n"},
	} {
		status, out, problems := weft(t, someResult, append([]string{"bench"}, c.args...)...)
		if status != c.status || !strings.Contains(out+problems, c.out) {
			t.Errorf("%q: status %d, want %d and %q in:\n%s%s", c.args, status, c.status, c.out, out, problems)
		}
	}
	for _, file := range []string{html, markdown, summary} {
		if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), "TCP, 1 stream") {
			t.Errorf("%s: %v, %d bytes", file, err, len(b))
		}
	}
	if status, _, problems := weft(t, "{}", "bench", "report", "-"); status != 1 ||
		!strings.Contains(problems, "weft: standard input: read result: schema 0, want 1") {
		t.Errorf("status %d: %s", status, problems)
	}
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args   string
		status int
		out    string
	}{
		{"", 0, "weft [command]\n"},
		{"help", 0, "weft [command]\n"},
		{"--help", 0, "weft [command]\n"},
		{"-version", 0, "weft "},
		{"--version", 0, "weft "},
		{"-v", 0, "weft "},
		{"-v junk", 2, `weft version: unexpected argument "junk"`},
		{"-help", 0, "weft [command]\n"},
		{"help status", 0, "weft status [flags]\n"},
		{"demo -help", 0, "weft demo [flags]\n"},
		{"docker-opts -h", 0, "weft docker-opts [-f"},
		{"docker-opts -?", 0, "weft docker-opts [-f"},
		{"docker-opts --help", 0, "weft docker-opts [-f"},
		{"docker-opts junk", 1, `weft: docker-opts: unexpected argument "junk"; `},
		{"help xx", 2, `weft: unknown subcommand "xx"; weft -h lists the subcommands`},
		{"xx", 2, `weft: unknown subcommand "xx"; weft -h lists the subcommands`},
		{"--xx", 2, `weft: unknown flag: --xx; weft -h lists the subcommands`},
		{"statsu", 2, `weft: unknown subcommand "statsu", the nearest is "status"; `},
		{"bench -rounds x", 2, `weft bench: invalid argument "x" for "--rounds" flag: `},
		{"demo --xx", 2, "weft demo: unknown flag: --xx; weft demo -h lists the flags"},
		{"bench --rounds=x", 2, `weft bench: invalid argument "x" for "--rounds" flag: `},
		{"version", 0, "weft "},
		{"version junk", 2, `weft version: unexpected argument "junk", want flags only`},
		{"version -h", 0, ""},
		{"demo junk", 2, `weft demo: unexpected argument "junk", want flags only`},
		{"bench junk", 2, `weft bench: unexpected argument "junk", want flags only`},
		{"bench -h", 0, "compare     print the metrics"},
	} {
		status, out, problems := weft(t, "", strings.Fields(c.args)...)
		if c.status == 0 && problems != "" || c.status != 0 && (out != "" || strings.Count(problems, "\n") != 1) {
			t.Errorf("weft %s: want one line on stderr for errors, nothing for help, got:\n%s%s", c.args, out, problems)
		}
		if status != c.status || !strings.Contains(out+problems, c.out) {
			t.Errorf("weft %s: status %d, want %d and %q in:\n%s%s", c.args, status, c.status, c.out, out, problems)
		}
	}
}
