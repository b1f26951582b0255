package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a program that runs in a node. It ends with the lab at the latest.
type Process struct {
	Name string // the program's name, for messages
	Node string

	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{}
	end  error // what Wait of the command said; valid once done is closed
}

// Start runs a program in the node: in its network, with the node's own /run and host name and with a /sys that shows the
// node's devices. env is added to this process's environment. Output of both kinds is kept for Log and Tail.
func (n *Node) Start(argv []string, env ...string) (*Process, error) {
	p := &Process{Name: baseName(argv[0]), Node: n.Name, log: &logBuffer{}, done: make(chan struct{})}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	err := n.Do(func() error {
		if err := n.ownView(); err != nil {
			return err
		}
		return p.cmd.Start()
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	go func() {
		p.end = p.cmd.Wait()
		close(p.done)
	}()
	n.lab.mu.Lock()
	n.lab.processes = append(n.lab.processes, p)
	n.lab.mu.Unlock()
	return p, nil
}

// ownView gives the calling thread, and what it starts, the node's host name, /run and /sys.
func (n *Node) ownView() error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("unshare mounts and host name: %w", err)
	}
	if err := unix.Sethostname([]byte(n.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := unix.Mount(n.Dir, "/run", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount own /run: %w", err)
	}
	// Busy: this network namespace's view is there already, as in root.
	if err := mountView("sysfs"); err != nil && !hidden(err) && !errors.Is(err, unix.EBUSY) {
		return err
	}
	return nil
}

// PID is the process's number inside the lab.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running says whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Wait waits for the end and returns the exit status, -1 if a signal ended it. The error is about the waiting, not
// about the status.
func (p *Process) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for %s on %s: %w", p.Name, p.Node, ctx.Err())
	}
	if err := ignoreExit(p.end); err != nil {
		return 0, fmt.Errorf("wait for %s on %s: %w", p.Name, p.Node, err)
	}
	return p.cmd.ProcessState.ExitCode(), nil
}

// Signal sends a signal; a process that has already ended is not an error.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to %s on %s: %w", s, p.Name, p.Node, err)
	}
	return nil
}

// Kill ends the process at once, as kill -9 does.
func (p *Process) Kill() {
	// The only errors are "already ended" and "not permitted", and it is our own child.
	_ = p.cmd.Process.Kill()
}

// Stop asks the process to end (SIGTERM), waits for it and returns its exit status.
func (p *Process) Stop(ctx context.Context) (int, error) {
	if err := p.Signal(unix.SIGTERM); err != nil {
		return 0, err
	}
	return p.Wait(ctx)
}

// Log returns everything the process has printed, except the start of a very long log.
func (p *Process) Log() string { return p.log.String() }

// Tail returns the last n lines of the log.
func (p *Process) Tail(n int) []string {
	lines := strings.Split(strings.TrimRight(p.Log(), "\n"), "\n")
	return lines[max(0, len(lines)-n):]
}

// FDs counts the process's open file descriptors.
func (p *Process) FDs() (int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	if err != nil {
		return 0, fmt.Errorf("count descriptors of %s on %s: %w", p.Name, p.Node, err)
	}
	return len(entries), nil
}

// Memory is the resident size in bytes.
func (p *Process) RSS() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return 0, fmt.Errorf("read memory of %s on %s: %w", p.Name, p.Node, err)
	}
	_, rest, _ := bytes.Cut(b, []byte("VmRSS:"))
	fields := bytes.Fields(rest)
	if len(fields) < 2 {
		return 0, fmt.Errorf("read memory of %s on %s: no VmRSS, it has ended", p.Name, p.Node)
	}
	kib, err := strconv.ParseInt(string(fields[0]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read memory of %s on %s: %w", p.Name, p.Node, err)
	}
	return kib << 10, nil
}

// CPU is the processor time that the process has used.
func (p *Process) CPUTime() (time.Duration, error) {
	const schedClock = 2 // CPUCLOCK_SCHED of include/linux/posix-timers.h, which also has how the number is made
	var used unix.Timespec
	if err := unix.ClockGettime(int32(^p.PID()<<3|schedClock), &used); err != nil {
		return 0, fmt.Errorf("read processor time of %s on %s: %w", p.Name, p.Node, err)
	}
	return time.Duration(used.Nano()), nil
}

// logLimit bounds what is kept of one process's output, in bytes.
const logLimit = 4 << 20

// logBuffer keeps the end of what is written to it.
type logBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.b)+len(b) > logLimit {
		l.b = append(l.b[:0], l.b[len(l.b)/2:]...)
	}
	l.b = append(l.b, b...)
	return len(b), nil
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}

func baseName(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }
