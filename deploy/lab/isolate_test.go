package lab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/deploy/lab"
)

// holdEnv makes this test binary a program that builds a lab, prints "up" and blocks.
const holdEnv = "LAB_TEST_HOLD"

func TestMain(m *testing.M) {
	if os.Getenv(holdEnv) == "" {
		os.Exit(lab.Main(m))
	}
	status, err := lab.Run(hold)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(status)
}

func hold() int {
	l, err := lab.New(context.Background(), lab.Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if _, err := l.Nodes[0].Start([]string{"/bin/sh", "-c", "while :; do sleep 1; done"}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("up")
	select {}
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// A killed outer process cannot clean up. Everything inside must exit with it. The processes inside
// hold the write end of the pipe, so its end of file shows that all have exited.
func TestNetnsOuterProcessKilled(t *testing.T) {
	for _, s := range []syscall.Signal{unix.SIGKILL, unix.SIGTERM} {
		t.Run(s.String(), func(t *testing.T) {
			cmd := exec.Command(self(t))
			cmd.Env = append(os.Environ(), holdEnv+"=1")
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "up\n" {
				t.Fatalf("%q, %v", line, err)
			}
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() {
				_, err := io.Copy(io.Discard, out)
				ended <- err
			}()
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(5 * time.Second):
				t.Error("a process inside is still running after 5 s")
			}
			err = cmd.Wait()
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				t.Errorf("outer process: %v, want an exit error", err)
			}
		})
	}
}

// runWithoutNetns runs this test binary where it cannot create network namespaces.
func runWithoutNetns(t *testing.T, env ...string) (output string, status int) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "echo 0 >/proc/sys/user/max_net_namespaces && exec "+self(t)+
		" -test.v -test.run 'TestNetnsPods|TestWithoutNamespaces'")
	cmd.Env = append(os.Environ(), env...)
	// The limit applies to the new user namespace, not to the host.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// TestWithoutNamespaces runs where namespace tests cannot; TestNetnsForbidden looks for its log.
func TestWithoutNamespaces(t *testing.T) { t.Log("ran without namespaces") }

func TestNetnsForbidden(t *testing.T) {
	t.Setenv("WEFT_REQUIRE_NETNS", "")
	out, status := runWithoutNetns(t)
	if status != 0 || !strings.Contains(out, "ran without namespaces") {
		t.Errorf("status %d, want 0 and the other tests to run:\n%s", status, out)
	}
	if want := "NOT TESTED: TestNetnsPods: "; !strings.Contains(out, want) {
		t.Errorf("want %q in:\n%s", want, out)
	}
	if want := "sysctl user.max_net_namespaces"; !strings.Contains(out, want) {
		t.Errorf("want the remedy %q in:\n%s", want, out)
	}
	if out, status := runWithoutNetns(t, "WEFT_REQUIRE_NETNS=1"); status != 1 || !strings.Contains(out, "FAIL") {
		t.Errorf("status %d, want 1 with WEFT_REQUIRE_NETNS=1:\n%s", status, out)
	}
}

func TestNetnsHostView(t *testing.T) {
	if !lab.Inside() {
		t.Error("Inside() = false in a namespace test")
	}
	if o, err := lab.ReadHostView(); err != nil || o.PID == "1" || o.PID == "" {
		t.Errorf("ReadHostView: %+v, %v", o, err)
	}
}
