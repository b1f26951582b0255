package ike

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// socketPath is where charon listens for VICI by default.
	socketPath = "/var/run/charon.vici"
	// pidPath is charon's lock against a second one.
	pidPath = "/var/run/charon.pid"
	// startTime limits the time until charon listens.
	startTime = 20 * time.Second
)

// directories lists the places of charon in distributions, none of which is in PATH.
func directories() []string {
	return []string{"/usr/lib/ipsec", "/usr/libexec/ipsec", "/usr/lib/strongswan",
		"/usr/libexec/strongswan"}
}

// FindCharon returns the path of charon.
func FindCharon() (string, error) {
	if path, err := exec.LookPath("charon"); err == nil {
		return path, nil
	}
	for _, dir := range directories() {
		if path, err := exec.LookPath(filepath.Join(dir, "charon")); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("strongSwan's charon is neither in PATH nor in %s: install strongswan",
		strings.Join(directories(), ", "))
}

// charon is a running child process.
type charon struct {
	path  string
	pid   int
	ended chan struct{} // closed when it has ended
	err   error         // why, once ended is closed
	last  atomic.Pointer[string]
}

// startCharon starts charon, which ends when this process does. log gets its messages.
func startCharon(log *slog.Logger) (*charon, error) {
	path, err := FindCharon()
	if err != nil {
		return nil, err
	}
	if err := checkRunning(pidPath); err != nil {
		return nil, err
	}
	if err := removeStale(pidPath, socketPath); err != nil {
		return nil, err
	}
	c := &charon{path: path, ended: make(chan struct{})}
	started := make(chan error)
	go c.run(started, log)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start charon: %w", err)
	}
	return c, nil
}

// run starts the process and waits for its end. The kernel kills the child when the thread that
// started it ends, so the goroutine keeps the thread.
func (c *charon) run(started chan<- error, log *slog.Logger) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(c.ended)
	cmd := exec.Command(c.path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	output, err := cmd.StderrPipe()
	if err == nil {
		cmd.Stdout = cmd.Stderr
		err = cmd.Start()
	}
	if err != nil {
		started <- err
		return
	}
	c.pid = cmd.Process.Pid
	started <- nil
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		line := lines.Text()
		c.last.Store(&line)
		log.Debug("charon", "message", line)
	}
	_, readErr := io.Copy(io.Discard, output) // the rest, after a line that is too long
	c.err = errors.Join(lines.Err(), readErr, cmd.Wait())
}

// kill ends the process at once, so that it leaves its security associations in the kernel.
func (c *charon) kill() error {
	if err := syscall.Kill(c.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill charon: %w", err)
	}
	<-c.ended
	return nil
}

// endError describes the end of the process, with its last message.
func (c *charon) endError() error {
	<-c.ended
	text := "charon ended"
	if c.err != nil {
		text += ": " + c.err.Error()
	}
	if last := c.last.Load(); last != nil {
		text += fmt.Sprintf(" (last message: %s)", *last)
	}
	return errors.New(text)
}

// connect opens a VICI session, as soon as charon listens.
func (c *charon) connect(ctx context.Context) (client, error) {
	deadline := time.After(startTime)
	for {
		s, err := newClient()
		if err == nil {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return client{}, ctx.Err()
		case <-c.ended:
			return client{}, c.endError()
		case <-deadline:
			return client{}, fmt.Errorf("charon does not listen on %s after %v: %w", socketPath,
				startTime, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// checkRunning fails if a charon runs that is not a child: two cannot share the ports.
func checkRunning(pidPath string) error {
	text, err := os.ReadFile(pidPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for another charon: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil // not written yet, or by another program
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err == nil && strings.HasPrefix(string(name), "charon") {
		return fmt.Errorf("another charon runs (process %d, %s): stop the strongSwan service of this "+
			"host", pid, pidPath)
	}
	return nil
}

// removeStale removes files of a charon that was killed. The next one would refuse to start if
// another process has the number in its PID file.
func removeStale(paths ...string) error {
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("file of an earlier charon: %w", err)
		}
	}
	return nil
}
