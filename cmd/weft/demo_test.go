package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/deploy/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// build builds a program of this tree.
func build(t *testing.T, pkg string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return path
}

func TestNetnsDemo(t *testing.T) {
	lab.SkipWithoutTUN(t)
	daemon := build(t, "weft/cmd/weftd")
	var out bytes.Buffer
	begin := time.Now()
	status := demoInside(demoFlags{weftd: daemon}, &out)
	t.Log("\n" + out.String())
	if took := time.Since(begin); status != 0 || took > 30*time.Second {
		t.Errorf("status %d after %v, want 0 within 30 s", status, took)
	}
	for _, want := range []string{"3 daemons ready", "node3-pod1 -> node2-pod1  10 of 10", "Gbit/s on one stream",
		"1400-byte datagrams", "UNDERLAY FRAMES", "flannel0  1472", "all steps succeeded"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output lacks %q", want)
		}
	}
}

// The failure of a daemon is printed with its step and its log.
func TestNetnsDemoDaemonFails(t *testing.T) {
	lab.SkipWithoutTUN(t)
	broken := filepath.Join(t.TempDir(), "weftd")
	script := "#!/bin/sh\ncase \"$(cat /proc/sys/kernel/hostname)\" in node2) echo lease lost; exit 3;; esac\nwhile :; do sleep 1; done\n"
	if err := os.WriteFile(broken, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	d := &demonstration{flags: demoFlags{weftd: broken}, out: &out, daemons: make([]*lab.Process, demoNodes),
		start: time.Now()}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := errors.Join(d.createLab(ctx), d.startEtcd(ctx))
	if err != nil {
		t.Fatal(err)
	}
	soon, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err = d.startDaemons(soon)
	if err == nil {
		t.Fatal("a daemon that exits at once counts as ready")
	}
	d.printFailure(err)
	if err := d.close(); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"FAILED: ", "wait for the daemon on node2: ", "daemon exited",
		"the daemon on node2 exited", "    lease lost"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("want %q in:\n%s", want, out.String())
		}
	}
}

// syncBuffer is a buffer that one goroutine reads while others write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A daemon that exits while the lab is kept is reported at once, and its log is in a file.
func TestNetnsDemoKeepDaemonExits(t *testing.T) {
	lab.SkipWithoutTUN(t)
	daemon := filepath.Join(t.TempDir(), "weftd")
	if err := os.WriteFile(daemon, []byte("#!/bin/sh\necho started; exec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var out syncBuffer
	d := &demonstration{out: &out, daemons: make([]*lab.Process, demoNodes), start: time.Now()}
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if err := errors.Join(d.createLab(ctx), d.startEtcd(ctx)); err != nil {
		t.Fatal(err)
	}
	for i, n := range d.lab.Nodes {
		var err error
		if d.daemons[i], err = n.Start([]string{daemon}); err != nil {
			t.Fatal(err)
		}
	}
	kept := make(chan error, 1)
	keeping, release := context.WithCancel(ctx)
	go func() { kept <- d.keep(keeping) }()
	await := func(what string, done func() bool) {
		t.Helper()
		err := lab.Await(ctx, 10*time.Second, what, func() error {
			if !done() {
				return errors.New("not yet")
			}
			return nil
		})
		if err != nil {
			t.Fatalf("%v; output:\n%s", err, out.String())
		}
	}
	await("commands", func() bool { return strings.Contains(out.String(), "The lab keeps running") })
	d.daemons[1].Kill()
	await("report of the exit", func() bool { return strings.Contains(out.String(), "node2  the daemon exited") })
	await("log file", func() bool {
		log, err := os.ReadFile(d.logFile(0))
		return err == nil && strings.Contains(string(log), "started")
	})
	release()
	if err := <-kept; err != nil {
		t.Error(err)
	}
	if exited := d.exitedDaemons(); len(exited) != 1 || exited[0] != "node2" {
		t.Errorf("exited daemons %v, want node2", exited)
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
}

func TestFailedNodes(t *testing.T) {
	one, two := &stepError{1, "step", errors.New("x")}, &stepError{2, "step", errors.New("y")}
	got := failedNodes(errors.Join(one, errors.Join(&stepError{-1, "lab", errors.New("z")}), two))
	if len(got) != 2 || got[0] != 1 || got[1] != 2 {
		t.Errorf("nodes %v, want [1 2]", got)
	}
}
