package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a program running in a node. The lab kills it when it closes.
type Process struct {
	Name string // base name of the program, for messages
	Node string

	cmd     *exec.Cmd
	log     *logBuffer
	done    chan struct{}
	exitErr error // result of cmd.Wait; valid once done is closed
}

// Start runs a program in the node: in its network namespace, with its own /run and host name, and
// with a /sys that shows its devices. env is added to this process's environment. Standard output
// and standard error are kept for Log and Tail.
func (n *Node) Start(argv []string, env ...string) (*Process, error) {
	return n.StartWithFiles(argv, nil, env...)
}

// StartWithFiles is Start with open files, which the program has from descriptor 3 on.
func (n *Node) StartWithFiles(argv []string, files []*os.File, env ...string) (*Process, error) {
	p := &Process{Name: baseName(argv[0]), Node: n.Name, log: &logBuffer{},
		done: make(chan struct{})}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.ExtraFiles = files
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	err := n.Do(func() error {
		if err := n.unshareView(); err != nil {
			return err
		}
		return p.cmd.Start()
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	go func() {
		p.exitErr = p.cmd.Wait()
		close(p.done)
	}()
	n.lab.mu.Lock()
	n.lab.processes = append(n.lab.processes, p)
	n.lab.mu.Unlock()
	return p, nil
}

// unshareView gives the calling thread, and the program started from it, the node's host name, /run
// and /sys.
func (n *Node) unshareView() error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("unshare mounts and host name: %w", err)
	}
	if err := unix.Sethostname([]byte(n.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	// EBUSY: this network namespace's sysfs is mounted already, as in root.
	err := mountPseudoFS("sysfs")
	if err != nil && !isMountHidden(err) && !errors.Is(err, unix.EBUSY) {
		return err
	}
	if err := bindBPF(); err != nil {
		return err
	}
	if err := unix.Mount(n.Dir, "/run", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount own /run: %w", err)
	}
	return nil
}

// PID returns the process ID inside the lab.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed when the process has exited.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the process has not exited yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Wait waits for the process to exit and returns its exit status, -1 if a signal killed it. A
// non-zero exit status is not an error.
func (p *Process) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for %s on %s: %w", p.Name, p.Node, ctx.Err())
	}
	if err := ignoreExit(p.exitErr); err != nil {
		return 0, fmt.Errorf("wait for %s on %s: %w", p.Name, p.Node, err)
	}
	return p.cmd.ProcessState.ExitCode(), nil
}

// Signal sends a signal. It is not an error if the process has already exited.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to %s on %s: %w", s, p.Name, p.Node, err)
	}
	return nil
}

// Kill kills the process with SIGKILL.
func (p *Process) Kill() {
	// Possible errors are "already exited" and "not permitted", and it is a child of this process.
	_ = p.cmd.Process.Kill()
}

// Stop sends SIGTERM, waits for the process to exit and returns its exit status.
func (p *Process) Stop(ctx context.Context) (int, error) {
	if err := p.Signal(unix.SIGTERM); err != nil {
		return 0, err
	}
	return p.Wait(ctx)
}

// Log returns the output of the process, without the beginning of a very long log.
func (p *Process) Log() string { return p.log.String() }

// Tail returns the last n lines of the log.
func (p *Process) Tail(n int) []string {
	lines := strings.Split(strings.TrimRight(p.Log(), "\n"), "\n")
	return lines[max(0, len(lines)-n):]
}

// CopyLog writes the log so far to w, and from then on everything that the process prints, until it
// exits or w fails.
func (p *Process) CopyLog(w io.Writer) error {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	p.log.copy = w
	_, err := w.Write(p.log.b)
	return err
}

// FDs returns the number of open file descriptors.
func (p *Process) FDs() (int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	if err != nil {
		return 0, fmt.Errorf("count descriptors of %s on %s: %w", p.Name, p.Node, err)
	}
	return len(entries), nil
}

// RSS returns the resident set size in bytes.
func (p *Process) RSS() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return 0, fmt.Errorf("read memory of %s on %s: %w", p.Name, p.Node, err)
	}
	_, rest, _ := bytes.Cut(b, []byte("VmRSS:"))
	fields := bytes.Fields(rest)
	if len(fields) < 2 {
		return 0, fmt.Errorf("read memory of %s on %s: no VmRSS: process has exited", p.Name,
			p.Node)
	}
	kib, err := strconv.ParseInt(string(fields[0]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read memory of %s on %s: %w", p.Name, p.Node, err)
	}
	return kib << 10, nil
}

// CPUTime returns the CPU time used by the process.
func (p *Process) CPUTime() (time.Duration, error) {
	const schedClock = 2 // CPUCLOCK_SCHED; include/linux/posix-timers.h defines the clock ID
	var used unix.Timespec
	if err := unix.ClockGettime(int32(^p.PID()<<3|schedClock), &used); err != nil {
		return 0, fmt.Errorf("read CPU time of %s on %s: %w", p.Name, p.Node, err)
	}
	return time.Duration(used.Nano()), nil
}

// logLimit bounds the output kept per process, in bytes.
const logLimit = 4 << 20

// logBuffer keeps the end of the data written to it.
type logBuffer struct {
	mu   sync.Mutex
	b    []byte
	copy io.Writer // nil unless CopyLog set it
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.b)+len(b) > logLimit {
		l.b = append(l.b[:0], l.b[len(l.b)/2:]...)
	}
	l.b = append(l.b, b...)
	if l.copy != nil {
		if _, err := l.copy.Write(b); err != nil {
			l.copy = nil
		}
	}
	return len(b), nil
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}

func baseName(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }
