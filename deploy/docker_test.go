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

// dockerArg makes the test binary start dockerd in a lab's node.
const dockerArg = "weft-test-dockerd"

// enterDocker shows the cgroups of the machine, which a node's own /sys hides, and becomes dockerd.
func enterDocker(argv []string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if err := unix.Mount("cgroup", "/sys/fs/cgroup", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount /sys/fs/cgroup: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		left, right, _ := strings.Cut(line, " - ")
		at, what := strings.Fields(left)[4], strings.Fields(right)
		if !strings.HasPrefix(what[0], "cgroup") || !strings.HasPrefix(at, "/sys/fs/cgroup") {
			continue
		}
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		options := strings.TrimPrefix(strings.TrimPrefix(what[2], "rw"), ",")
		if err := unix.Mount(what[0], at, what[0], 0, options); err != nil {
			return fmt.Errorf("mount %s: %w", at, err)
		}
	}
	return syscall.Exec(argv[0], argv, os.Environ())
}

// docker is a dockerd in a node of a lab.
type docker struct {
	node   *lab.Node
	daemon *lab.Process
}

// startDocker runs a dockerd with some flags until the test ends, or skips the test.
func startDocker(t *testing.T, n *lab.Node, flags ...string) *docker {
	t.Helper()
	program, err := exec.LookPath("dockerd")
	if err != nil {
		t.Skipf("NOT TESTED with docker: %v", err)
	}
	if _, err := exec.LookPath("docker"); err != nil {
		t.Skipf("NOT TESTED with docker: %v", err)
	}
	if b, err := os.ReadFile("/proc/self/uid_map"); err != nil || strings.Fields(string(b))[2] == "1" {
		t.Skipf("NOT TESTED with docker: a dockerd needs to be root, which this user is only inside (%v)", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	argv := append([]string{self, dockerArg, program, "--data-root=" + t.TempDir(), "--host=unix:///run/docker.sock",
		"--exec-root=/run/docker", "--pidfile=/run/docker.pid"}, flags...)
	d := &docker{node: n}
	if d.daemon, err = n.Start(argv); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.stop)
	await(t, n.Name+"'s dockerd", func() error {
		if !d.daemon.Running() {
			t.Fatalf("dockerd has ended\n%s", strings.Join(d.daemon.Tail(10), "\n"))
		}
		_, err := d.do("version")
		return err
	})
	return d
}

// stop ends the dockerd and with it its containers, whose cgroups are the machine's.
func (d *docker) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// What is left is ended with the lab.
	_, _ = d.daemon.Stop(ctx)
}

// do runs the docker program.
func (d *docker) do(args ...string) (string, error) {
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

func (d *docker) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.do(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// buildDockerImage builds the image in the way that build-image does.
func (d *docker) buildDockerImage(t *testing.T) {
	t.Helper()
	d.must(t, "build", "-q", "-t", "weft:dev", "-f", "docker/Dockerfile", buildImage(t))
}

// pid is the number of a container's process.
func (d *docker) pid(t *testing.T, name string) int {
	t.Helper()
	pid, err := strconv.Atoi(d.must(t, "inspect", "-f", "{{.State.Pid}}", name))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// inContainer runs f in the network of a container. A socket that f opens stays there.
func (d *docker) inContainer(t *testing.T, name string, f func() error) error {
	t.Helper()
	path := fmt.Sprintf("/proc/%d/ns/net", d.pid(t, name))
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread is thrown away
		file, err := os.Open(path)
		if err != nil {
			done <- err
			return
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter %s: %w", path, err)
			return
		}
		done <- f()
	}()
	return <-done
}
