package deploy_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"weft/deploy/lab"
)

// dockerArg as first argument makes the test binary start dockerd in a lab's node.
const dockerArg = "weft-test-dockerd"

// execDockerd mounts the machine's cgroups, which a node's own /sys hides, and executes dockerd.
func execDockerd(argv []string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if err := unix.Mount("cgroup", "/sys/fs/cgroup", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount /sys/fs/cgroup: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		left, right, _ := strings.Cut(line, " - ")
		target, fs := strings.Fields(left)[4], strings.Fields(right)
		if !strings.HasPrefix(fs[0], "cgroup") || !strings.HasPrefix(target, "/sys/fs/cgroup") {
			continue
		}
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		options := strings.TrimPrefix(strings.TrimPrefix(fs[2], "rw"), ",")
		if err := unix.Mount(fs[0], target, fs[0], 0, options); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
	}
	return syscall.Exec(argv[0], argv, os.Environ())
}

// docker is a dockerd running in a node of a lab.
type docker struct {
	node   *lab.Node
	argv   []string
	daemon *lab.Process
}

// startDocker runs the installed dockerd with the given flags until the test ends, or skips the
// test.
func startDocker(t *testing.T, n *lab.Node, flags ...string) *docker {
	t.Helper()
	program, err := exec.LookPath("dockerd")
	if err != nil {
		t.Skipf("NOT TESTED: docker: %v", err)
	}
	return runDockerd(t, n, program, flags...)
}

// runDockerd is startDocker with the path of a dockerd.
func runDockerd(t *testing.T, n *lab.Node, program string, flags ...string) *docker {
	t.Helper()
	if _, err := exec.LookPath("docker"); err != nil {
		t.Skipf("NOT TESTED: docker: %v", err)
	}
	if b, err := os.ReadFile("/proc/self/uid_map"); err != nil || strings.Fields(string(b))[2] == "1" {
		t.Skipf("NOT TESTED: dockerd needs root on the host, not only in a user namespace (%v)", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := &docker{node: n}
	d.argv = append([]string{self, dockerArg, program, "--data-root=" + t.TempDir(), "--host=unix:///run/docker.sock",
		"--exec-root=/run/docker", "--pidfile=/run/docker.pid"}, flags...)
	d.start(t)
	t.Cleanup(d.stop)
	return d
}

// start starts dockerd and waits until it serves.
func (d *docker) start(t *testing.T) {
	t.Helper()
	var err error
	if d.daemon, err = d.node.Start(d.argv); err != nil {
		t.Fatal(err)
	}
	await(t, d.node.Name+"'s dockerd", func() error {
		if !d.daemon.Running() {
			t.Fatalf("dockerd has exited\n%s", strings.Join(d.daemon.Tail(10), "\n"))
		}
		_, err := d.run("version")
		return err
	})
}

// stop stops dockerd and with it its containers, whose cgroups belong to the machine.
func (d *docker) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
	defer cancel()
	// The lab kills the rest.
	_, _ = d.daemon.Stop(ctx)
}

// run runs the docker client.
func (d *docker) run(args ...string) (string, error) {
	cmd := exec.Command("docker", append([]string{"--host=unix://" + d.node.Path("docker.sock")}, args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0", "DOCKER_CONFIG="+os.TempDir())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out)), err
}

// mustRun is run; it fails the test on error.
func (d *docker) mustRun(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.run(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// buildImage builds the image as build-image does.
func (d *docker) buildImage(t *testing.T) {
	t.Helper()
	d.mustRun(t, "build", "-q", "-t", "weft:dev", "-f", "docker/Dockerfile", buildImageDir(t))
}

// pid returns the process ID of a container.
func (d *docker) pid(t *testing.T, name string) int {
	t.Helper()
	pid, err := strconv.Atoi(d.mustRun(t, "inspect", "-f", "{{.State.Pid}}", name))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// inContainer runs f in the network namespace of a container. Sockets opened by f stay in it.
func (d *docker) inContainer(t *testing.T, name string, f func() error) error {
	t.Helper()
	path := fmt.Sprintf("/proc/%d/ns/net", d.pid(t, name))
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked, so the thread exits with the goroutine
		file, err := os.Open(path)
		if err != nil {
			done <- err
			return
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter namespace %s: %w", path, err)
			return
		}
		done <- f()
	}()
	return <-done
}
