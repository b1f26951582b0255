package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// buildPlugin builds a plugin of a version of a module, as go install MODULE@VERSION does, and
// returns its content.
func buildPlugin(t *testing.T, module, version string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "go.mod"), "module "+module+"\n\ngo 1.24\n")
	write(t, filepath.Join(dir, "main.go"), "package main\n\nfunc main() {}\n")
	for _, args := range [][]string{{"init", "-q"}, {"add", "."},
		{"-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-qm", "x"}, {"tag", version}} {
		runIn(t, dir, "git", args...)
	}
	runIn(t, dir, "go", "build", "-buildvcs=true", "-o", "plugin")
	return read(filepath.Join(dir, "plugin"))
}

func runIn(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: %s %v: %v\n%s", name, args, err, out)
	}
}

func TestPluginsKeepWhatIsNewer(t *testing.T) {
	old, current := buildPlugin(t, "example.com/cni", "v0.9.1"), buildPlugin(t, "example.com/cni", "v1.9.1")
	other := buildPlugin(t, "example.com/other", "v0.1.0")
	for _, test := range []struct {
		name            string
		ours, had, want string
		mode            os.FileMode
	}{
		{"missing", old, "", old, 0o755},
		{"older", current, old, current, 0o755},
		{"newer", old, current, current, 0o600},
		{"other project", current, other, other, 0o600},
		{"script", current, "#!/bin/sh\n", "#!/bin/sh\n", 0o600},
	} {
		t.Run(test.name, func(t *testing.T) {
			source, target := t.TempDir(), t.TempDir()
			write(t, filepath.Join(source, "flannel"), test.ours)
			if test.had != "" {
				write(t, filepath.Join(target, "flannel"), test.had)
			}
			var log bytes.Buffer
			i := installer{pluginSource: source, plugins: target, log: &log}
			if err := i.run(t.Context()); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(target, "flannel")
			info, err := os.Stat(path)
			if err != nil || read(path) != test.want || info.Mode().Perm() != test.mode {
				t.Errorf("wrong plugin, or mode %v, %v; log: %s", info.Mode(), err, &log)
			}
		})
	}
}

func TestPluginsOverEmptyFile(t *testing.T) {
	source, target := t.TempDir(), t.TempDir()
	write(t, filepath.Join(source, "bridge"), "x")
	write(t, filepath.Join(target, "bridge"), "")
	i := installer{pluginSource: source, plugins: target, log: t.Output()}
	if err := i.run(t.Context()); err != nil || read(filepath.Join(target, "bridge")) != "x" {
		t.Errorf("plugin %q, %v", read(filepath.Join(target, "bridge")), err)
	}
}

func TestPluginsWithOtherArguments(t *testing.T) {
	for _, args := range [][]string{{"--plugins=/x", "a", "b"}, {"--plugins=/x", "--hold"}} {
		var log bytes.Buffer
		if code := run(t.Context(), args, &log); code != 2 {
			t.Errorf("%v: exit code %d, want 2: %s", args, code, &log)
		}
	}
}
