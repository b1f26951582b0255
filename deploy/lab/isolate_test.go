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

// holdVariable makes this test binary a program that builds a lab, says so and stays.
const holdVariable = "LAB_TEST_HOLD"

func TestMain(m *testing.M) {
	if os.Getenv(holdVariable) == "" {
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

// An outer process that is killed cannot clean up, and needs not: whatever was inside ends with it. Everything inside
// holds our pipe open, so its end of file is the proof.
func TestNetnsKilledOuterProcessTakesEverythingAlong(t *testing.T) {
	for _, s := range []syscall.Signal{unix.SIGKILL, unix.SIGTERM} {
		t.Run(s.String(), func(t *testing.T) {
			cmd := exec.Command(self(t))
			cmd.Env = append(os.Environ(), holdVariable+"=1")
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
				t.Error("something inside lives on")
			}
			err = cmd.Wait()
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// refusing runs this test binary where no network namespace may be made.
func refusing(t *testing.T, env ...string) (output string, status int) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "echo 0 >/proc/sys/user/max_net_namespaces && exec "+self(t)+" -test.v -test.run 'TestNetnsPods|TestRemainder'")
	cmd.Env = append(os.Environ(), env...)
	// The limit is that of the new user namespace, not the host's.
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

func TestRemainderRunsWithoutNamespaces(t *testing.T) { t.Log("the remainder ran") }

func TestNetnsRefusalIsSaid(t *testing.T) {
	t.Setenv("WEFT_REQUIRE_NETNS", "")
	out, status := refusing(t)
	if status != 0 || !strings.Contains(out, "the remainder ran") {
		t.Errorf("status %d, want the other tests to run and pass:\n%s", status, out)
	}
	if want := "NOT TESTED: TestNetnsPods: "; !strings.Contains(out, want) {
		t.Errorf("want %q in:\n%s", want, out)
	}
	if want := "sysctl user.max_net_namespaces"; !strings.Contains(out, want) {
		t.Errorf("want the remedy %q in:\n%s", want, out)
	}
	if out, status := refusing(t, "WEFT_REQUIRE_NETNS=1"); status != 1 || !strings.Contains(out, "FAIL") {
		t.Errorf("status %d, want 1 where they are required:\n%s", status, out)
	}
}

func TestNetnsKnowsWhereItIs(t *testing.T) {
	if !lab.Inside() {
		t.Error("a namespace test does not know that it is inside")
	}
	if o, err := lab.ReadHostView(); err != nil || o.PID == "1" || o.PID == "" {
		t.Errorf("seen from outside: %+v, %v", o, err)
	}
}
