package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/deploy/lab"
)

// asDaemon is the environment variable with which the test binary runs as the daemon, for tests
// that need it in a process of its own.
const asDaemon = "TEST_AS_WEFTD"

func TestMain(m *testing.M) {
	if os.Getenv(asDaemon) != "" {
		if os.Getenv("LISTEN_FDS") != "" { // systemd sets it between fork and exec
			os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
		}
		main()
	}
	os.Exit(lab.Main(m))
}

// The tests with a fixture run the daemon in a network namespace whose only interface is lo, with
// leases from a file.

const healthAddress = "127.0.0.1:18085"

// patience bounds every wait, for a slow machine.
const patience = 20 * time.Second

// fixture holds the paths of the daemon's files.
type fixture struct {
	leases, env string
}

func newFixture(t *testing.T, leases string) fixture {
	t.Helper()
	f := fixture{leases: filepath.Join(t.TempDir(), "leases.yml"), env: filepath.Join(t.TempDir(), "subnet.env")}
	f.write(t, leases)
	if lab.Inside() { // a new namespace has the host's setting
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f fixture) write(t *testing.T, leases string) {
	t.Helper()
	next := f.leases + ".next"
	if err := os.WriteFile(next, []byte(leases), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, f.leases); err != nil {
		t.Fatal(err)
	}
}

func (f fixture) args(more ...string) []string {
	host, port, _ := net.SplitHostPort(healthAddress)
	return append([]string{
		"--lease-file=" + f.leases, "--subnet-file=" + f.env, "--node-name=n1", "--iface=127.0.0.1",
		"--healthz-ip=" + host, "--healthz-port=" + port, "--iptables-forward-rules=false", "--workers=2",
	}, more...)
}

// leaseFile returns a lease file for a backend. node is the entry of the local node, if any.
func leaseFile(backend, node string) string {
	return `{"network": {"Network": "10.5.0.0/16", "Backend": {"Type": "` + backend + `"}}, "nodes": [` + node +
		`{"name": "n2", "subnet": "10.5.2.0/24", "publicIP": "127.0.0.2"}]}`
}

const localNode = `{"name": "n1", "subnet": "10.5.1.0/24", "publicIP": "127.0.0.1"},`

// started is a daemon in this process.
type started struct {
	cancel context.CancelFunc
	log    *lockedBuffer
	code   chan int // the exit code, and then closed
}

func (f fixture) start(t *testing.T, more ...string) started {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := started{cancel: cancel, log: &lockedBuffer{}, code: make(chan int, 1)}
	go func() {
		defer close(s.code)
		s.code <- run(ctx, f.args(more...), nil, io.Discard, s.log)
	}()
	t.Cleanup(func() {
		cancel()
		for range s.code { // its ports and devices are those of the next test's daemon
		}
		if t.Failed() {
			t.Logf("the daemon logged:\n%s", s.log)
		}
	})
	return s
}

// stop stops the daemon and checks the exit code and the duration.
func (s started) stop(t *testing.T) {
	t.Helper()
	begin := time.Now()
	s.cancel()
	select {
	case code := <-s.code:
		if took := time.Since(begin); code != 0 || took > 2*time.Second {
			t.Errorf("exit %d after %v", code, took)
		}
	case <-time.After(patience):
		t.Fatal("daemon does not stop")
	}
}

// lockedBuffer is a buffer for concurrent use.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// fetch requests a path of the health server over a new connection.
func fetch(path string) (code int, body string, err error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	res, err := client.Get("http://" + healthAddress + path)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// awaitReady waits until /readyz returns code and a body that contains text.
func awaitReady(t *testing.T, code int, text string) {
	t.Helper()
	err := lab.Await(t.Context(), patience, fmt.Sprintf("/readyz %d with %q", code, text), func() error {
		got, body, err := fetch("/readyz")
		if err == nil && (got != code || !strings.Contains(body, text)) {
			err = fmt.Errorf("%d %s", got, body)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// awaitFile waits until the content of the file is want.
func awaitFile(t *testing.T, path, want string) {
	t.Helper()
	err := lab.Await(t.Context(), patience, path, func() error {
		got, err := os.ReadFile(path)
		if err == nil && string(got) != want {
			err = fmt.Errorf("content %q, want %q", got, want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// subnetEnvOf returns subnet.env for a subnet on lo, which counts as an Ethernet device.
func subnetEnvOf(address string) string {
	return "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=" + address + "\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
}

// process starts the test binary as the daemon. notified receives its messages to systemd.
func process(t *testing.T, f fixture) (cmd *exec.Cmd, notified <-chan string) {
	t.Helper()
	return limitedProcess(t, f, ":")
}

// limitedProcess is process with a shell command that limits the process before it starts, and with
// further arguments.
func limitedProcess(
	t *testing.T, f fixture, limit string, more ...string,
) (cmd *exec.Cmd, notified <-chan string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return limitedProgram(t, f, self, limit, more...)
}

// limitedProgram is limitedProcess with another program than this test.
func limitedProgram(
	t *testing.T, f fixture, program, limit string, more ...string,
) (cmd *exec.Cmd, notified <-chan string) {
	t.Helper()
	notified = notifySocket(t)
	cmd = exec.Command("sh", append([]string{"-c", limit + ` && exec "$0" "$@"`, program}, f.args(more...)...)...)
	// Without this, the race detector sleeps for a second at exit.
	cmd.Env = append(os.Environ(), asDaemon+"=1", "GORACE=atexit_sleep_ms=0")
	var log lockedBuffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
			t.Log(cmd.Wait())
		}
		if t.Failed() {
			t.Logf("the daemon logged:\n%s", &log)
		}
	})
	return cmd, notified
}

// notifySocket takes the place of systemd's notification socket until the test ends. It ignores
// descriptors to be stored.
func notifySocket(t *testing.T) <-chan string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	notified := make(chan string, 16)
	go func() {
		defer close(notified)
		buffer := make([]byte, 1024)
		for {
			n, err := c.Read(buffer)
			if err != nil {
				return
			}
			if message := string(buffer[:n]); !strings.HasPrefix(message, "FDSTORE") {
				notified <- message
			}
		}
	}()
	t.Cleanup(func() { c.Close() })
	return notified
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// setMTU sets the MTU of a device in this network namespace.
func setMTU(t *testing.T, device string, mtu int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(device)
	if err != nil {
		t.Fatal(err)
	}
	r.SetUint32(uint32(mtu))
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, r); err != nil {
		t.Fatal(err)
	}
}

func remove(args []string, one string) []string {
	var rest []string
	for _, a := range args {
		if a != one {
			rest = append(rest, a)
		}
	}
	return rest
}
